"""Which accounts may take a call, in which order, and the reason for every one of them."""

from __future__ import annotations

import pytest

from accounts.lineup import lineup, model_not_found
from accounts.selection import Picture, Ranking, decide
from relay.call import Account, BindingRule, Call
from relay.errors import ModelNotFound, NoAccountAvailable, UpstreamOverloaded
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
