"""Redis is configured and away: refused or admitted by the setting, counted later, never silently unlimited."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError

from relay.state import Hold, Rest, Seed, Settlement, StoreAway, make_store, redis_link, scripts
from relay.state.base import Question, Seat
from relay.state.memory import MemoryStore
from relay.state.redis import RedisStore
from tests.stores import empty_redis, in_flight, make, pinned, redis_url

NOW = 1_780_315_200.0
HOLD = Hold("1.aa:0", "cost", 5, 10, NOW + 3600)
CALLS = Hold("9.ff", "concurrency", 1, 3)


class Outage:
    """Every connection fails while it lasts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        monkeypatch.setattr(redis_link, "QUIET", 0.0)
        connect = BlockingConnectionPool.get_connection

        async def get_connection(pool: BlockingConnectionPool, *args: object, **options: object) -> object:
            if self.on:
                raise RedisConnectionError("connection refused")
            return await connect(pool, *args, **options)  # type: ignore[no-untyped-call]

        monkeypatch.setattr(BlockingConnectionPool, "get_connection", get_connection)


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    redis_url()
    return Outage(monkeypatch)


@contextlib.asynccontextmanager
async def seeded(*, fail_open: bool = False) -> AsyncIterator[RedisStore]:
    empty_redis()
    store = RedisStore(redis_url(), fail_open=fail_open, rests_for=0.0)
    await store.seed([Seed("1.aa", NOW - 60, {})], generation="first")
    try:
        yield store
    finally:
        await store.close()


async def used(store: RedisStore) -> int:
    return (await store.used([HOLD.counter], now=NOW))[HOLD.counter]


