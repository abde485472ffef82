"""Several relay processes against one budget, and processes that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync

from apikeys import admission
from apikeys.rules import counted_one
from relay.call import Demand, LimitRule
from relay.errors import BudgetExceeded
from relay.state import Seed, Store
from tests.limit_race import BUDGET, CALLS, KEY, WORST, new_call
from tests.stores import empty_redis, make, redis_url

ROOT = Path(__file__).resolve().parent.parent
NAME = counted_one(BUDGET).counter(0.0)[0]


@pytest.fixture
def url() -> str:
    """An empty Redis with a new budget."""
    empty_redis()

    async def seed(store: Store) -> None:
        await store.seed([Seed(counted_one(BUDGET).limit, time.time() - 60, {NAME: (0, 0.0)})], generation="race")
        await store.close()

    async_to_sync(seed)(make("redis"))
    return redis_url()


SCRIPT = "import django; django.setup(); import asyncio; from tests.limit_race import race; asyncio.run(race({}))"


@contextmanager
def racing(url: str, count: int, cost: int, *, hang: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A process that races; killed at the end if it still runs."""
    command = [sys.executable, "-c", SCRIPT.format(f"{url!r}, {count}, {cost}, hang={hang}")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def go(*processes: subprocess.Popen[str]) -> None:
    """Start all at once, when the slowest is ready."""
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")


def answer(process: subprocess.Popen[str]) -> tuple[int, int]:
    assert process.stdout is not None
    admitted, cost = process.stdout.readline().split()
    return int(admitted), int(cost)


def race(url: str, *, processes: int, count: int, cost: int) -> tuple[int, int]:
    """How many calls all processes together admitted, and what they cost."""
    with ExitStack() as stack:
        started = [stack.enter_context(racing(url, count, cost)) for _ in range(processes)]
        go(*started)
        answers = [answer(process) for process in started]
        assert [process.wait(60) for process in started] == [0] * processes
    return sum(admitted for admitted, _ in answers), sum(cost for _, cost in answers)


def counter(rule: LimitRule) -> int:
    name = counted_one(rule).counter(0.0)[0]

    async def ask(store: Store) -> int:
        try:
            return (await store.used([name], now=time.time()))[name]
        finally:
            await store.close()

    return async_to_sync(ask)(make("redis"))


@pytest.mark.slow
def test_four_processes_with_200_parallel_calls_each_never_overrun_a_strict_budget(url: str) -> None:
    assert race(url, processes=4, count=200, cost=WORST) == (50, 50 * WORST)
    assert counter(BUDGET) == 50 * WORST


@pytest.mark.slow
def test_cheaper_calls_make_room_and_the_counter_is_their_sum(url: str) -> None:
    admitted, cost = race(url, processes=2, count=200, cost=7)
    assert admitted >= 50
    assert counter(BUDGET) == cost


@pytest.mark.slow
def test_killed_calls_buy_no_more_calls_and_free_their_places(url: str) -> None:
    with racing(url, 50, 7, hang=True) as victim:
        go(victim)
        assert answer(victim) == (50, 350)
    assert victim.returncode == -signal.SIGKILL

    async def story(store: Store) -> None:
        later = time.time() + admission.LEASE + 1
        used = await store.used([NAME, counted_one(CALLS).limit], now=later)
        assert used == {NAME: 50 * WORST, counted_one(CALLS).limit: 0}
        with pytest.raises(BudgetExceeded):
            await admission.reserve(store, new_call(KEY), one_more, now=later)
        await store.close()

    def one_more() -> Demand:
        return Demand(tokens=1, cost=1, worst_tokens=1, worst_cost=WORST)

    async_to_sync(story)(make("redis"))
