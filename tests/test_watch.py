"""relay/flight.py `Watch` on the loop that serves: of a delay near zero uvloop makes a handle that tells no time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from relay.flight import Watch


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("total", [0.0, 0.0004])
def test_a_wait_that_begins_when_the_time_is_over_can_be_followed_by_another(
    run: Callable[..., Any], total: float
) -> None:
    async def story() -> None:
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(task, total=total)
        watch.expect("token", 10)  # its account's token is at hand
        watch.expect("first_byte", 10)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(1)
        assert getattr(watch.take(), "reason", "") == "total_timeout"
        watch.stop()

    run(story())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_while_the_client_lets_it_wait_an_upstream_is_not_silent_and_afterwards_it_may_be(
    run: Callable[..., Any],
) -> None:
    async def story() -> None:
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(task, total=10)
        watch.expect("idle", 0.1)
        watch.hold(True)
        await asyncio.sleep(0.3)
        watch.hold(False)
        await asyncio.sleep(0.05)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(1)
        assert getattr(watch.take(), "reason", "") == "idle_timeout"
        watch.hold(True)
        watch.stop()
        watch.hold(False)

    run(story())


def test_a_call_whose_client_lets_it_wait_still_ends_with_its_total_time() -> None:
    async def story() -> None:
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(task, total=0.1)
        watch.expect("idle", 0.05)
        watch.hold(True)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(1)
        assert getattr(watch.take(), "reason", "") == "total_timeout"
        watch.stop()

    asyncio.run(story())
