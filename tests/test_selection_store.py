"""Selection with a store: affinity, slots, probes, and what 20 conversations over 3 accounts come to."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from accounts import health, quota, selection
from accounts.selection import Ranking, able, free, rank, take
from apikeys import admission, seeding
from apikeys.ledger_sums import Used
from relay import pipeline, settlement
from relay.call import Account, Call, Demand, LimitRule, Record
from relay.errors import NoAccountAvailable, UpstreamError, UpstreamOverloaded
from relay.state.base import Admitted, Rest, Store
from relay.state.memory import MemoryStore
from relay.state.redis_link import RedisLink
from tests import stores
from tests.account_cases import MODEL, NOW, account, call, forget, key


@pytest.fixture(autouse=True)
def _fresh_process() -> None:
    forget()


def names(ranking: Ranking) -> list[str]:
    return [item.name for item in ranking.accounts]


A, B, C = account("a"), account("b"), account("c")


def run(asked: Call, *accounts: Account, store: MemoryStore, now: float = NOW) -> Ranking:
    return async_to_sync(rank)(asked, able(asked, accounts), store=store, now=now)


def took(asked: Call, item: Account, *, store: MemoryStore, now: float, ranking: Ranking) -> bool:
    return async_to_sync(take)(asked, item, store=store, now=now, ranking=ranking) is None


def take_first(asked: Call, ranking: Ranking, *, store: MemoryStore, now: float) -> Account:
    """What the pipeline does: take the first that can be taken."""
    for item in ranking.accounts:
        if took(asked, item, store=store, now=now, ranking=ranking):
            return item
    raise AssertionError("none could be taken")


def admitted(asked: Call, accounts: Sequence[Account], *, store: MemoryStore, now: float) -> Ranking:
    """The ranking of a call whose question went along with its limits, as the pipeline asks it."""
    question = selection.question(asked, able(asked, accounts), now=now)
    seen = async_to_sync(store.admit)(asked.id, (), question, now=now, lease=90)
    assert isinstance(seen, Admitted)
    return async_to_sync(rank)(asked, able(asked, accounts), store=store, now=now, seen=seen)


def carried(asked: Call, accounts: Sequence[Account], *, store: MemoryStore, now: float) -> Account:
    taken = take_first(asked, admitted(asked, accounts, store=store, now=now), store=store, now=now)
    async_to_sync(health.succeeded)(store, taken, MODEL, now=now)
    async_to_sync(free)(asked, taken, store=store)
    return taken


THREE = (A, B, C)


def conversations(accounts: Sequence[Account], *, store: MemoryStore, turns: range) -> list[list[str]]:
    """20 conversations, turn by turn; the names of the accounts that answered each."""
    return [
        [
            carried(call(conversation=f"c{number}"), accounts, store=store, now=NOW + 20 * turn + number).name
            for turn in turns
        ]
        for number in range(20)
    ]


def test_twenty_conversations_of_ten_turns_never_switch_and_spread_evenly() -> None:
    answered = conversations(THREE, store=MemoryStore(), turns=range(10))
    assert all(len(set(turns)) == 1 for turns in answered)
    spread = Counter(turns[0] for turns in answered)
    assert len(spread) == 3 and max(spread.values()) <= 2 * min(spread.values())


def test_an_account_switched_off_costs_each_of_its_conversations_exactly_one_re_pin() -> None:
    store = MemoryStore()
    before = conversations(THREE, store=store, turns=range(5))
    without = (replace(A, active=False), B, C)
    after = conversations(without, store=store, turns=range(5, 10))
    for earlier, later in zip(before, after, strict=True):
        assert len(set(later)) == 1 and (later[0] == earlier[0]) == (earlier[0] != "a")
    assert any(earlier[0] == "a" for earlier in before)


def test_at_once_calls_spread_by_weight() -> None:
    store, light, heavy = MemoryStore(), account("light"), account("heavy", weight=3)
    taken = []
    for _ in range(40):
        asked = call()
        taken.append(take_first(asked, run(asked, light, heavy, store=store), store=store, now=NOW).name)
    assert Counter(taken) == {"heavy": 30, "light": 10}


def test_one_after_the_other_calls_spread_by_weight_too() -> None:
    store, light, heavy = MemoryStore(), account("light"), account("heavy", weight=3)
    taken = Counter(carried(call(), (light, heavy), store=store, now=NOW + second).name for second in range(400))
    assert taken == {"heavy": 300, "light": 100}


def test_equal_accounts_take_turns_in_order_of_last_use() -> None:
    store = MemoryStore()
    assert [carried(call(), THREE, store=store, now=NOW).name for _ in range(7)] == list("abcabca")


def test_an_account_that_comes_back_does_not_catch_up() -> None:
    store = MemoryStore()
    for _ in range(50):
        carried(call(), (A, B), store=store, now=NOW)
    taken = Counter(carried(call(), THREE, store=store, now=NOW).name for _ in range(30))
    assert taken == {"a": 10, "b": 10, "c": 10}


def test_affinity_is_each_keys_own_and_slides_for_an_hour() -> None:
    store, accounts = MemoryStore(), THREE
    first = carried(call(conversation="c"), accounts, store=store, now=NOW)
    other = run(call(conversation="c", of=key(number=2)), *accounts, store=store)
    assert other.pinned is None
    for minutes in (50, 100, 150):
        assert run(call(conversation="c"), *accounts, store=store, now=NOW + 60 * minutes).pinned == first.id
    assert run(call(conversation="c"), *accounts, store=store, now=NOW + 60 * 211).pinned is None


def test_two_models_of_one_conversation_do_not_move_each_other() -> None:
    store = MemoryStore()
    opus, haiku = account("opus", model_map={MODEL: MODEL}), account("haiku", model_map={"haiku": "haiku"})
    opus_too = account("opus-too", model_map={MODEL: MODEL})
    accounts = (opus, haiku, opus_too)
    first = carried(call(conversation="c"), accounts, store=store, now=NOW)
    for second in range(1, 10):
        carried(call("haiku", conversation="c"), accounts, store=store, now=NOW + second)
        assert carried(call(conversation="c"), accounts, store=store, now=NOW + second) == first


def test_a_full_account_keeps_its_conversation() -> None:
    store, one, two = MemoryStore(), account("one", slots=1, priority=1), account("two")
    first, meanwhile, later = call(conversation="c"), call(conversation="c"), call(conversation="c")
    assert take_first(first, run(first, one, two, store=store), store=store, now=NOW) is one
    assert take_first(meanwhile, run(meanwhile, one, two, store=store), store=store, now=NOW) is two
    async_to_sync(free)(first, one, store=store)
    assert names(run(later, one, two, store=store))[0] == "one"


def test_slots_are_never_overfilled_by_rankings_made_at_the_same_moment() -> None:
    store, small = MemoryStore(), account("small", slots=3)
    asked = [call() for _ in range(10)]
    rankings = [run(item, small, store=store) for item in asked]
    taken = [
        took(item, small, store=store, now=NOW, ranking=ranking) for item, ranking in zip(asked, rankings, strict=True)
    ]
    assert taken.count(True) == 3


def failing(rest: str = "529", status: int = 529) -> UpstreamError:
    return UpstreamOverloaded("busy", status=status, rest=rest)


def test_twenty_overloads_of_the_only_account_and_the_next_call_succeeds_at_once() -> None:
    store = MemoryStore()
    for second in range(20):
        asked = call()
        ranking = run(asked, A, store=store, now=NOW + second)
        taken = take_first(asked, ranking, store=store, now=NOW + second)
        async_to_sync(health.failed)(store, taken, MODEL, failing(), last=True, now=NOW + second)
        async_to_sync(free)(asked, taken, store=store)
    assert async_to_sync(store.rests)(now=NOW + 20) == {}
    assert carried(call(), (A,), store=store, now=NOW + 20) is A


def test_after_a_rest_one_call_goes_first_and_its_answer_opens_the_account() -> None:
    store = MemoryStore()
    async_to_sync(health.failed)(store, A, MODEL, failing(), last=False, now=NOW)
    later = NOW + 601
    probe, other, after = call(), call(), call()
    rankings = [run(item, A, B, store=store, now=later) for item in (probe, other)]
    assert dict(rankings[0].reasons)["a"] == "priority 50, first call after its rest"
    assert took(probe, A, store=store, now=later, ranking=rankings[0])
    assert not took(other, A, store=store, now=later, ranking=rankings[1])
    assert async_to_sync(stores.in_flight)(store, [A.id], now=later) == {A.id: 1}
    async_to_sync(health.answered)(store, A, MODEL, now=later)
    assert run(after, A, B, store=store, now=later).recovering == {}


@pytest.mark.parametrize(
    ("cause", "model", "both_go"), [("429", MODEL, True), ("529", MODEL, True), ("credential", "", False)]
)
def test_where_no_other_is_left_nobody_waits_for_the_probe_but_for_a_rejected_credentials(
    cause: str, model: str, both_go: bool
) -> None:
    store = MemoryStore()
    async_to_sync(store.rest)(Rest(A.id, model, NOW, cause, named=cause == "429"), now=NOW - 60)
    asked = [call(), call()]
    rankings = [run(item, A, store=store) for item in asked]
    went = [took(item, A, store=store, now=NOW, ranking=ranking) for item, ranking in zip(asked, rankings, strict=True)]
    assert went == [True, both_go]


def test_a_probe_that_fails_rests_the_account_again() -> None:
    store = MemoryStore()
    for _ in range(3):
        async_to_sync(health.failed)(store, A, MODEL, failing("5xx", 500), last=False, now=NOW)
    later, probe = NOW + 301, call()
    ranking = run(probe, A, B, store=store, now=later)
    assert took(probe, A, store=store, now=later, ranking=ranking)
    async_to_sync(health.failed)(store, A, MODEL, failing("5xx", 500), last=False, now=later)
    assert names(run(call(), A, B, store=store, now=later)) == ["b"]


def test_a_probe_that_died_leaves_its_place_to_another() -> None:
    store = MemoryStore()
    async_to_sync(health.failed)(store, A, MODEL, failing(), last=False, now=NOW)
    later, lost, next_one = NOW + 601, call(), call()
    assert took(lost, A, store=store, now=later, ranking=run(lost, A, B, store=store, now=later))
    later += selection.PROBE_LEASE + 1
    assert took(next_one, A, store=store, now=later, ranking=run(next_one, A, B, store=store, now=later))


def test_the_last_one_left_is_tried_without_waiting_for_a_probe() -> None:
    store = MemoryStore()
    async_to_sync(health.failed)(store, A, MODEL, failing(), last=False, now=NOW)
    asked = [call(), call()]
    for item in asked:
        ranking = run(item, A, store=store, now=NOW + 1)
        assert took(item, A, store=store, now=NOW + 1, ranking=ranking)
    async_to_sync(health.succeeded)(store, A, MODEL, now=NOW + 2)
    assert async_to_sync(store.rests)(now=NOW + 2) == {}


def test_a_stored_response_and_encrypted_reasoning_tie() -> None:
    store = MemoryStore()
    async_to_sync(store.set_response_owner)("resp_1", 1, B.id, now=NOW)
    assert names(run(call(envelope={"previous_response_id": "resp_1"}), A, B, C, store=store)) == ["b"]
    async_to_sync(store.set_affinity)(1, f"c1/{MODEL}", C.id, now=NOW, ttl=60)
    assert names(run(call(conversation="c1", envelope={"tied": True}), A, B, C, store=store)) == ["c"]


def test_a_tie_to_an_account_that_is_gone_binds_nobody() -> None:
    store = MemoryStore()
    async_to_sync(store.set_response_owner)("resp_1", 1, 999_999, now=NOW)
    assert len(names(run(call(envelope={"previous_response_id": "resp_1"}), A, B, store=store))) == 2


# -- two processes, one state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", stores.KINDS)
def test_conversations_and_rests_are_the_same_wherever_a_call_comes_in(kind: str) -> None:
    async def story(store: Store) -> None:
        here, there = store, store if kind == "memory" else stores.make(kind)
        try:
            pinned: dict[str, str] = {}
            for number in range(40):
                asked = call(conversation=f"c{number % 10}")
                side = (here, there)[number % 3 == 0]
                ranking = await rank(asked, able(asked, THREE), store=side, now=NOW + number)
                out = await take(asked, ranking.accounts[0], store=side, now=NOW + number, ranking=ranking)
                assert out is None
                name = ranking.accounts[0].name
                assert pinned.setdefault(asked.envelope.affinity, name) == name
                await free(asked, ranking.accounts[0], store=side)
            assert len(set(pinned.values())) == 3
            await health.failed(here, A, MODEL, failing(), last=False, now=NOW)
            fresh = call()
            told = await rank(fresh, able(fresh, THREE), store=there, now=NOW + 1)
            assert dict(told.reasons)["a"] == "this model rests 599 s after 529"
        finally:
            if there is not here:
                await there.close()

    stores.play(kind, story)


# -- limits and the first account in one step -----------------------------------------------------------------------


def test_an_account_taken_too_soon_is_given_back() -> None:
    store, gone = MemoryStore(), replace(A, expires_at=NOW, priority=1)
    asked = call(conversation="c1")
    ranking = admitted(asked, (gone, B), store=store, now=NOW)
    assert (names(ranking), ranking.taken) == (["b"], 0)
    assert take_first(asked, ranking, store=store, now=NOW) is B
    assert async_to_sync(stores.in_flight)(store, [A.id, B.id], now=NOW) == {A.id: 0, B.id: 1}
    assert async_to_sync(stores.pinned)(store, 1, f"c1/{MODEL}", now=NOW, ttl=60) == B.id


def test_an_account_taken_for_nothing_is_given_back() -> None:
    store, gone = MemoryStore(), replace(A, expires_at=NOW)
    with pytest.raises(NoAccountAvailable):
        admitted(call(), (gone,), store=store, now=NOW)
    assert async_to_sync(stores.in_flight)(store, [A.id], now=NOW) == {A.id: 0}


@pytest.mark.parametrize(("accounts", "trips"), [((A,), [1, 1, 1]), (THREE, [2, 1, 1])])
def test_a_conversation_costs_one_round_trip_before_the_upstream_and_one_after_it(
    accounts: tuple[Account, ...], trips: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    guarded = RedisLink._guarded

    async def counted(link: RedisLink, run: Any) -> Any:
        made.append("trip")
        return await guarded(link, run)

    async def story(store: Store) -> None:
        limits = tuple(
            LimitRule(id=number, scope="key", owner_id=1, metric="requests", amount=9, per=per)
            for number, per in enumerate(("minute", "hour", "day"))
        )
        monkeypatch.setattr(seeding, "read", lambda limits, *, at, cut: {each.limit: Used(0, 0, 0) for each in limits})
        monkeypatch.setattr(seeding, "identity", lambda: "database")
        await seeding.seed(store, limits, now=NOW - 60)
        monkeypatch.setattr(RedisLink, "_guarded", counted)
        before, after = [], []
        for talk in ("warm up", "warm up", "talk", "talk", "talk"):  # Redis gets each script's text once
            asked = call(of=replace(key(), limits=limits), conversation=talk)
            made.clear()
            held = await admission.reserve(
                store, asked, never, now=NOW, question=selection.question(asked, able(asked, accounts), now=NOW)
            )
            ranking = await rank(asked, able(asked, accounts), store=store, now=NOW, seen=held.seen)
            out = await take(asked, ranking.accounts[0], store=store, now=NOW, ranking=ranking)
            assert out is None
            before.append(len(made))
            made.clear()
            record = Record(id=asked.id, created_at=NOW, status="ok", duration_ms=20)
            await store.settle(admission.settlement_of(held, record, seats=(ranking.accounts[0].id,)))
            after.append(len(made))
        assert (before[2:], after[2:]) == (trips, [1, 1, 1])

    def never() -> Demand:
        raise AssertionError("no limit on tokens or cost")

    stores.play("redis", story)


@pytest.mark.parametrize("with_its_limits", [True, False])
def test_a_call_that_is_cut_off_gives_its_slot_back(with_its_limits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cut_off(*given: Any, **named: Any) -> bool:
        raise asyncio.CancelledError

    async def story() -> None:
        store, asked, one = MemoryStore(), call(), account("one", slots=1)
        question = selection.question(asked, able(asked, (one,)), now=NOW, take=with_its_limits)
        reservation = await admission.reserve(store, asked, quota.no_estimate, now=NOW, question=question)
        relay = SimpleNamespace(store=store, max_attempts=3, live=SimpleNamespace(note=lambda record: None))
        record = Record(id=asked.id, created_at=NOW)
        flight: Any = SimpleNamespace(run=relay, call=asked, seat=None, reservation=reservation, record=record)
        if not with_its_limits:
            ranking = await rank(asked, able(asked, (one,)), store=store, now=NOW, seen=reservation.seen)
            with pytest.raises(asyncio.CancelledError):
                await pipeline.fly(flight, ranking)
        assert await stores.in_flight(store, [one.id], now=NOW) == {one.id: 1}
        await settlement.settle_limits(flight)
        assert await stores.in_flight(store, [one.id], now=NOW) == {one.id: 0}

    monkeypatch.setattr(quota, "reserve", cut_off)
    monkeypatch.setattr(time, "time", lambda: NOW)
    async_to_sync(story)()
