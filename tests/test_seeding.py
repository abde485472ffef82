"""Counters come from the ledger: when a store is new, when it lost them, when a limit is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

from apikeys import admission, seeding
from apikeys.authentication import KEYS, KeyRing
from apikeys.ledger_sums import TOKEN_COLUMNS, ledger_sums
from apikeys.rules import counted_one
from relay import metering
from relay.call import (
    Call,
    Demand,
    Endpoint,
    Envelope,
    Key,
    LimitRule,
    Outcome,
    Quantity,
    Record,
    Usage,
    UsageSource,
    new_call_id,
)
from relay.errors import BudgetExceeded
from relay.models import UsageRecord
from relay.pricing import PriceBook
from relay.rows import FIELDS, row_of
from relay.state import Seed, Store, StoreAway
from relay.state.memory import MemoryStore
from tests.stores import KINDS, empty_redis, make, play

NOON = 1_780_315_200.0  # 2026-06-01 12:00:00 UTC, a Monday
DAY, DOLLAR = 86_400.0, 10**9
KEY = Key(id=7, name="ada", public_id="p", digest=b"d", team_id=3)
DEMAND = Demand(tokens=10, cost=1000, worst_tokens=100, worst_cost=5000)
SPENT = "The budget of"

pytestmark = pytest.mark.django_db


def rule(metric: str = "cost", amount: int = DOLLAR, **fields: Any) -> LimitRule:
    usual: dict[str, Any] = {"id": 1, "scope": "key", "owner_id": 7, "per": "day"}
    return LimitRule(metric=metric, amount=amount, **usual | fields)


def record(at: float = NOON - 3600, **fields: Any) -> UsageRecord:
    usual: dict[str, Any] = {
        "key_id": 7,
        "team_id": 3,
        "account_id": 5,
        "requested_model": "claude-opus-4-5",
        "status": "ok",
        "usage_source": "provider",
        "duration_ms": 1000,
    }
    created = datetime.fromtimestamp(at, UTC)
    return UsageRecord.objects.create(id=new_call_id(at), created_at=created, **usual | fields)


def call(*rules: LimitRule, at: float = NOON) -> Call:
    return Call(
        id=new_call_id(at),
        created_at=at,
        key=replace(KEY, limits=rules),
        endpoint=Endpoint("messages", "anthropic"),
        envelope=Envelope(model="claude-opus-4-5"),
        method="POST",
        path="/v1/messages",
        query="",
        headers=(),
        body=b"{}",
    )


def sums(*rules: LimitRule, at: float = NOON, cut: float = NOON) -> list[int]:
    limits = [counted_one(item) for item in rules]
    found = ledger_sums(limits, at=at, cut=cut)
    return [found[limit.limit].amount for limit in limits]


def test_the_ledger_and_a_settlement_count_the_same_tokens_whatever_meters_them() -> None:
    usage = Usage(
        input_tokens=100,
        cache_read_input_tokens=20,
        cache_creation_5m_input_tokens=3,
        cache_creation_1h_input_tokens=4,
        output_tokens=50,
        reasoning_tokens=30,
        extra=(
            Quantity("cache_creation_30m_input_tokens", 1000),
            Quantity("cache_creation_12h_input_tokens", 2000),
            Quantity("audio_input_tokens", 10_000),
            Quantity("web_searches", 7),
            Quantity("image_input_tokens", 5, within="input_tokens"),
            Quantity("input_tokens", 100_000, "advisor", run=1),
            Quantity("output_tokens", 200_000, "advisor", run=1),
        ),
    )
    booked = Record(id=new_call_id(NOON - 60), created_at=NOON - 60, key_id=7, status="ok", duration_ms=1)
    metering.book(booked, Outcome(usage, UsageSource.PROVIDER), prices=PriceBook(), provider="openai", now=NOON)
    assert admission.tokens_of(booked) == 313_177
    row = dict(zip(FIELDS, row_of(booked), strict=True))
    assert row["extra_tokens"] == 313_000
    record(at=NOON - 60, **{name: row[name] for name in TOKEN_COLUMNS})
    assert sums(rule("tokens")) == [313_177]


async def admit(store: Store, *rules: LimitRule, at: float = NOON) -> admission.Reservation:
    return await admission.reserve(store, call(*rules, at=at), lambda: DEMAND, now=at)


async def stands(store: Store, limit: LimitRule, at: float = NOON) -> int:
    name = counted_one(limit).counter(at)[0]
    return (await store.used([name], now=at))[name]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def ring(monkeypatch: pytest.MonkeyPatch) -> Callable[..., KeyRing]:
    monkeypatch.setattr(seeding, "SHIPPED_WITHIN", 0.0)
    monkeypatch.setattr(KEYS, "current", KeyRing())

    def has(*keys: Key) -> KeyRing:
        KEYS.current = KeyRing(by_id={key.id: key for key in keys})
        return KEYS.current

    return has


def test_each_metric_is_summed_for_its_owner() -> None:
    record(
        input_tokens=10, cache_read_input_tokens=20, cache_creation_1h_input_tokens=5, output_tokens=7, cost_nanos=90
    )
    record(cost_nanos=9, held_nanos=1, key_id=8)
    rules = [rule("cost"), rule("tokens", id=2), rule("requests", id=3)]
    rules += [replace(item, id=item.id + 10, scope="team", owner_id=3) for item in rules]
    rules += [replace(item, id=item.id + 20, scope="account", owner_id=5) for item in rules[:3]]
    assert sums(*rules) == [90, 42, 1, 100, 42, 2, 100, 42, 2]


def test_models_that_a_limit_does_not_count_are_left_out() -> None:
    record(cost_nanos=1)
    record(cost_nanos=10, requested_model="claude-haiku-4-5")
    assert sums(rule(), rule(id=2, models="claude-opus-*"), rule(id=3, models="gemini-*")) == [11, 1, 0]


def test_refused_calls_count_nowhere() -> None:
    record(status="refused")
    assert sums(rule("requests")) == [0]


def test_a_record_on_the_border_belongs_to_one_period() -> None:
    midnight = NOON + DAY / 2
    record(midnight - 0.001, cost_nanos=1)
    record(midnight, cost_nanos=10)
    assert sums(rule(), at=NOON, cut=NOON + 2 * DAY) == [1]
    assert sums(rule(), at=midnight, cut=NOON + 2 * DAY) == [10]


def test_periods_that_begin_together_end_on_their_own() -> None:
    """The ledger is read when the minute is over, the hour is not."""
    record(NOON + 60.1, cost_nanos=10, duration_ms=200)
    rules = rule(per="minute"), rule(id=2, per="hour")
    assert sums(*rules, at=NOON + 59.9, cut=NOON + 60.6) == [0, 10]


def test_calls_that_ended_at_the_cut_or_later_are_left_to_settle() -> None:
    record(NOON - 100, duration_ms=99_999, cost_nanos=1)
    record(NOON - 100, duration_ms=100_000, cost_nanos=10)
    record(NOON - 100, duration_ms=None, cost_nanos=100)
    record(NOON - 7 * 3600, duration_ms=3_000_000, cost_nanos=1000)
    record(NOON - 0.877, duration_ms=876, cost_nanos=10_000)
    record(NOON - 0.877, duration_ms=877, cost_nanos=100_000)
    assert sums(rule()) == [11_101]


def test_all_limits_of_one_kind_of_owner_take_one_query() -> None:
    rules = [rule(id=number, owner_id=number) for number in range(1, 700)]
    record(key_id=650, cost_nanos=3)
    with CaptureQueriesContext(connection) as queries:
        found = sums(*rules)
    assert (len(queries), sum(found), found[649]) == (1, 3, 3)


def test_a_new_store_knows_what_the_ledger_knows_before_it_admits(kind: str) -> None:
    record(cost_nanos=DOLLAR)

    async def story(store: Store) -> None:
        with pytest.raises(BudgetExceeded, match=SPENT):
            await admit(store, rule())

    play(kind, story)


def test_a_marked_store_needs_no_database(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(store: Store) -> None:
        await admit(store, rule())
        monkeypatch.setattr(seeding, "read", database_away)
        for hours in (1, 30, 60):
            await admit(store, rule(), at=NOON + hours * 3600)
        assert await stands(store, rule(), at=NOON + 30 * 3600) == 1000

    play(kind, story)


def database_away(*limits: Any, at: float, cut: float) -> dict[str, int]:
    raise OperationalError("connection refused")


def test_without_a_database_an_unmarked_store_admits_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "read", database_away)

    async def story(store: Store) -> None:
        with pytest.raises(StoreAway) as refused:
            await admit(store, rule())
        assert (refused.value.status, refused.value.retry_after) == (503, 5)

    play(kind, story)


def test_the_start_seeds_every_key_in_bulk(ring: Callable[..., KeyRing]) -> None:
    record(cost_nanos=4)
    limits = (rule(), rule(id=2, scope="team", owner_id=3, per="month"))
    store = MemoryStore()
    async_to_sync(seeding.ensure_seeded)(store, ring(replace(KEY, limits=limits)), now=NOON)
    assert set(async_to_sync(store.seeded)()) == {counted_one(item).limit for item in limits}
    assert async_to_sync(stands)(store, limits[1]) == 4


def test_counters_of_another_database_are_made_anew(kind: str, ring: Callable[..., KeyRing]) -> None:
    """Such as the tests' own: a new database, and the same Redis as before."""
    limit = rule()
    record(cost_nanos=4)

    async def story(store: Store) -> None:
        await store.seed([Seed(counted_one(limit).limit, NOON - 60, {})], generation="another.1")
        await admission.settle(store, await admit(store, limit), tokens=0, cost=99, now=NOON)
        await seeding.ensure_seeded(store, ring(replace(KEY, limits=(limit,))), now=NOON)
        assert await stands(store, limit) == 4
        mark = await store.generation()
        await seeding.ensure_seeded(store, KEYS.current, now=NOON)
        assert await store.generation() == mark

    play(kind, story)


