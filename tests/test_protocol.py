"""relay_site/protocol.py: what a client gets in one piece, and who hears that it has left."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from asgiref.sync import async_to_sync
from uvicorn.config import Config
from uvicorn.server import ServerState

from relay.slim import LEAVING, Body
from relay_site.protocol import Gathering, GatheringProtocol

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that remembers what was sent, and in which pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closing = False
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.closing
        self.sent.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        raise NotImplementedError


async def hello(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hi"})


def connected(application: Any, wire: Wire) -> GatheringProtocol:
    state = ServerState()
    protocol = GatheringProtocol(Config(application, log_config=None, proxy_headers=False, lifespan="off"), state, {})
    protocol.connection_made(wire)
    return protocol


def test_headers_and_body_leave_in_one_piece() -> None:
    async def story() -> None:
        wire = Wire()
        connected(hello, wire).data_received(REQUEST)
        await asyncio.sleep(0.01)
        [piece] = wire.sent
        assert piece.startswith(b"HTTP/1.1 200 OK\r\n") and piece.endswith(b"\r\n\r\nhi")

    async_to_sync(story)()


def test_headers_without_an_end_are_not_kept() -> None:
    async def story() -> None:
        wire = Wire()
        protocol = connected(hello, wire)
        protocol.data_received(b"GET / HTTP/1.1\r\nx-long: ")
        for _ in range(7):
            protocol.data_received(b"x" * 64 * 1024)
        assert not wire.sent
        protocol.data_received(b"x" * 64 * 1024)
        [answer] = wire.sent
        assert answer.startswith(b"HTTP/1.1 400 ") and b"headers are too large" in answer

    async_to_sync(story)()


def test_a_large_body_is_no_large_head() -> None:
    async def story() -> None:
        wire = Wire()
        protocol = connected(hello, wire)
        protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1048576\r\n\r\n")
        for _ in range(16):
            protocol.data_received(b"x" * 64 * 1024)
        await asyncio.sleep(0.01)
        [answer] = wire.sent
        assert answer.startswith(b"HTTP/1.1 200 ")

    async_to_sync(story)()


def test_what_comes_later_is_not_waited_for() -> None:
    async def story() -> None:
        async def slowly(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for chunk in (b"one", b"two"):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await asyncio.sleep(0.02)
            await send({"type": "http.response.body", "body": b""})

        wire = Wire()
        connected(slowly, wire).data_received(REQUEST)
        await asyncio.sleep(0.1)
        assert [piece.rpartition(b"\r\n\r\n")[2] for piece in wire.sent] == [b"3\r\none\r\n", b"3\r\ntwo\r\n", b""]

    async_to_sync(story)()


def test_what_was_written_goes_out_before_the_connection_closes_and_nothing_after() -> None:
    async def story() -> None:
        wire = Wire()
        gathering = Gathering(wire)
        gathering.write(b"last ")
        gathering.write(b"words")
        gathering.close()
        gathering.write(b"too late")
        await asyncio.sleep(0.01)
        assert (wire.sent, wire.closing) == ([b"last words"], True)

    async_to_sync(story)()


def test_whoever_asked_hears_that_the_client_has_left_and_who_took_his_name_off_does_not() -> None:
    async def story() -> None:
        heard: list[str] = []

        async def asking(scope: Any, receive: Any, send: Any) -> None:
            scope["extensions"][LEAVING].add(first)
            scope["extensions"][LEAVING].add(second)
            scope["extensions"][LEAVING].discard(second)
            await asyncio.sleep(0.02)

        def first() -> None:
            heard.append("first")

        def second() -> None:
            heard.append("second")

        protocol = connected(asking, Wire())
        protocol.data_received(REQUEST)
        await asyncio.sleep(0.01)
        assert heard == []
        protocol.connection_lost(None)
        assert heard == ["first"]
        await asyncio.sleep(0.03)

    async_to_sync(story)()


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_socket_is_read_again_once_the_body_is_here_or_nobody_would_hear_that_the_client_has_left(size: int) -> None:
    async def story() -> None:
        async def asking(scope: Any, receive: Any, send: Any) -> None:
            await Body(receive, scope["extensions"][LEAVING]).read(limit=10**6)
            await asyncio.sleep(0.05)

        wire = Wire()
        protocol = connected(asking, wire)
        protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        await asyncio.sleep(0.01)
        protocol.data_received(b"x" * size)  # all of it in one piece, while the application waits
        await asyncio.sleep(0.01)
        assert wire.reading
        assert len(protocol.leaving) == 1
        protocol.connection_lost(None)
        await asyncio.sleep(0.06)

    async_to_sync(story)()


def test_all_else_is_the_transport_s_own() -> None:
    async def story() -> None:
        wire = Wire()
        assert cast(Any, Gathering(wire)).is_closing() is False

    async_to_sync(story)()
