"""kill -9 of a real relay under load: what a client received in full is booked once, what was cut is booked too."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from relay.models import Quarantine, UsageRecord
from relay.reconcile import reconcile
from relay.rollup import roll_up
from relay.segments import is_done, journal_folders
from tests.harness import Installation, Server, manage, wait_for
from tests.journals import entries_in

MODEL = "claude-sonnet-5-5"
WHOLE = 12
SCRIPTS = ("chunks=3", "chunks=8,delay=0.02", "chunks=40,delay=0.03", "cut=2", "error=529")


@dataclass
class Seen:
    """What clients saw: ids of calls whose head arrived, and of those whose answer arrived whole."""

    begun: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


def one_call(server: Server, key: str, seen: Seen, *, number: int) -> None:
    stream = number % 3 > 0
    body = {"model": MODEL, "max_tokens": 50, "stream": stream, "messages": [{"role": "user", "content": "Hi."}]}
    headers = {
        "content-type": "application/json",
        "anthropic-version": "2023-06-01",
        "x-api-key": key,
        "x-sim": SCRIPTS[number % len(SCRIPTS)],
    }
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    try:
        connection.request("POST", "/v1/messages", json.dumps(body).encode(), headers)
        response = connection.getresponse()
        call_id = response.headers["x-request-id"]
        if response.status == 200:
            seen.begun.add(call_id)
        data = response.read()
        if response.status == 200 and (b"event: message_stop" in data if stream else True):
            seen.whole.add(call_id)
    except (OSError, http.client.HTTPException):
        pass  # the relay died; what was seen until then counts
    finally:
        connection.close()


def load(server: Server, key: str, seen: Seen, *, until: threading.Event) -> list[threading.Thread]:
    def client(seed: int) -> None:
        number = seed
        while not until.is_set() and server.child.poll() is None:
            one_call(server, key, seen, number=number)
            number += 1

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    return threads


def journal_is_done(data: Path) -> bool:
    """Whether every folder but the living one is recovered."""
    return sum(not is_done(folder) for folder in journal_folders(data / "journal")) <= 1


def check(data: Path, seen: Seen) -> Counter[str]:
    statuses = {str(pk): status for pk, status in UsageRecord.objects.values_list("pk", "status")}
    assert seen.begun <= statuses.keys()
    assert {statuses[call] for call in seen.whole} == {"ok"}
    # Nothing in the table that is not in the journals, and nothing in the journals that is not in the table.
    opened = {entry.call_id for folder in journal_folders(data / "journal") for entry in entries_in(folder)}
    assert opened == statuses.keys()
    assert not Quarantine.objects.exists()
    return Counter(statuses.values())


def survive(start: Callable[..., Server], installation: Installation, data: Path, *, kills: int) -> Counter[str]:
    """Start a relay, load it, kill it, as often as `kills`; the last one lives and recovers.

    Every second one dies at any moment at all, the others once some answers went out whole, however slow the machine.
    """
    installation.account()
    key, seen, moments = installation.key(), Seen(), random.Random(kills)
    for number in range(kills):
        wanted = len(seen.whole) + number % 2 * WHOLE
        server = start(data=data, RELAY_LEDGER_INTERVAL="0.2")
        threads = load(server, key, seen, until=threading.Event())
        wait_for(lambda: len(seen.whole) >= wanted, seconds=60, what="whole answers")  # noqa: B023
        time.sleep(moments.uniform(0.0, 1.0))
        server.kill()
        for thread in threads:
            thread.join()
    server = start(data=data)
    wait_for(lambda: journal_is_done(data), seconds=30, what="recovery")
    server.wait_idle()
    return check(data, seen)


def reconciled() -> Any:
    from datetime import UTC, datetime

    roll_up()
    return reconcile(now=datetime.now(UTC), journals=Path("/nonexistent"))


@pytest.mark.slow
def test_kill_9_under_load_loses_and_doubles_no_call(
    start_server: Callable[..., Server], installation: Installation, tmp_path: Path
) -> None:
    found = survive(start_server, installation, tmp_path / "data", kills=4)
    assert found["ok"] > 20 and found["interrupted"] > 0
    partial = UsageRecord.objects.filter(status="interrupted", usage_source="partial")
    assert all(record.input_tokens for record in partial)
    assert reconciled().ok


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_at_random_moments(
    start_server: Callable[..., Server], installation: Installation, tmp_path: Path
) -> None:
    found = survive(start_server, installation, tmp_path / "data", kills=50)
    assert found["ok"] > 200 and found["interrupted"] > 20
    assert reconciled().ok


def test_a_dead_relays_disk_is_booked_by_a_command(
    start_server: Callable[..., Server], installation: Installation, tmp_path: Path
) -> None:
    installation.account()
    key, seen, there = installation.key(), Seen(), tmp_path / "there"
    server = start_server(data=there, RELAY_LEDGER_INTERVAL="600")
    threads = load(server, key, seen, until=threading.Event())
    wait_for(lambda: len(seen.whole) > 5, seconds=20, what="calls")
    server.kill()
    for thread in threads:
        thread.join()
    shipped = json.loads(manage("ship_journal", str(there / "journal"), "--json", data=tmp_path / "here").stdout)
    assert shipped["records"] == UsageRecord.objects.count() > 5
    check(there, seen)