def test_closed_refuses_with_a_wait_and_says_so_once(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with seeded() as store:
            outage.on = True
            for owner in ("a", "b"):
                with pytest.raises(StoreAway) as refused:
                    await store.reserve(owner, [HOLD], now=NOW, lease=90)
                assert (refused.value.status, refused.value.retry_after) == (503, 5)
            outage.on = False
            assert await store.reserve("c", [HOLD], now=NOW, lease=90) == (5,)

    with caplog.at_level(logging.INFO, "relay.state.redis_link"):
        async_to_sync(story)()
    assert [record.getMessage() for record in caplog.records] == [
        "Redis is away: ConnectionError",
        "Redis answers again",
    ]


def test_open_admits_and_counts_once_redis_is_back(outage: Outage) -> None:
    async def story() -> None:
        async with seeded(fail_open=True) as store:
            outage.on = True
            assert await store.reserve("a", [HOLD, CALLS], now=NOW, lease=90) == ()
            await store.settle(Settlement("a", (HOLD, CALLS), {HOLD.counter: 7}, NOW + 1, NOW))
            outage.on = False
            await store.renew([], now=NOW + 5, lease=90)
            await store.renew([], now=NOW + 9, lease=90)
            assert await used(store) == 7

    async_to_sync(story)()


def test_a_call_that_ends_while_redis_is_away_is_settled_later(outage: Outage) -> None:
    async def story() -> None:
        async with seeded() as store:
            await store.reserve("a", [HOLD], now=NOW, lease=90)
            outage.on = True
            await store.settle(Settlement("a", (HOLD,), {HOLD.counter: 2}, NOW + 1, NOW))
            outage.on = False
            assert await used(store) == 5
            await store.renew([], now=NOW + 5, lease=90)
            assert await used(store) == 2

    async_to_sync(story)()


def test_a_reservation_whose_answer_was_lost_is_given_back(outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis took it, and the answer never came: refused, and nothing stays reserved."""

    async def story() -> None:
        async with seeded() as store:
            run = store._link.script

            async def lose_the_answer(text: str, keys: list[str], *args: str | int | float) -> object:
                await run(text, keys, *args)
                raise redis_link.away()

            monkeypatch.setattr(store._link, "script", lose_the_answer)
            with pytest.raises(StoreAway):
                await store.reserve("a", [HOLD], now=NOW, lease=90)
            monkeypatch.setattr(store._link, "script", run)
            assert await used(store) == 5
            await store.renew([], now=NOW + 5, lease=90)
            assert await used(store) == 0

    async_to_sync(story)()


def test_a_call_that_ends_while_leases_are_prolonged_keeps_none(
    outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with seeded() as store:
            pipeline = store._link.pipeline

            async def overtaken(commands: list[tuple[str | int | float, ...]]) -> list[Any]:
                if commands and commands[0][0] == "ZADD":
                    await store.settle(Settlement("a", (CALLS,), {}, NOW, NOW, (5,)))
                return await pipeline(commands)

            await store.reserve("a", [CALLS], now=NOW, lease=90)
            await store.take_slot(5, "a", slots=1, now=NOW, lease=90)
            monkeypatch.setattr(store._link, "pipeline", overtaken)
            await store.renew(["a"], now=NOW, lease=90)
            assert await in_flight(store, [5], now=NOW) == {5: 0}
            assert await store.used([CALLS.counter], now=NOW) == {CALLS.counter: 0}

    async_to_sync(story)()


def test_a_call_cancelled_while_it_waits_for_its_limits_holds_nothing(outage: Outage) -> None:
    async def story() -> None:
        async with seeded() as store:
            await store.reserve("warm", [CALLS], now=NOW, lease=90)
            for turns in range(1, 12):
                task = asyncio.create_task(store.reserve(f"call {turns}", [HOLD], now=NOW, lease=90))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if task.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await task
                else:
                    await store.settle(Settlement(f"call {turns}", (HOLD,), {}, NOW))
            await store.renew([], now=NOW + 5, lease=90)
            assert await used(store) == 0

    async_to_sync(story)()


def test_advice_goes_on_from_the_process_own_memory(outage: Outage) -> None:
    async def story() -> None:
        async with seeded() as store:
            rest = Rest(5, "m", NOW + 60, "529")
            await store.rest(rest, now=NOW)
            await store.set_affinity(1, "known to redis", 7, now=NOW, ttl=60)
            outage.on = True
            assert await store.rests(now=NOW) == {(5, "m"): rest}
            await store.set_affinity(1, "talk", 8, now=NOW, ttl=60)
            assert await pinned(store, 1, "talk", now=NOW, ttl=60) == 8
            assert await pinned(store, 1, "known to redis", now=NOW, ttl=60) is None
            assert [await store.count_failure(5, "m", now=NOW) for _ in range(2)] == [1, 2]
            assert not await store.take_probe(5, "m", "a", now=NOW, lease=30)
            assert await in_flight(store, [5], now=NOW) == {5: 0}
            await store.clear_rest(5)
            await store.clear_failures(5, "m")
            assert await store.rests(now=NOW) == {}
            await store.set_response_owner("resp_1", 1, 7, now=NOW)
            assert await store.response_owner("resp_1", now=NOW) == (1, 7)
            assert await store.response_owner("resp_2", now=NOW) is None
            outage.on = False

    async_to_sync(story)()


@pytest.mark.parametrize("fail_open", [False, True])
def test_slots_follow_the_setting_too(outage: Outage, fail_open: bool) -> None:
    async def story() -> None:
        async with seeded(fail_open=fail_open) as store:
            outage.on = True
            assert await store.take_slot(5, "a", slots=0, now=NOW, lease=90)
            if fail_open:
                assert await store.take_slot(5, "a", slots=1, now=NOW, lease=90)
            else:
                with pytest.raises(StoreAway):
                    await store.take_slot(5, "a", slots=1, now=NOW, lease=90)
            await store.free_slot(5, "a")
            outage.on = False

    async_to_sync(story)()


def test_an_outage_costs_no_call_a_timeout_of_its_own(outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "QUIET", 60.0)

    async def story() -> None:
        store = RedisStore(redis_url())
        outage.on = True
        with pytest.raises(StoreAway):
            await store.used([HOLD.counter], now=NOW)
        outage.on = False
        with pytest.raises(StoreAway):
            await store.used([HOLD.counter], now=NOW)
        await store.close()

    async_to_sync(story)()


def test_a_call_that_ends_while_it_is_put_back_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis has lost its keys: one call ends before it is put back, one meanwhile."""
    redis_url()
    holds = (HOLD, Hold("9.ff", "concurrency", 1, 3))

    async def story() -> None:
        async with seeded() as store:
            for owner in "ab":
                await store.reserve(owner, holds, now=NOW, lease=90)
            script = store._link.script

            async def ending(text: str, keys: list[str], *args: Any) -> Any:
                if text is scripts.RESTORE and args[1] == "a":
                    for owner in "ab":
                        await store.settle(Settlement(owner, holds, {HOLD.counter: 10}, NOW + 5, NOW))
                return await script(text, keys, *args)

            monkeypatch.setattr(store._link, "script", ending)
            empty_redis()
            other = make("redis")
            await other.seed([Seed(HOLD.limit, NOW + 1, {HOLD.counter: (0, 0.0)})], generation="anew")
            await other.close()
            await store.renew(["a", "b"], now=NOW + 5, lease=90)
            assert await store.stand([HOLD.counter], now=NOW + 5) == ({HOLD.counter: 20}, {HOLD.counter: 0})
            assert await store.used(["9.ff"], now=NOW + 5) == {"9.ff": 0}

    async_to_sync(story)()


def test_a_correction_that_is_sent_again_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    redis_url()

    async def story() -> None:
        async with seeded() as store:
            await store.reserve("a", [HOLD], now=NOW, lease=90)
            await store.adjust({HOLD.counter: 0}, now=NOW)
            client, lost = store._link.client(), list[Any]()
            execute = client.execute_command

            async def lossy(*parts: Any) -> Any:
                answer = await execute(*parts)  # type: ignore[no-untyped-call]
                if not lost:
                    lost.append(answer)
                    raise RedisConnectionError("Connection closed by server.")
                return answer

            monkeypatch.setattr(client, "execute_command", lossy)
            await store.adjust({HOLD.counter: 50}, now=NOW)
            assert await store.used([HOLD.counter], now=NOW) == {HOLD.counter: 55}

    async_to_sync(story)()


def test_scripts_that_redis_forgot_are_sent_again(outage: Outage) -> None:
    async def story() -> None:
        async with seeded() as store:
            await store._link.command("SCRIPT", "FLUSH")
            assert await store.reserve("a", [HOLD], now=NOW, lease=90) == (5,)

    async_to_sync(story)()


def test_the_setting_chooses_the_store(settings: pytest.FixtureRequest) -> None:
    assert isinstance(make_store(""), MemoryStore)
    for word, fail_open in (("closed", False), ("open", True), ("opne", False)):
        settings.RELAY_LIMITS_FAIL = word  # type: ignore[attr-defined]
        store = make_store("redis://127.0.0.1:1/0")
        assert isinstance(store, RedisStore) and store._fail_open is fail_open


def test_two_processes_see_each_others_rests() -> None:
    async def story() -> None:
        async with seeded() as store:
            other = make("redis")
            await store.rest(Rest(5, "m", NOW + 60, "529"), now=NOW)
            assert set(await other.rests(now=NOW)) == {(5, "m")}
            await other.clear_rest(5)
            assert await store.rests(now=NOW) == {}
            await other.close()

    async_to_sync(story)()


def test_a_rest_shows_at_once_whatever_was_asked_before_it_and_answered_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call's question that was on its way meanwhile wiped it from this process's copy for a quarter of a second."""
    redis_url()
    rest = Rest(1, "m", NOW + 60, "503")
    question = Question(seats=(Seat(1, "m"),))

    async def story(*, copied: bool) -> list[tuple[int, str]]:
        empty_redis()
        store, written = RedisStore(redis_url()), asyncio.Event()
        script = store._link.script

        async def late(text: str, *args: Any) -> Any:
            answer = await script(text, *args)
            if text is scripts.ADMIT:
                await written.wait()
            return answer

        monkeypatch.setattr(store._link, "script", late)
        if copied:
            await store.rests(now=NOW)
        asking = asyncio.ensure_future(store.admit("o", (), question, now=NOW, lease=60))
        await asyncio.sleep(0.05)
        await store.rest(rest, now=NOW)
        written.set()
        await asking
        known = list(await store.rests(now=NOW))
        await store.close()
        return known

    for copied in (False, True):
        assert async_to_sync(story)(copied=copied) == [(1, "m")]
