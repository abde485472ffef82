"""Limits of keys and teams: what admits, what refuses, and what the client reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from msgspec import structs

from apikeys import admission
from apikeys.admission import Reservation
from apikeys.rules import counted_one
from relay.call import Call, Demand, Endpoint, Envelope, Key, LimitRule, RateLimit, Record, new_call_id
from relay.errors import BudgetExceeded, InvalidRequest, LimitExceeded
from relay.state import Seed
from relay.state.base import Store
from relay.state.memory import MemoryStore

NOON = 1_780_315_200.0  # 2026-06-01 12:00:00 UTC, a Monday
DOLLAR = 10**9
KEY = Key(id=7, name="ada", public_id="p", digest=b"d")
DEMAND = Demand(tokens=100, cost=DOLLAR // 10, worst_tokens=1000, worst_cost=DOLLAR)


def limit(metric: str, amount: int, per: str = "day", **fields: Any) -> LimitRule:
    columns: dict[str, Any] = {"id": 1, "scope": "key", "owner_id": 7} | fields
    return LimitRule(metric=metric, amount=amount, per=per, **columns)


def call(*limits: LimitRule, model: str = "claude-opus-4-5", metered: bool = True, at: float = NOON) -> Call:
    return Call(
        id=new_call_id(at),
        created_at=at,
        key=replace(KEY, limits=limits),
        endpoint=Endpoint("messages", "anthropic", metered),
        envelope=Envelope(model=model),
        method="POST",
        path="/v1/messages",
        query="",
        headers=(),
        body=b"{}",
    )


def seeded(*limits: LimitRule) -> MemoryStore:
    store = MemoryStore()
    seeds = [Seed(counted_one(rule).limit, NOON - 1000, {}) for rule in limits if rule.metric != "concurrency"]
    async_to_sync(store.seed)(seeds, generation="test")
    return store


def reserve(store: Store, made: Call, demand: Demand = DEMAND) -> Reservation:
    return async_to_sync(admission.reserve)(store, made, lambda: demand, now=made.created_at)


def settle(store: Store, reservation: Reservation, *, tokens: int = 0, cost: int = 0, at: float = NOON + 1) -> None:
    async_to_sync(admission.settle)(store, reservation, tokens=tokens, cost=cost, now=at)


def used(store: Store, rule: LimitRule, at: float = NOON) -> int:
    name, _ = counted_one(rule).counter(at)
    return async_to_sync(store.used)([name], now=at)[name]


def never() -> Demand:
    raise AssertionError("the demand is of no interest")


def test_a_key_without_limits_reserves_nothing_and_asks_for_no_demand() -> None:
    reservation = async_to_sync(admission.reserve)(MemoryStore(), call(), never, now=NOON)
    assert reservation.holds == ()


def test_request_limits_ask_for_no_demand() -> None:
    rule = limit("requests", 1)
    reservation = async_to_sync(admission.reserve)(seeded(rule), call(rule), never, now=NOON)
    assert [(hold.metric, hold.amount) for hold in reservation.holds] == [("requests", 1)]


def test_the_second_request_of_one_a_day_reads_which_limit_it_was_and_when_it_resets() -> None:
    rule = limit("requests", 1, time_zone="Europe/Berlin")
    store = seeded(rule)
    reserve(store, call(rule))
    with pytest.raises(LimitExceeded) as refused:
        reserve(store, call(rule))
    assert refused.value.message == (
        "The limit of 1 request per day of this API key is spent: 1 request used, calls in flight included. "
        "It resets at 2026-06-02 00:00:00 Europe/Berlin, in 10 h 0 min."
    )
    assert (refused.value.retry_after, refused.value.should_retry) == (36_000.0, False)


def test_a_wait_within_the_minute_is_one_to_sit_out() -> None:
    rule = limit("requests", 0, "minute")
    with pytest.raises(LimitExceeded) as refused:
        reserve(seeded(rule), call(rule, at=NOON + 15.2))
    assert (refused.value.retry_after, refused.value.should_retry) == (45.0, None)


def test_a_spent_budget_is_a_budget_error_that_nobody_retries() -> None:
    rule = limit("cost", 5 * DOLLAR, "month", scope="team", owner_id=3)
    store = seeded(rule)
    settle(store, reserve(store, call(rule)), cost=5_020_000_000)
    with pytest.raises(BudgetExceeded) as refused:
        reserve(store, call(rule))
    assert refused.value.message == (
        "The budget of $5.00 per month of your team is spent: $5.02 used, calls in flight included. "
        "It resets at 2026-07-01 00:00:00 UTC, in 29 d 12 h."
    )
    assert (refused.value.retry_after, refused.value.should_retry) == (29.5 * 86_400, False)


def test_a_total_budget_has_no_reset() -> None:
    rule = limit("cost", 0, "total")
    with pytest.raises(BudgetExceeded) as refused:
        reserve(seeded(rule), call(rule))
    assert refused.value.retry_after is None
    assert "does not reset by itself" in refused.value.message


def test_a_plain_budget_admits_while_anything_is_left() -> None:
    rule = limit("cost", DOLLAR // 100)
    store = seeded(rule)
    reservation = reserve(store, call(rule))
    assert used(store, rule) == DOLLAR // 10
    settle(store, reservation, cost=DOLLAR // 100 - 1)
    settle(store, reserve(store, call(rule)), cost=1)
    with pytest.raises(BudgetExceeded):
        reserve(store, call(rule))


def test_a_strict_budget_sets_the_worst_case_aside() -> None:
    rule = limit("cost", 2 * DOLLAR, strict=True)
    store = seeded(rule)
    reserve(store, call(rule))
    settle(store, reserve(store, call(rule)), cost=DOLLAR // 2)
    with pytest.raises(BudgetExceeded, match=r"has \$0\.50 left, and this call could use up to \$1\.00"):
        reserve(store, call(rule))


def test_a_strict_budget_refuses_what_has_no_bound_and_names_the_field() -> None:
    rule = limit("cost", 2 * DOLLAR, strict=True)
    with pytest.raises(InvalidRequest, match=r"^max_tokens: this API key has a strict cost limit"):
        reserve(seeded(rule), call(rule), structs.replace(DEMAND, unbounded="max_tokens"))


def test_a_plain_budget_admits_what_has_no_bound() -> None:
    rule = limit("cost", 2 * DOLLAR)
    assert reserve(seeded(rule), call(rule), structs.replace(DEMAND, unbounded="max_tokens")).holds


def test_all_limits_are_taken_or_none() -> None:
    first, second = limit("requests", 5), limit("concurrency", 1, "", id=2)
    store = seeded(first)
    reserve(store, call(first, second))
    with pytest.raises(LimitExceeded, match="Too many calls at a time: this API key may have 1 in flight"):
        reserve(store, call(first, second))
    assert used(store, first) == 1


def test_a_limit_for_some_models_leaves_the_others_alone() -> None:
    rule = limit("requests", 0, models="claude-opus-*")
    store = seeded(rule)
    assert reserve(store, call(rule, model="claude-haiku-4-5")).holds == ()
    with pytest.raises(LimitExceeded, match=r"for models like claude-opus-\*"):
        reserve(store, call(rule))


def test_an_unmetered_endpoint_passes_a_spent_budget_and_counts_as_a_request() -> None:
    budget, requests = limit("cost", 0), limit("requests", 1, id=2)
    store = seeded(budget, requests)
    counting = call(budget, requests, metered=False)
    settle(store, async_to_sync(admission.reserve)(store, counting, never, now=NOON))
    assert used(store, requests) == 1


def test_settling_twice_counts_once() -> None:
    rule = limit("tokens", 10_000)
    store = seeded(rule)
    reservation = reserve(store, call(rule))
    assert used(store, rule) == 100
    settle(store, reservation, tokens=42)
    settle(store, reservation, tokens=42)
    assert used(store, rule) == 42


def test_a_call_settles_into_the_period_that_admitted_it() -> None:
    rule = limit("cost", DOLLAR, "hour")
    store = seeded(rule)
    reservation = reserve(store, call(rule, at=NOON + 3599))
    settle(store, reservation, cost=7, at=NOON + 3700)
    assert (used(store, rule, NOON + 3599), used(store, rule, NOON + 3700)) == (7, 0)


def test_a_released_call_counts_as_a_request_unless_it_was_refused() -> None:
    requests, cost = limit("requests", 9), limit("cost", DOLLAR, id=2)
    store = seeded(requests, cost)
    for counts in (True, False):
        reservation = reserve(store, call(requests, cost))
        async_to_sync(admission.release)(store, reservation, now=NOON, counted=counts)
    assert (used(store, requests), used(store, cost)) == (1, 0)


def test_what_recovery_books_replaces_what_the_dead_call_held() -> None:
    rule = limit("cost", 10 * DOLLAR, strict=True)
    store = seeded(rule)
    made = call(rule)
    holds = reserve(store, made).holds
    record = Record(id=made.id, created_at=made.created_at, cost_nanos=5, held_nanos=admission.strict_cost(holds))
    for _ in range(2):
        async_to_sync(admission.settle_recovered)(store, record, holds, now=NOON + 60)
    assert used(store, rule) == DOLLAR + 5


def test_a_plain_budget_is_overrun_at_most_by_what_was_in_flight_when_it_was_passed() -> None:
    rule = limit("cost", 10)
    store, cheap = seeded(rule), Demand(tokens=0, cost=1, worst_tokens=0, worst_cost=99)
    in_flight = [reserve(store, call(rule), cheap) for _ in range(10)]  # together they are estimated to use it up
    for reservation in in_flight:
        settle(store, reservation, cost=3)
        with pytest.raises(BudgetExceeded):
            reserve(store, call(rule), cheap)
    assert used(store, rule) == 30


# -- what answers tell of the limits ------------------------------------------------------------------------------

MIDNIGHT = NOON + 12 * 3600


def test_an_answer_tells_the_tightest_limit_of_each_kind_this_call_included() -> None:
    rules = (
        limit("requests", 100, id=1),
        limit("requests", 3, "hour", id=2),
        limit("tokens", 1000, id=3),
        limit("cost", DOLLAR, id=4),
        limit("concurrency", 9, "", id=5),
        limit("requests", 1, "total", id=6, models="other-*"),
    )
    reservation = reserve(seeded(*rules), call(*rules))
    assert admission.rates_of(reservation) == (
        RateLimit("tokens", 1000, 900, MIDNIGHT),
        RateLimit("requests", 3, 2, NOON + 3600),
    )


def test_a_total_never_resets_and_is_not_told() -> None:
    rule = limit("requests", 5, "total")
    assert admission.rates_of(reserve(seeded(rule), call(rule))) == ()


def test_a_refusal_tells_the_limit_that_refused() -> None:
    rule = limit("requests", 1)
    store = seeded(rule)
    reserve(store, call(rule))
    with pytest.raises(LimitExceeded) as refused:
        reserve(store, call(rule))
    assert refused.value.rates == (RateLimit("requests", 1, 0, MIDNIGHT),)
