"""Limits on accounts: a used-up one leaves its account out, and every call counts for the account that answered."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from msgspec.structs import replace

from accounts import quota
from accounts.events import moment
from accounts.quota import NotTaken
from accounts.selection import Ranking, able, none_took, passed_over, rank, take
from accounts.snapshot import ACCOUNTS
from relay.call import Account, Call, Demand, LimitRule, Record, new_call_id
from relay.errors import NoAccountAvailable
from relay.models import UsageRecord
from relay.state.base import Seed
from relay.state.memory import MemoryStore
from tests.account_cases import MODEL, NOW, account, call, forget
from tests.stores import in_flight

USE = Demand(tokens=10, cost=100, worst_tokens=50, worst_cost=500)


@pytest.fixture(autouse=True)
def _fresh_process() -> None:
    forget()


def limited(metric: str, amount: int, **given: Any) -> Account:
    rule = LimitRule(id=77, scope="account", owner_id=5, metric=metric, amount=amount, per="day", **given)
    return account("limited", id=5, limits=(rule,))


def seeded(of: Account) -> MemoryStore:
    """A store that knows that nothing of the account's limits is used yet."""
    store = MemoryStore()
    limits = quota.limits_of(of, MODEL, metered=True)
    async_to_sync(store.seed)([Seed(limit.limit, NOW - 60, {}) for limit in limits], generation="g")
    return store


def ranked(asked: Call, *accounts: Account, store: MemoryStore) -> Ranking:
    return async_to_sync(rank)(asked, able(asked, accounts), store=store, now=NOW)


def taken(asked: Call, of: Account, *, store: MemoryStore) -> bool:
    return out_of(asked, of, store=store) is None


def out_of(asked: Call, of: Account, *, store: MemoryStore, use: Demand = USE) -> NotTaken | None:
    return async_to_sync(take)(asked, of, store=store, now=NOW, demand=lambda: use)


def settled(asked: Call, of: Account, *, store: MemoryStore, cost: int = 0, tokens: int = 0) -> None:
    record = Record(id=asked.id, created_at=NOW, account_id=of.id, cost_nanos=cost, output_tokens=tokens)
    async_to_sync(store.settle)(*quota.settlements(asked, record, now=NOW + 1))


def used(of: Account, *, store: MemoryStore) -> int:
    (limit,) = quota.limits_of(of, MODEL, metered=True)
    name = limit.counter(NOW)[0]
    return async_to_sync(store.used)([name], now=NOW)[name]


def test_an_account_whose_quota_is_spent_is_left_out_with_its_end() -> None:
    daily, other = limited("requests", 1), account("other")
    store, first = seeded(daily), call()
    assert taken(first, daily, store=store)
    settled(first, daily, store=store)
    ranking = ranked(call(), daily, other, store=store)
    reason = dict(ranking.reasons)["limited"]
    assert [item.name for item in ranking.accounts] == ["other"]
    assert reason == "its 1 requests per day are used up, for 57600 s more"


def test_when_every_quota_is_spent_the_wait_is_honest_and_at_most_half_an_hour() -> None:
    daily = limited("requests", 1)
    store, first = seeded(daily), call()
    taken(first, daily, store=store)
    with pytest.raises(NoAccountAvailable) as caught:
        ranked(call(), daily, store=store)
    assert caught.value.retry_after == 1800


def test_the_estimate_is_held_and_the_real_cost_is_booked() -> None:
    daily = limited("cost", 1000)
    store, first = seeded(daily), call()
    assert taken(first, daily, store=store) and used(daily, store=store) == 100
    settled(first, daily, store=store, cost=321)
    settled(first, daily, store=store, cost=321)
    assert used(daily, store=store) == 321


def test_an_account_that_failed_before_another_answered_counts_no_cost() -> None:
    daily = limited("cost", 1000)
    store, first = seeded(daily), call()
    taken(first, daily, store=store)
    settled(first, account("other"), store=store, cost=321)
    assert used(daily, store=store) == 0


def test_a_strict_quota_holds_the_worst_case_and_is_never_overrun() -> None:
    daily = limited("cost", 1200, strict=True)
    store = seeded(daily)
    assert [taken(call(), daily, store=store) for _ in range(4)] == [True, True, False, False]
    assert async_to_sync(in_flight)(store, [daily.id], now=NOW) == {daily.id: 2}