def test_redis_flushed_is_seeded_again_with_the_calls_in_flight(ring: Callable[..., KeyRing]) -> None:
    limit = rule(amount=10_000, strict=True)
    ring(replace(KEY, limits=(limit,)))

    async def story(store: Store) -> None:
        first = await admit(store, limit)
        empty_redis()
        await admit(store, limit)
        assert await stands(store, limit) == 2000 + 2 * 5000 - 2000
        with pytest.raises(BudgetExceeded):
            await admit(store, limit)
        for _ in range(2):
            await admission.settle(store, first, tokens=0, cost=300, now=NOON + 1)
        assert await stands(store, limit) == 5300

    play("redis", story)


def test_another_process_puts_its_calls_back_when_it_renews(ring: Callable[..., KeyRing]) -> None:
    limit = rule(amount=DOLLAR)
    ring(replace(KEY, limits=(limit,)))

    async def story(store: Store) -> None:
        other = make("redis")
        try:
            theirs = await admit(other, limit)
            empty_redis()
            await admit(store, limit)
            assert await stands(store, limit) == 1000
            await admission.renew(other, [theirs], now=NOON + 5)
            assert await stands(store, limit) == 2000
            await admission.settle(other, theirs, tokens=0, cost=7, now=NOON + 6)
            assert await stands(store, limit) == 1007
        finally:
            await other.close()

    play("redis", story)


