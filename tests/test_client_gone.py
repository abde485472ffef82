"""A client that leaves, at each moment of its call: what becomes of the upstream, and what is booked."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.request import urlopen

import pytest

from relay.models import UsageRecord
from tests.harness import Installation, Server, wait_for

MODEL = "claude-sonnet-5-5"
# Where the upstream stands still, and what the client has read by then. Half of an event of 8 MB fills every buffer.
MOMENTS = {
    "before the headers": ("before", b""),
    "before the first event": ("first", b""),
    "between events": ("3", b"content_block_delta"),
    "at the last event": ("end", b"content_block_stop"),
}
MID_EVENT = {"abort": "chunks=2~size=8000000~hang=1", "drain": "chunks=2~size=8000000~out=77~pause=0.4@1"}
moments = pytest.mark.parametrize("where, seen", MOMENTS.values(), ids=MOMENTS.keys())


@contextmanager
def a_call(server: Server, key: str, script: str, *, stream: bool, receive: int = 65536) -> Iterator[socket.socket]:
    """Send a call on a socket of its own; the client leaves at the end of the block."""
    body = json.dumps(
        {
            "model": f"{MODEL}~{script}",
            "max_tokens": 5_000_000,
            "stream": stream,
            "messages": [{"role": "user", "content": "Hi"}],
        }
    )
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\nanthropic-version: 2023-06-01\r\n"
    with socket.socket() as connection:
        connection.settimeout(20)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        yield connection


def read_until(connection: socket.socket, mark: bytes) -> None:
    data = b""
    while mark not in data:
        more = connection.recv(65536)
        assert more, data
        data += more


def leave(server: Server, installation: Installation, key: str, script: str, *, seen: bytes, stream: bool) -> float:
    """Call, leave when the upstream has the call and the client has read `seen`; returns when that was."""
    with a_call(server, key, script, stream=stream) as connection:
        wait_for(lambda: installation.simulator.open() == 1, seconds=5, what="the upstream's call")
        if seen:
            read_until(connection, seen)
    return time.time()


def in_flight(server: Server) -> int:
    with urlopen(f"{server.url}/readyz", timeout=5) as response:
        return int(json.loads(response.read())["calls_in_flight"])


def upstream_end(installation: Installation) -> tuple[str, float]:
    """How the upstream's one call ended, and when."""
    wait_for(lambda: installation.simulator.open() == 0, seconds=10, what="the upstream's end")
    (request,) = installation.simulator.requests()
    return request["end"], request["ended_at"]


def booked(installation: Installation, key: str) -> tuple[str, str, int | None]:
    (record,) = installation.records(key=key)
    return record.status, record.usage_source, record.output_tokens


@moments
def test_a_stream_on_abort_stops_the_upstream_within_a_second(
    server: Server, installation: Installation, where: str, seen: bytes
) -> None:
    installation.account()
    key = installation.key()
    left = leave(server, installation, key, f"chunks=5~size=40~out=77~hang={where}", seen=seen, stream=True)
    end, at = upstream_end(installation)
    assert end == "client_closed" and at < left + 1
    status, source, output = booked(installation, key)
    assert status == "client_disconnected"
    # Only the end reports the output; until then it is what was relayed, about four bytes a token.
    assert (source, output) == {
        "before": ("none", None),
        "first": ("none", None),
        "3": ("partial", 30),
        "end": ("provider", 77),
    }[where]


@moments
def test_a_stream_on_drain_runs_to_its_end_and_is_booked_in_full(
    server: Server, installation: Installation, where: str, seen: bytes
) -> None:
    installation.account(on_disconnect="drain")
    key = installation.key()
    left = leave(server, installation, key, f"chunks=5~size=40~out=77~pause=0.4@{where}", seen=seen, stream=True)
    end, at = upstream_end(installation)
    assert end == "completed" and at > left
    assert booked(installation, key) == ("client_disconnected", "provider", 77)


@pytest.mark.parametrize("on_disconnect", ["abort", "drain"])
@pytest.mark.parametrize("where", ["before", "first", "1", "end"])
def test_a_call_that_is_not_streamed_runs_to_its_end_and_is_booked_in_full(
    server: Server, installation: Installation, where: str, on_disconnect: str
) -> None:
    installation.account(on_disconnect=on_disconnect)
    key = installation.key()
    left = leave(server, installation, key, f"out=77~pause=0.4@{where}", seen=b"", stream=False)
    end, at = upstream_end(installation)
    assert end == "completed" and at > left
    assert booked(installation, key) == ("client_disconnected", "provider", 77)


@pytest.mark.parametrize("on_disconnect", ["abort", "drain"])
def test_a_client_that_leaves_in_the_middle_of_an_event(
    server: Server, installation: Installation, on_disconnect: str
) -> None:
    installation.account(on_disconnect=on_disconnect)
    key = installation.key()
    left = leave(server, installation, key, MID_EVENT[on_disconnect], seen=b"content_block_delta", stream=True)
    end, at = upstream_end(installation)
    status, source, output = booked(installation, key)
    assert status == "client_disconnected"
    if on_disconnect == "drain":
        assert (end, source, output) == ("completed", "provider", 77)
    else:
        assert end == "client_closed" and at < left + 1
        assert source == "partial"


@contextmanager
def mute_server() -> Iterator[socket.socket]:
    """An upstream that takes connections and says nothing: a TLS handshake with it never ends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        yield listening


def test_a_client_that_leaves_while_the_upstream_is_being_connected(server: Server, installation: Installation) -> None:
    with mute_server() as listening:
        installation.account(base_url=f"https://127.0.0.1:{listening.getsockname()[1]}")
        key = installation.key()
        with a_call(server, key, "chunks=3", stream=True):
            upstream, _ = listening.accept()
        left = time.time()
        with upstream:
            upstream.settimeout(5)
            while upstream.recv(65536):
                pass  # its greeting
        assert time.time() < left + 1
    assert booked(installation, key) == ("client_disconnected", "none", None)


def test_a_client_that_leaves_while_its_request_is_still_coming_was_never_admitted(
    server: Server, installation: Installation
) -> None:
    installation.account()
    key = installation.key(limits=["requests 1 per day", "concurrency 1"])
    logged = len(server.log())
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\nanthropic-version: 2023-06-01\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(f'{head}content-length: 1000\r\n\r\n{{"model": "{MODEL}", '.encode())
        time.sleep(0.2)
    # Nothing was taken from its limits: the one call of the day is still there.
    with a_call(server, key, "out=5", stream=False) as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"
        read_until(connection, b'"output_tokens"')
    assert len(installation.simulator.requests()) == 1
    assert booked(installation, key)[0] == "ok" and UsageRecord.objects.count() == 1
    assert "Traceback" not in server.log()[logged:]


def test_a_client_that_leaves_last_bytes_unread_takes_no_place_among_drained_calls(
    start_server: Callable[..., Server], installation: Installation
) -> None:
    server = start_server(RELAY_MAX_DRAINING="1")
    installation.account(on_disconnect="drain")
    key = installation.key()
    with a_call(server, key, "chunks=400~size=10000", stream=True, receive=4096) as connection:
        # It reads as little as makes room for the end of the answer in the buffers.
        wait_for(lambda: not in_flight(server) or not connection.recv(20_000), seconds=30, what="the call's end")
    assert booked(installation, key)[0] == "ok"
    leave(server, installation, key, "chunks=20~delay=0.05~out=77", seen=b"content_block_delta", stream=True)
    records = installation.records(key=key, count=2, seconds=8)
    assert [record.usage_source for record in records] == ["provider", "provider"]
