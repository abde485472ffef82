"""relay/runtime.py: what happens to calls, and to its own chores, when something else fails."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError
from django.test import override_settings

from apikeys import admission
from relay import pipeline, runtime
from relay.runtime import Runtime
from tests.account_cases import call


def test_a_call_cancelled_before_its_first_step_keeps_nobody_waiting(tmp_path: Path) -> None:
    async def story() -> None:
        run = Runtime()
        flight = pipeline.launch(run, call())
        (task,) = run._calls
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(flight.reply.head(), 1)
        assert (run.flights, run._calls) == ({}, set())

    with override_settings(RELAY_DATA_DIR=tmp_path):
        async_to_sync(story)()


def test_chores_that_wait_for_the_database_say_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = asyncio.Event()

    async def away(*_: object, **__: object) -> None:
        tried.set()
        raise OperationalError("the server closed the connection")

    async def story() -> None:
        chores = asyncio.ensure_future(Runtime()._housekeeping())
        await asyncio.wait_for(tried.wait(), 5)
        await asyncio.sleep(0)
        chores.cancel()

    monkeypatch.setattr(admission, "renew", away)
    monkeypatch.setattr(runtime, "HOUSEKEEPING_SECONDS", 0.01)
    with override_settings(RELAY_DATA_DIR=tmp_path), caplog.at_level(logging.WARNING, "relay.runtime"):
        async_to_sync(story)()
    (said,) = caplog.records
    assert (said.getMessage(), said.exc_info) == (
        "Housekeeping waits for the database or Redis: OperationalError",
        None,
    )
