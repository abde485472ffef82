"""A small HTTP/1.1 server on asyncio: an ASGI server can't reset a connection or cut an answer in the middle."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import httptools
import msgspec

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived; `path` is percent-decoded; `target`, `headers`, `body` are the client's own bytes."""

    method: str
    target: bytes
    path: str
    query: str
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)

    def header(self, name: str) -> str:
        """Return the first value of a header, "" where there is none."""
        wanted = name.lower().encode("latin-1")
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), "")

    def json(self) -> dict[str, Any]:
        """Return the body as an object; raises ValueError where it is none."""
        value = msgspec.json.decode(self.body)
        if not isinstance(value, dict):
            raise ValueError("the body is not a JSON object")
        return value


class Exchange:
    """The answer to one request. Ends in exactly one of `end`, `cut`, `reset`, or the client leaves first."""

    def __init__(self, connection: Connection, request: Request, *, keep_alive: bool) -> None:
        self.request = request
        self.sent_bytes = 0
        self.ended = False
        self._connection = connection
        self._keep_alive = keep_alive
        self._chunked = False

    async def start(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        """Send the head; without a length the body is chunked."""
        self._chunked = length is None
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        lines = [b"HTTP/1.1 %d %s" % (status, reason(status)), framing]
        lines += [name + b": " + value for name, value in headers]
        if not self._keep_alive:
            lines.append(b"connection: close")
        await self._write(b"\r\n".join(lines) + b"\r\n\r\n")

    async def send(self, data: bytes) -> None:
        if data and self.request.method != "HEAD":
            await self._write(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    async def end(self) -> None:
        """End the answer as HTTP wants it."""
        if self._chunked and self.request.method != "HEAD":
            await self._write(b"0\r\n\r\n")
        self.ended = True
        if not self._keep_alive:
            self._connection.close()

    def cut(self) -> None:
        """Close the connection (FIN) wherever the answer stands: a chunked body then lacks its end."""
        self.ended = True
        self._connection.close()

    def reset(self) -> None:
        """Abort the connection with a RST."""
        self.ended = True
        self._connection.reset()

    async def _write(self, data: bytes) -> None:
        self.sent_bytes += len(data)
        await self._connection.write(data)


Application = Callable[[Exchange], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One client connection; requests are answered one by one. A client that leaves cancels the application."""

    def __init__(self, application: Application, peers: set[Connection]) -> None:
        self._application = application
        self._peers = peers
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Exchange] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peers.add(self)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._peers.discard(self)
        self._writable.set()
        self._waiting.clear()
        if self._task:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    # --- what httptools calls -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._target, self._body = b"", bytearray()
        self._headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        expected = any(name.lower() == b"expect" for name, _ in self._headers)
        if expected and self._transport:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        url = urlsplit(self._target.decode("latin-1"))
        request = Request(
            method=self._parser.get_method().decode(),
            target=self._target,
            path=unquote(url.path),
            query=url.query,
            headers=tuple(self._headers),
            body=bytes(self._body),
        )
        self._waiting.append(Exchange(self, request, keep_alive=self._parser.should_keep_alive()))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    # --- what an exchange calls -----------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Send bytes at once, waiting while the client does not read; raises ConnectionError when it has gone."""
        if not self._writable.is_set():
            await self._writable.wait()
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        self._transport.write(data)

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def reset(self) -> None:
        if self._transport:
            # Zero linger makes the close a RST.
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    async def _serve(self) -> None:
        try:
            while self._waiting:
                await self._application(self._waiting.popleft())
        finally:
            self._task = None


def reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Overloaded" if status == 529 else b"Status"


class Listener:
    """A listening server and its connections."""

    def __init__(self, server: asyncio.Server, peers: set[Connection]) -> None:
        self._server = server
        self._peers = peers
        self.port: int = server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Stop listening and abort every connection."""
        self._server.close()
        for peer in tuple(self._peers):
            peer.reset()


async def listen(application: Application, *, host: str, port: int) -> Listener:
    """Return a listening server; port 0 picks a free one."""
    peers: set[Connection] = set()
    loop = asyncio.get_running_loop()
    return Listener(await loop.create_server(lambda: Connection(application, peers), host, port, backlog=4096), peers)
