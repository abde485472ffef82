"""SIGTERM: streams end, new calls are refused, everything is settled within the set time, nothing is left behind."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from relay.models import Quarantine, UsageRecord
from tests.harness import Installation, Server, wait_for
from tests.test_pipeline import MODEL, call, opened, read_until

Start = Callable[..., Server]


def stopping(server: Server) -> threading.Thread:
    thread = threading.Thread(target=server.stop)
    thread.start()
    return thread


def answers(server: Server) -> bool:
    """Whether a new connection is taken."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True


def concurrent(server: Server, key: str) -> int:
    """How many calls the key's concurrency limit counts now."""
    with urlopen(Request(f"{server.url}/api/v1/usage", headers={"x-api-key": key}), timeout=5) as response:
        limits: list[dict[str, Any]] = json.loads(response.read())["limits"]
    [limit] = [limit for limit in limits if limit["metric"] == "concurrency"]
    return int(limit["used"])


def test_sigterm_lets_streams_end_and_refuses_new_calls(start_server: Start, installation: Installation) -> None:
    server = start_server()
    installation.account()
    key = installation.key()
    with opened(server, key, f"{MODEL}~chunks=20~delay=0.1~out=66") as connection:
        started = read_until(connection, b"content_block_delta")
        end = stopping(server)
        wait_for(lambda: not answers(server), seconds=5, what="closed doors")
        assert server.child.poll() is None
        body = read_until(connection, b'"message_stop"}', data=started)
        end.join()
    assert b'"message_stop"}' in body
    (record,) = installation.records(key=key)
    assert (record.status, record.output_tokens) == ("ok", 66)


def test_what_does_not_end_is_told_and_booked_within_the_set_time(
    start_server: Start, installation: Installation, tmp_path: Path
) -> None:
    server = start_server(data=tmp_path / "data", RELAY_SHUTDOWN_SECONDS="3")
    installation.account(slots=2, on_disconnect="drain")
    key = installation.key(limits=["concurrency 2"])
    endless = f"{MODEL}~chunks=5000~delay=0.05~size=40"
    with opened(server, key, endless) as left:
        read_until(left, b"content_block_delta")
    with opened(server, key, endless) as connection:
        data = read_until(connection, b"content_block_delta")
        assert concurrent(server, key) == 2
        begin, end = time.monotonic(), stopping(server)
        data = read_until(connection, b"event: error", data=data)
        end.join()
        assert time.monotonic() - begin < 3 + 5
    assert b"event: error" in data and b"message_stop" not in data
    statuses = {record.status for record in installation.records(key=key, count=2)}
    assert statuses <= {"interrupted", "client_disconnected"} and "interrupted" in statuses
    wait_for(lambda: installation.simulator.open() == 0, seconds=1, what="upstreams closed")
    # Neither the key's two places nor the account's two slots are left taken.
    again = start_server(data=tmp_path / "data")
    assert concurrent(again, key) == 0
    with opened(again, key, f"{MODEL}~chunks=10~delay=0.05") as one:
        read_until(one, b"content_block_delta")
        assert call(again, key, MODEL)[0] == 200
        read_until(one, b'"message_stop"}')


def test_a_rolling_restart_under_load_costs_no_call(
    start_server: Start, installation: Installation, tmp_path: Path
) -> None:
    installation.account(slots=50)
    key = installation.key(limits=["concurrency 50"])
    relays = [start_server(data=tmp_path / name) for name in ("a", "b")]
    until = threading.Event()
    seen: list[str] = []
    broken: list[str] = []

    def client(number: int) -> None:
        while not until.is_set():
            number += 1
            relay = relays[number % 2]
            try:
                connection = opened(relay, key, f"{MODEL}~chunks=5~delay=0.02")
                with connection as one:
                    body = read_until(one, b'"message_stop"}', b"shutting_down")
            except ConnectionRefusedError:
                continue  # what a load balancer does: the next call goes to the other
            except OSError as error:
                broken.append(repr(error))
                continue
            (seen if b'"message_stop"}' in body else broken).append(body.decode())

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for number, name in enumerate("ab"):
        wait_for(lambda: len(seen) > 20 * (number + 1), seconds=30, what="calls")  # noqa: B023
        old, relays[number] = relays[number], relays[1 - number]
        old.stop()
        relays[number] = start_server(data=tmp_path / name)
    wait_for(lambda: len(seen) > 80, seconds=30, what="calls")
    until.set()
    for thread in threads:
        thread.join()
    for relay in relays:
        relay.wait_idle()
    assert broken == []
    ids = {text.partition("x-request-id: ")[2][:36] for text in seen}
    records = {str(pk): status for pk, status in UsageRecord.objects.values_list("pk", "status")}
    assert len(ids) == len(seen) and records == dict.fromkeys(ids, "ok")
    assert not Quarantine.objects.exists()
    assert [concurrent(relay, key) for relay in relays] == [0, 0]
