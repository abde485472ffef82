"""SQLite has one writer at a time: under load, with roll-ups and changes beside it, nobody is told it is locked."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable

import pytest
from django.db import connection, connections

from apikeys.models import ApiKey
from relay.models import UsageHour, UsageRecord
from relay.rollup import roll_up
from tests.harness import Installation, Server

BODY = json.dumps(
    {"model": "claude-sonnet-5-5", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi."}]}
).encode()
SECONDS = 4.0


@pytest.mark.skipif(connection.vendor != "sqlite", reason="about SQLite itself")
def test_the_relay_roll_ups_and_changes_write_at_once_and_none_is_told_that_it_is_locked(
    start_server: Callable[..., Server], installation: Installation
) -> None:
    server = start_server()
    installation.account()
    key, until, failures = installation.key(), time.monotonic() + SECONDS, list[str]()
    done = dict.fromkeys(("calls", "roll-ups", "changes"), 0)

    def repeated(name: str, work: Callable[[], None]) -> None:
        try:
            while time.monotonic() < until:
                work()
                done[name] += 1
        except Exception as error:
            failures.append(f"{name}: {error!r}")
        finally:
            connections.close_all()

    def one_call() -> None:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        client.request("POST", "/v1/messages", BODY, {"x-api-key": key, "anthropic-version": "2023-06-01"})
        response = client.getresponse()
        assert response.status == 200, response.read()
        response.read()
        client.close()

    def change() -> None:
        ApiKey.objects.update(tags={"changed": str(done["changes"])})
        time.sleep(0.005)

    works: list[tuple[str, Callable[[], object]]] = [
        *[("calls", one_call)] * 8,
        ("roll-ups", roll_up),
        ("changes", change),
    ]
    threads = [threading.Thread(target=repeated, args=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.wait_idle()
    assert failures == []
    assert "locked" not in server.log() and all(done.values()), done
    roll_up()
    assert UsageRecord.objects.count() == sum(UsageHour.objects.values_list("calls", flat=True)) >= 8
