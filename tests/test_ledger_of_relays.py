"""A relay whose database is away, or whose disk is full: what clients get meanwhile, what is booked in the end."""

from __future__ import annotations

import json
import resource
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import connection

from relay.models import Quarantine, UsageRecord
from tests.harness import Installation, Server, wait_for
from tests.test_ledger_away import changed, postgresql

BODY = json.dumps(
    {"model": "claude-sonnet-5-5", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi."}]}
).encode()


def call(server: Server, key: str) -> tuple[int, str, Any]:
    """One call; returns status, call id and the body."""
    request = urllib.request.Request(
        f"{server.url}/v1/messages",
        BODY,
        {"content-type": "application/json", "anthropic-version": "2023-06-01", "x-api-key": key},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.headers["x-request-id"], json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["x-request-id"], json.loads(error.read())


def ready(server: Server) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{server.url}/readyz", timeout=5) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def booked() -> set[str]:
    return {str(pk) for pk in UsageRecord.objects.values_list("pk", flat=True)}


def outlive(server: Server, key: str, away: Any) -> None:
    with away:
        calls = [call(server, key) for _ in range(20)]
        assert {status for status, _, _ in calls} == {200}
        status, standing = ready(server)
        assert (status, standing["status"], standing["records_waiting"]) == (200, "ok", 20)
        wait_for(lambda: ready(server)[1]["oldest_record_seconds"] > 0.5, seconds=10, what="the records' age")
    calls.append(call(server, key))
    wait_for(lambda: booked() >= {call_id for _, call_id, _ in calls}, seconds=20, what="all records")
    assert ready(server)[1]["records_waiting"] == 0
    assert UsageRecord.objects.count() == 21 and not Quarantine.objects.exists()


@contextmanager
def without_table() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE relay_rollupmark RENAME TO elsewhere")
        try:
            yield
        finally:
            cursor.execute("ALTER TABLE elsewhere RENAME TO relay_rollupmark")


def test_calls_are_served_while_the_database_takes_nothing_and_booked_after(
    start_server: Callable[..., Server], installation: Installation
) -> None:
    server = start_server()
    installation.account()
    outlive(server, installation.key(), without_table())


@postgresql
def test_calls_are_served_while_the_database_lets_nobody_in_and_booked_after(
    start_server: Callable[..., Server], installation: Installation
) -> None:
    server = start_server()
    installation.account()
    key = installation.key()
    there, back = ("ALTER DATABASE {name} ALLOW_CONNECTIONS " + word for word in ("false", "true"))
    outlive(server, key, changed(there, back))


@contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """No file of the server's can grow."""
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_refuses_calls_and_the_next_one_after_it_is_served(
    start_server: Callable[..., Server], installation: Installation, tmp_path: Path
) -> None:
    server = start_server()
    installation.account()
    key = installation.key()
    before = call(server, key)
    wait_for(lambda: booked() == {before[1]}, seconds=10, what="the first record")
    with full_disk(server):
        refused = [call(server, key) for _ in range(3)]
        assert {status for status, _, _ in refused} == {503}
        assert {body["type"] for _, _, body in refused} == {"error"}
        assert ready(server)[0] == 503
    wait_for(lambda: ready(server)[0] == 200, seconds=10, what="the journal's recovery")
    after = call(server, key)
    assert (before[0], after[0]) == (200, 200)
    wait_for(lambda: booked() >= {before[1], after[1]}, seconds=10, what="the records")
    wait_for(lambda: ready(server)[1]["records_waiting"] == 0, seconds=10, what="the ledger")
    # A call that was refused half-way may be booked, never as one that went well.
    assert set(UsageRecord.objects.exclude(pk__in=[before[1], after[1]]).values_list("status", flat=True)) <= {
        "interrupted",
        "refused",
    }