def test_a_new_limit_knows_the_past_and_the_calls_in_flight(kind: str, ring: Callable[..., KeyRing]) -> None:
    """The call began before the limit and ends after it: it counts once, when it settles."""
    old, new = rule(), rule(id=2, per="month")

    async def story(store: Store) -> None:
        ring(replace(KEY, limits=(old,)))
        flying = await admit(store, old, at=NOON)
        ring(replace(KEY, limits=(old, new)))
        await admission.renew(store, [flying], now=NOON + 10)
        assert await stands(store, new) == 400
        for _ in range(2):
            await admission.settle(store, flying, tokens=0, cost=30, now=NOON + 20)
        assert (await stands(store, new), await stands(store, old)) == (430, 430)

    record(NOON - 3600, cost_nanos=400)
    play(kind, story)


@pytest.mark.parametrize("recovered", [False, True])
def test_a_call_counts_on_the_team_that_its_key_had_when_it_began(
    kind: str, ring: Callable[..., KeyRing], recovered: bool
) -> None:
    ours, theirs = rule(id=2, scope="team", owner_id=3), rule(id=3, scope="team", owner_id=4)

    async def story(store: Store) -> None:
        ring(replace(KEY, limits=(ours,)))
        flying = await admit(store, ours)
        ring(replace(KEY, team_id=4, limits=(theirs,)))
        await admission.renew(store, [flying], now=NOON + 10)
        if recovered:
            dead = Record(id=flying.owner, created_at=NOON, key_id=7, team_id=3, cost_nanos=30)
            await admission.settle_recovered(store, dead, flying.holds, now=NOON + 20)
        else:
            await admission.settle(store, flying, tokens=0, cost=30, now=NOON + 20)
        assert (await stands(store, ours), await stands(store, theirs)) == (30, 0)

    play(kind, story)