def test_a_call_without_an_upper_bound_goes_past_a_strict_quota() -> None:
    daily = limited("tokens", 10_000, strict=True)
    unbounded = Demand(tokens=1, cost=1, worst_tokens=1, worst_cost=1, unbounded="max_tokens")
    out = out_of(call(), daily, store=seeded(daily), use=unbounded)
    assert out is not None and out.unbounded == "max_tokens"
    ranking = ranked(call(), daily, store=seeded(daily))
    told, later = none_took(ranking, [out], now=NOW), none_took(replace(ranking, frees=NOW + 30), [out], now=NOW)
    assert (told.status, told.message[:24]) == (400, "max_tokens: the accounts")
    assert (later.status, later.retry_after) == (503, 30)


def test_a_call_that_does_not_fit_is_told_why_and_how_long() -> None:
    daily = limited("tokens", 120, strict=True)
    store = seeded(daily)
    ranking = ranked(call(), daily, store=store)
    out = [out_of(call(), daily, store=store) for _ in range(3)][-1]
    assert out is not None
    reason = "its 120 tokens per day have too little left for this call, for 57600 s more"
    assert passed_over(ranking, daily, out).reasons == (("limited", reason),)
    assert none_took(ranking, [out], now=NOW).retry_after == 1800


def test_a_call_that_never_fits_is_not_told_to_come_again() -> None:
    daily = limited("tokens", 40, strict=True)
    store = seeded(daily)
    out = out_of(call(), daily, store=store)
    assert out is not None and out.reason == "its 40 tokens per day are less than this call could use"
    assert none_took(ranked(call(), daily, store=store), [out], now=NOW).should_retry is False


def test_a_limit_for_some_models_counts_only_those() -> None:
    daily = limited("requests", 1, models="claude-opus-*")
    store, first = seeded(daily), call()
    taken(first, daily, store=store)
    settled(first, daily, store=store)
    assert [item.name for item in ranked(call("claude-haiku-5"), daily, store=store).accounts] == ["limited"]
    with pytest.raises(NoAccountAvailable):
        ranked(call(), daily, store=store)


def test_a_dead_processs_call_is_counted_by_its_recovered_record() -> None:
    daily = limited("cost", 1000)
    store, lost = seeded(daily), call()
    taken(lost, daily, store=store)
    quota._held.clear()
    record = Record(id=lost.id, created_at=NOW, account_id=daily.id, requested_model=MODEL, cost_nanos=250)
    async_to_sync(quota.settle_recovered)(record, accounts=(daily,), store=store, now=NOW + 60)
    assert used(daily, store=store) == 250


def test_a_limit_made_while_a_call_is_in_flight_counts_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    daily, store, asked = limited("cost", 1000), MemoryStore(), call()
    assert taken(asked, account("limited", id=5), store=store)
    (limit,) = quota.limits_of(daily, MODEL, metered=True)
    async_to_sync(store.seed)([Seed(limit.limit, NOW + 0.5, {})], generation="g")
    monkeypatch.setattr(ACCOUNTS, "current", (daily,))
    for _ in range(2):
        settled(asked, daily, store=store, cost=321)
    assert used(daily, store=store) == 321


def test_recovery_counts_no_finished_call_that_a_seed_has() -> None:
    daily, store = limited("tokens", 1000), MemoryStore()
    (limit,) = quota.limits_of(daily, MODEL, metered=True)
    seed = Seed(limit.limit, NOW + 5, {limit.counter(NOW)[0]: (100, NOW + 86_400)})
    async_to_sync(store.seed)([seed], generation="g")
    ended: dict[str, Any] = {"created_at": NOW, "account_id": daily.id, "requested_model": MODEL, "output_tokens": 100}
    for record in (Record(id="a", duration_ms=1000, **ended), Record(id="b", duration_ms=6000, **ended)):
        async_to_sync(quota.settle_recovered)(record, accounts=(daily,), store=store, now=NOW + 60)
    assert used(daily, store=store) == 200


@pytest.mark.django_db
def test_a_store_that_knows_nothing_yet_is_seeded_from_the_ledger_first() -> None:
    daily, store = limited("requests", 1), MemoryStore()
    assert taken(call(), daily, store=store)
    assert not taken(call(), daily, store=store)


@pytest.mark.django_db
def test_what_the_ledger_knows_is_seeded_before_the_first_call() -> None:
    daily, store = limited("cost", 1000), MemoryStore()
    UsageRecord.objects.create(
        id=new_call_id(NOW - 60),
        created_at=moment(NOW - 60),
        account_id=daily.id,
        requested_model=MODEL,
        status="ok",
        usage_source="provider",
        cost_nanos=1000,
        duration_ms=10,
    )
    async_to_sync(quota.ensure_seeded)(store, (daily, account("other")), now=NOW)
    with pytest.raises(NoAccountAvailable):
        ranked(call(), daily, store=store)


def test_accounts_without_limits_ask_no_store() -> None:
    assert async_to_sync(quota.reserve)(call(), account("a"), store=MemoryStore(), demand=None, now=NOW) is None
