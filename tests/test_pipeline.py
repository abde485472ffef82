"""The story of a call where it is hard: silence, stalls, late errors, full drains; on a server of its own."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.harness import Installation, Server, wait_for

MODEL = "claude-sonnet-5-5"
Start = Callable[..., Server]


@contextmanager
def opened(server: Server, key: str, model: str, *, stream: bool = True) -> Iterator[socket.socket]:
    """Send one call on a socket of its own."""
    body = json.dumps(
        {"model": model, "max_tokens": 90_000_000, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]}
    )
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\nanthropic-version: 2023-06-01\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        yield connection


def read_until(connection: socket.socket, *marks: bytes, data: bytes = b"") -> bytes:
    """Read until one of the marks has come, or the end."""
    while not any(mark in data for mark in marks):
        more = connection.recv(65536)
        if not more:
            return data
        data += more
    return data


def call(server: Server, key: str, model: str, *, stream: bool = True) -> tuple[int, bytes]:
    with opened(server, key, model, stream=stream) as connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


def test_a_silent_stream_is_kept_alive_between_events(start_server: Start, installation: Installation) -> None:
    server = start_server(RELAY_KEEP_ALIVE_AFTER="0.2")
    installation.account()
    key = installation.key()
    status, body = call(server, key, f"{MODEL}~chunks=3~pause=1@2")
    kinds = [block.partition(b"\n")[0].removeprefix(b"event: ") for block in body.split(b"\n\n")]
    between = kinds[kinds.index(b"content_block_delta") : kinds.index(b"content_block_stop")]
    assert status == 200
    assert 2 <= between.count(b"ping") <= 5
    assert between.count(b"content_block_delta") == 3
    assert kinds[-2:] == [b"message_stop", b""]


def test_a_stream_without_a_first_event_is_committed_late(start_server: Start, installation: Installation) -> None:
    server = start_server(RELAY_COMMIT_AFTER="0.3", RELAY_KEEP_ALIVE_AFTER="0.2")
    installation.account()
    key = installation.key()
    with opened(server, key, f"{MODEL}~first=1.2") as connection:
        early = read_until(connection, b"event: ping")
        assert early.startswith(b"HTTP/1.1 200")
        whole = read_until(connection, b'"message_stop"}', data=early)
    assert whole.count(b"event: message_start") == 1
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("ok", "provider")


def test_a_failure_after_a_late_commit_is_an_error_event(start_server: Start, installation: Installation) -> None:
    server = start_server(RELAY_COMMIT_AFTER="0.2")
    installation.account()
    key = installation.key()
    status, body = call(server, key, f"{MODEL}~first=1.5~error=500")
    assert status == 200
    assert body.rstrip().split(b"\n\n")[-1].startswith(b"event: error\n")
    (record,) = installation.records(key=key)
    assert record.status == "upstream_error"


def test_failover_goes_on_after_a_late_commit(start_server: Start, installation: Installation) -> None:
    server = start_server(RELAY_COMMIT_AFTER="0.2")
    installation.account(priority=1, credential={"api_key": "sk-ant-sim~first=0.5~error=529"})
    well = installation.account(priority=2)
    key = installation.key()
    status, body = call(server, key, MODEL)
    assert (status, b"message_stop" in body) == (200, True)
    (record,) = installation.records(key=key)
    assert (record.account_name, len(record.attempts)) == (well.name, 2)


def test_a_whole_answer_is_never_committed_early(start_server: Start, installation: Installation) -> None:
    server = start_server(RELAY_COMMIT_AFTER="0.1")
    installation.account()
    status, body = call(server, installation.key(), f"{MODEL}~first=0.5~error=400", stream=False)
    assert (status, json.loads(body)["type"]) == (400, "error")


@pytest.mark.parametrize(
    ("timer", "script", "status", "reason"),
    [
        ("RELAY_FIRST_BYTE_TIMEOUT", "hang=before", 504, "first_byte_timeout"),
        ("RELAY_FIRST_BYTE_TIMEOUT", "hang=first", 504, "first_byte_timeout"),
        ("RELAY_IDLE_TIMEOUT", "chunks=5~hang=2", 200, "idle_timeout"),
        ("RELAY_TOTAL_TIMEOUT", "chunks=500~delay=0.05", 200, "total_timeout"),
    ],
)
def test_each_timer_ends_a_call_and_says_so(
    start_server: Start, installation: Installation, timer: str, script: str, status: int, reason: str
) -> None:
    server = start_server(**{timer: "0.6", "RELAY_KEEP_ALIVE_AFTER": "0.1"})
    installation.account()
    key = installation.key()
    got, body = call(server, key, f"{MODEL}~{script}")
    assert got == status
    assert b'"type":"error"' in body and b"message_stop" not in body
    (record,) = installation.records(key=key)
    assert (record.status, record.error) == ("upstream_error", reason)
    wait_for(lambda: installation.simulator.open() == 0, seconds=1, what="upstream closed")


def test_a_reader_that_stalls_holds_the_upstream_back(start_server: Start, installation: Installation) -> None:
    server = start_server()
    installation.account()
    key = installation.key()
    with opened(server, key, f"{MODEL}~chunks=4000~size=10000") as connection:
        read_until(connection, b"content_block_delta")
        time.sleep(1.5)
        (request,) = installation.simulator.requests()
        assert request["end"] == "open"
        body = read_until(connection, b'"message_stop"}')
    assert body.endswith(b"0\r\n\r\n") or b'"message_stop"}' in body
    (record,) = installation.records(key=key, seconds=10)
    assert record.status == "ok"


def test_a_reader_that_pauses_longer_than_the_idle_timer_is_no_silent_upstream(
    start_server: Start, installation: Installation
) -> None:
    server = start_server(RELAY_IDLE_TIMEOUT="0.6")
    account = installation.account()
    key = installation.key()
    with opened(server, key, f"{MODEL}~chunks=1500~size=10000") as connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        body = response.read(1000)
        time.sleep(2)
        body += response.read()
    assert body.count(b'"text_delta"') == 1500 and body.rstrip().endswith(b'"message_stop"}')
    (record,) = installation.records(key=key, seconds=10)
    assert (record.status, record.error, record.account_name) == ("ok", "", account.name)
    # Nobody rests: the only account takes the next call.
    assert call(server, key, MODEL)[0] == 200


def test_drained_calls_are_capped_in_number(start_server: Start, installation: Installation) -> None:
    server = start_server(RELAY_MAX_DRAINING="1")
    installation.account(on_disconnect="drain")
    key = installation.key()
    for _ in range(2):
        with opened(server, key, f"{MODEL}~chunks=30~delay=0.05~out=77") as connection:
            read_until(connection, b"content_block_delta")
    records = installation.records(key=key, count=2, seconds=8)
    assert sorted(record.usage_source for record in records) == ["partial", "provider"]


def test_drained_calls_are_capped_in_time(start_server: Start, installation: Installation) -> None:
    server = start_server(RELAY_DRAIN_SECONDS="0.3")
    installation.account(on_disconnect="drain")
    key = installation.key()
    with opened(server, key, f"{MODEL}~chunks=500~delay=0.05~size=40") as connection:
        read_until(connection, b"content_block_delta")
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("client_disconnected", "partial")


def test_a_second_relay_without_redis_refuses_to_start(start_server: Start, installation: Installation) -> None:
    first = start_server(REDIS_URL="")
    with pytest.raises(AssertionError, match=r"Another relay process holds .*set REDIS_URL"):
        start_server(data=first.data, REDIS_URL="")


def test_a_body_in_which_the_model_stands_twice_goes_up_once(start_server: Start, installation: Installation) -> None:
    server = start_server()
    installation.account()
    key = installation.key()
    body = b'{"model":"claude-haiku-4-5","max_tokens":5,"messages":[],"model":"claude-sonnet-5-5"}'
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", "/v1/messages", body, {"x-api-key": key, "anthropic-version": "2023-06-01"})
    connection.getresponse().read()
    connection.close()
    (request,) = installation.simulator.requests()
    assert request["body"].count(b'"model"') == 1
    (record,) = installation.records(key=key)
    assert record.requested_model == "claude-sonnet-5-5"