def test_recovery_counts_no_refused_call(kind: str, ring: Callable[..., KeyRing]) -> None:
    held, late = rule("requests", 10), rule("requests", 10, id=2, per="month")

    async def story(store: Store) -> None:
        ring(replace(KEY, limits=(held, late)))
        flying = await admit(store, held)
        await seeding.keep_up(store, KEYS.current, now=NOON + 1)
        refused = Record(id=flying.owner, created_at=NOON, key_id=7, team_id=3, status="refused", duration_ms=5000)
        await admission.settle_recovered(store, refused, flying.holds, now=NOON + 60)
        assert (await stands(store, held), await stands(store, late)) == (0, 0)

    play(kind, story)


def test_an_edited_limit_begins_from_the_ledger_and_a_new_amount_goes_on(kind: str) -> None:
    record(cost_nanos=50, output_tokens=9)

    async def story(store: Store) -> None:
        await admission.settle(store, await admit(store, rule()), tokens=1, cost=7, now=NOON + 1)
        assert await stands(store, rule(amount=5 * DOLLAR, strict=True)) == 57
        tokens = rule("tokens", 500)
        await admit(store, tokens)
        assert await stands(store, tokens) == 19

    play(kind, story)


def test_a_limit_that_is_edited_back_begins_anew(kind: str) -> None:
    """While it was another limit, calls did not count in its first counter."""
    first, second = rule(), rule(time_zone="Asia/Kathmandu")

    async def story(store: Store) -> None:
        for number, limit in enumerate((first, second, first)):
            made = await admit(store, limit, at=NOON + 10 * number)
            await sync_to_async(record)(NOON + 10 * number, cost_nanos=100, duration_ms=1000)
            await admission.settle(store, made, tokens=0, cost=100, now=NOON + 10 * number + 1)
        assert await stands(store, first, at=NOON + 30) == 300
        assert set(await store.seeded()) == {counted_one(first).limit}

    play(kind, story)


def test_a_record_that_reached_the_ledger_late_is_added_by_the_second_look(kind: str) -> None:
    async def story(store: Store) -> None:
        await admit(store, rule())

        async def renew(at: float) -> int:
            await admission.renew(store, [], now=at)
            return await stands(store, rule())

        await sync_to_async(record)(NOON - 2, cost_nanos=400)
        assert [await renew(NOON + 1), await renew(NOON + 4), await renew(NOON + 9)] == [1000, 1400, 1400]

    play(kind, story)
