"""Which accounts may take a call, in which order, and the reason for every one of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from accounts import health
from accounts.lineup import lineup, model_not_found
from accounts.selection import Picture, Ranking, able, candidates, decide, eligible
from relay.call import Account, BindingRule, Call
from relay.errors import ModelNotFound, NoAccountAvailable, RelayError, UpstreamOverloaded
from relay.state.base import Rest
from tests.account_cases import MODEL, NOW, account, call, forget, key


@pytest.fixture(autouse=True)
def _fresh_process() -> None:
    forget()


def ranked(asked: Call, *accounts: Account, picture: Picture | None = None) -> Ranking:
    found = lineup(asked, accounts)
    if not found.able:
        raise model_not_found(asked, accounts, found)
    return decide(asked, found, picture or Picture(), now=NOW)


def names(ranking: Ranking) -> list[str]:
    return [item.name for item in ranking.accounts]


def resting(*rests: Rest) -> Picture:
    return Picture(rests={(rest.account_id, rest.model): rest for rest in rests})


A, B, C = account("a"), account("b"), account("c")


def test_the_lower_priority_number_goes_first() -> None:
    assert names(ranked(call(), account("second", priority=60), account("first", priority=10))) == ["first", "second"]


def test_the_least_loaded_by_weight_goes_first() -> None:
    heavy, light = account("heavy", weight=4), account("light", weight=1)
    picture = Picture(in_flight={heavy.id: 3, light.id: 1})
    assert names(ranked(call(), light, heavy, picture=picture)) == ["heavy", "light"]


def test_the_conversation_stays_on_its_account() -> None:
    ranking = ranked(call(conversation="c1"), A, B, C, picture=Picture(pinned=C.id, in_flight={C.id: 9}))
    assert (names(ranking)[0], dict(ranking.reasons)["c"]) == ("c", "same conversation, 9 in flight")


def test_a_bound_key_uses_nothing_else() -> None:
    ranking = ranked(call(of=key(BindingRule(account_id=B.id))), A, B, C)
    assert ranking.reasons == (
        ("b", "bound to this key"),
        ("a", "not bound to this key"),
        ("c", "not bound to this key"),
    )


def test_every_left_out_account_says_why() -> None:
    accounts = (
        A,
        account("mapped", model_map={"other": "other"}),
        account("router", kind="ccr"),
        account("off", active=False),
        account("old", expires_at=NOW - 1),
        account("full", slots=4),
        account("broken", fault="credential can't be decrypted"),
        account("tired"),
    )
    by_name = {item.name: item for item in accounts}
    picture = Picture(
        rests={(by_name["tired"].id, MODEL): Rest(by_name["tired"].id, MODEL, NOW + 211.5, "429")},
        in_flight={by_name["full"].id: 4},
    )
    assert dict(ranked(call(), *accounts, picture=picture).reasons) == {
        "a": "priority 50",
        "mapped": "does not serve this model",
        "router": "takes only calls addressed to it (ccr,<model>) or bound to it",
        "off": "switched off",
        "old": "expired",
        "full": "all 4 slots taken",
        "broken": "credential can't be decrypted",
        "tired": "this model rests 212 s after 429",
    }


def test_a_model_that_no_account_can_ever_serve_is_not_found() -> None:
    with pytest.raises(ModelNotFound):
        ranked(call(), account("mapped", model_map={"other": "other"}))


def test_a_rest_that_is_a_guess_does_not_keep_the_last_account_from_trying() -> None:
    ranking = ranked(call(), A, picture=resting(Rest(A.id, MODEL, NOW + 600, "529")))
    assert ranking.reasons == (("a", "this model rests 600 s after 529, but no other account is left"),)


def test_named_resets_everywhere_are_the_upstreams_429_with_the_first_reset() -> None:
    rests = (Rest(A.id, MODEL, NOW + 90, "429", named=True), Rest(B.id, MODEL, NOW + 30, "429", named=True))
    with pytest.raises(UpstreamOverloaded) as caught:
        ranked(call(), A, B, picture=resting(*rests))
    assert (caught.value.upstream_status, caught.value.retry_after) == (429, 30)


def test_rejected_credentials_everywhere_are_no_account_available() -> None:
    with pytest.raises(NoAccountAvailable) as caught:
        ranked(call(), A, picture=resting(Rest(A.id, "", NOW + 1000, "credential")))
    assert (caught.value.retry_after, dict(caught.value.candidates)) == (
        1000,
        {"a": "rests 1000 s after its credential or balance was rejected"},
    )


# -- bindings, addresses, other dialects -----------------------------------------------------------------


def test_a_group_binds_all_its_accounts() -> None:
    grouped = account("grouped", groups=frozenset({7}))
    assert names(ranked(call(of=key(BindingRule(group_id=7))), A, grouped, B)) == ["grouped"]


def test_with_fallback_the_pool_comes_after_the_bound_ones_even_for_the_same_conversation() -> None:
    bound = account("bound", priority=90)
    asked = call(of=key(BindingRule(account_id=bound.id, fallback=True)), conversation="c1")
    assert names(ranked(asked, A, bound, picture=Picture(pinned=A.id))) == ["bound", "a"]


def test_one_binding_with_fallback_opens_the_pool_for_the_key() -> None:
    bindings = (BindingRule(account_id=A.id), BindingRule(account_id=B.id, fallback=True))
    assert names(ranked(call(of=key(*bindings)), A, B, C))[2:] == ["c"]


ROUTER = account("router", kind="ccr")


def test_an_addressed_model_goes_to_routers_only() -> None:
    ranking = ranked(call("ccr,some-model"), A, ROUTER)
    assert ranking.reasons == (
        ("router", "priority 50"),
        ("a", "the model is addressed to another kind of account"),
    )


def test_a_router_takes_plain_models_when_bound() -> None:
    assert names(ranked(call(of=key(BindingRule(account_id=ROUTER.id))), A, ROUTER)) == ["router"]


def test_not_found_says_the_address_under_which_it_is_served() -> None:
    with pytest.raises(ModelNotFound) as caught:
        ranked(call("some-model"), ROUTER)
    assert caught.value.message.endswith("It is served as ccr,some-model.")


def test_not_found_says_the_path_of_another_dialect() -> None:
    other = account("other", kind="openai_compatible")
    with pytest.raises(ModelNotFound) as caught:
        ranked(call("some-model"), other)
    assert caught.value.message == (
        "No account of this key serves the model 'some-model' here. It is served under /v1/chat/completions."
    )
    assert dict(caught.value.candidates) == {"other": "does not speak the anthropic dialect"}


def test_not_found_tells_nothing_of_accounts_that_the_key_may_not_use() -> None:
    other = account("other", kind="openai_compatible")
    with pytest.raises(ModelNotFound) as caught:
        ranked(call("m", of=key(BindingRule(account_id=A.id + 1))), other)
    assert caught.value.message == "No account of this key serves the model 'm' here."


def test_a_kind_that_is_not_there_any_more_loses_only_its_own_accounts() -> None:
    gone = account("gone", kind="vanished", fault="this Baton has no kind 'vanished'")
    assert dict(ranked(call(), A, gone).reasons)["gone"] == "this Baton has no kind 'vanished'"


# -- operator's tests, ties --------------------------------------------------------------------------------


def test_an_operators_test_goes_to_its_account_whatever_its_state() -> None:
    off = account("off", active=False, slots=1, expires_at=NOW - 1)
    picture = Picture(rests={(off.id, ""): Rest(off.id, "", NOW + 999, "credential")}, in_flight={off.id: 5})
    ranking = ranked(call(origin="operator", account_id=off.id), A, off, picture=picture)
    assert (names(ranking), ranking.recovering, ranking.probes) == (["off"], {off.id: ("",)}, frozenset())


def test_a_tied_conversation_goes_to_its_account_or_nowhere() -> None:
    tied = Picture(tied=A.id)
    assert names(ranked(call(), A, B, picture=tied)) == ["a"]
    with pytest.raises(NoAccountAvailable) as caught:
        ranked(call(), A, B, picture=structs.replace(tied, rests={(A.id, ""): Rest(A.id, "", NOW + 40, "credential")}))
    assert (caught.value.retry_after, dict(caught.value.candidates)["b"]) == (
        40,
        "the conversation is tied to another account",
    )


# -- nobody ------------------------------------------------------------------------------------------------


def test_the_wait_is_until_the_first_account_frees() -> None:
    rests = (Rest(A.id, "", NOW + 700, "credential"), Rest(B.id, "", NOW + 90.2, "credential"))
    with pytest.raises(NoAccountAvailable) as caught:
        ranked(call(), A, B, picture=resting(*rests))
    assert caught.value.retry_after == 91
    assert caught.value.message == "No account can take this call now; the first may be free again in 91 s."


def test_no_wait_is_longer_than_half_an_hour() -> None:
    with pytest.raises(NoAccountAvailable) as caught:
        ranked(call(), A, picture=resting(Rest(A.id, "", NOW + 9999, "credential")))
    assert caught.value.retry_after == 1800


def test_full_accounts_free_soon() -> None:
    full = account("full", slots=2)
    with pytest.raises(NoAccountAvailable) as caught:
        ranked(call(), full, picture=Picture(in_flight={full.id: 2}))
    assert caught.value.retry_after == 2


def test_accounts_out_of_service_are_not_worth_a_retry() -> None:
    with pytest.raises(NoAccountAvailable) as caught:
        ranked(call(), account("off", active=False), account("broken", fault="credential can't be decrypted"))
    assert (caught.value.retry_after, caught.value.should_retry) == (60, False)


def test_one_account_that_waits_for_something_else_makes_it_no_429() -> None:
    with pytest.raises(NoAccountAvailable):
        ranked(
            call(),
            A,
            B,
            picture=resting(Rest(A.id, MODEL, NOW + 90, "429", named=True), Rest(B.id, "", NOW + 95, "credential")),
        )


def test_no_client_ever_reads_the_name_of_an_account() -> None:
    secret = account("secret-name")
    for picture in (
        resting(Rest(secret.id, "", NOW + 9, "credential")),
        resting(Rest(secret.id, MODEL, NOW + 9, "429", named=True)),
    ):
        with pytest.raises(RelayError) as caught:
            ranked(call(), secret, picture=picture)
        assert "secret-name" not in caught.value.message


def test_guesses_that_rest_everywhere_are_tried_in_the_order_in_which_they_end() -> None:
    rests = (
        Rest(A.id, MODEL, NOW + 500, "529"),
        Rest(B.id, MODEL, NOW + 50, "503"),
        Rest(C.id, "", NOW + 5, "credential"),
    )
    assert names(ranked(call(), A, B, C, picture=resting(*rests))) == ["b", "a"]


def test_a_model_rests_for_its_own_calls_only() -> None:
    picture = resting(Rest(A.id, MODEL, NOW + 500, "529"))
    assert names(ranked(call(), A, B, picture=picture)) == ["b"]
    assert len(names(ranked(call("claude-haiku-5"), A, B, picture=picture))) == 2


def test_the_rest_is_of_the_model_as_the_upstream_knows_it() -> None:
    mapped = account("mapped", model_map={MODEL: "upstream-name"})
    picture = resting(Rest(mapped.id, "upstream-name", NOW + 500, "529"))
    assert names(ranked(call(), mapped, A, picture=picture)) == ["a"]


# -- who may at all: what admission asks before it reserves ---------------------------------------------------


def test_eligible_are_those_in_service_or_else_all_that_could_be() -> None:
    off = account("off", active=False)
    assert eligible(able(call(), (A, off, ROUTER))) == [A]
    assert eligible(able(call(), (off, ROUTER))) == [off]
    with pytest.raises(ModelNotFound):
        able(call(), (ROUTER,))


def test_a_new_snapshot_is_seen_at_once() -> None:
    asked = call()
    assert eligible(able(asked, (A, B))) == [A, B]
    assert eligible(able(asked, (B,))) == [B]


@pytest.mark.parametrize(
    ("priorities", "first"), [((5, 9), 0), ((9, 5), 1), ((5, 5), -1), ((7,), 0)], ids=["one", "other", "load", "only"]
)
def test_who_leads_whatever_the_load_is_known_beforehand(priorities: tuple[int, ...], first: int) -> None:
    accounts = tuple(account(f"n{number}", priority=priority) for number, priority in enumerate(priorities))
    assert able(call(), accounts).first == first


def test_behind_a_binding_the_pool_gets_no_seat_at_once() -> None:
    bound = key(BindingRule(account_id=B.id, fallback=True))
    found = able(call(of=bound), (replace(A, priority=1), B))
    assert [(seat.account_id, seat.front) for seat in found.seats] == [(A.id, False), (B.id, True)]
    assert found.first == 1


def test_the_record_names_a_hundred_accounts_and_the_one_that_answered() -> None:
    rows = candidates([(f"a{number}", "priority 50") for number in range(150)], taken="a149")
    assert (len(rows), rows[100]) == (102, {"account": "a149", "taken": True, "reason": "priority 50"})
    assert rows[101]["reason"] == "and 49 more accounts"


# -- whatever the state: nobody who may not is ever ranked, and everybody has a reason ------------------------

KINDS = st.sampled_from(["claude_official", "claude_console", "ccr", "openai_compatible", "vanished"])
MODELS = st.sampled_from([MODEL, "other", "ccr,other"])
ACCOUNTS = st.lists(
    st.builds(
        account,
        st.sampled_from([f"account-{letter}" for letter in "abcdefgh"]),
        kind=KINDS,
        active=st.booleans(),
        expires_at=st.none() | st.floats(NOW - 5, NOW + 5),
        fault=st.sampled_from(["", "", "credential can't be decrypted"]),
        slots=st.integers(0, 3),
        weight=st.integers(1, 5),
        priority=st.integers(1, 3),
        model_map=st.sampled_from([{}, {MODEL: "x"}, {"other": "other"}]),
        groups=st.frozensets(st.integers(1, 3)),
    ),
    unique_by=lambda item: item.id,
    max_size=8,
)


@given(st.data())
def test_whatever_the_state_only_who_may_is_ranked_and_everybody_has_one_reason(data: st.DataObject) -> None:
    accounts = tuple(data.draw(ACCOUNTS))
    ids = st.sampled_from([item.id for item in accounts] or [0])
    binding = st.builds(BindingRule, account_id=ids, fallback=st.booleans())
    asked = call(data.draw(MODELS), of=key(*data.draw(st.lists(binding, max_size=2))))
    rests = data.draw(
        st.lists(
            st.builds(
                Rest,
                ids,
                st.sampled_from(["", MODEL, "other", "x"]),
                st.floats(NOW - 50, NOW + 50),
                st.sampled_from(["429", "529", "credential", "model"]),
                st.booleans(),
            )
        )
    )
    picture = Picture(
        rests={(rest.account_id, rest.model): rest for rest in rests},
        in_flight={item.id: data.draw(st.integers(0, 4)) for item in accounts},
        pinned=data.draw(st.none() | ids),
    )
    try:
        ranking = ranked(asked, *accounts, picture=picture)
    except RelayError as error:
        reasons = error.candidates
    else:
        reasons = ranking.reasons
        bound = {rule.account_id for rule in asked.key.bindings}
        fallback = not bound or any(rule.fallback for rule in asked.key.bindings)
        for item in ranking.accounts:
            assert item.active and not item.fault and (item.expires_at is None or item.expires_at > NOW)
            assert item.id in bound or fallback
            assert not item.slots or picture.in_flight[item.id] < item.slots
            model = asked.envelope.model.removeprefix("ccr,") if item.kind == "ccr" else asked.envelope.model
            assert not item.model_map or model in item.model_map
            model = item.model_map.get(model, model)
            live = [
                rest for rest in rests if rest.account_id == item.id and rest.until > NOW and rest.model in {"", model}
            ]
            known = [rest for rest in live if picture.rests[rest.account_id, rest.model] is rest]
            assert all(health.is_guess(rest) for rest in known)
        assert len({item.id for item in ranking.accounts}) == len(ranking.accounts) > 0
    assert sorted(name for name, _ in reasons) == sorted(item.name for item in accounts)
    assert all(reason for _, reason in reasons)
