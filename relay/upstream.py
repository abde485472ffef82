"""The HTTP client: one session for each proxy setting, the four timers, and its errors as ours.

httpx is the face (Request, Response, URL); aiohttp does the work underneath, because httpx's own pool costs ten times
as much (docs/performance.md). The transport is called directly: the client shell around it costs as much again.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import aiohttp
import httpx
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp_socks import ProxyConnector
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from relay.errors import UpstreamError, UpstreamFailed, UpstreamTimeout, UpstreamUnreachable
from relay.providers.base import Headers, UpstreamRequest

READ_SIZE = 64 * 1024
KEEP_ALIVE_SECONDS = 50.0
MAX_TARGETS = 1024
MOST_STALE = 10
BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
SWITCHING = 101
# zlib's window bits: 47 = gzip or zlib, whichever begins; -15 = deflate bare, as some send it under that name.
EITHER, BARE = 47, -15


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds. Only the upstream's own bytes reset `idle`; keep-alives that Baton adds reset nothing."""

    connect: float = 10.0
    first_byte: float = 600.0
    idle: float = 300.0
    total: float = 3600.0


class Upstream:
    """One upstream answer: status and headers, then bytes; close it in every case."""

    __slots__ = ("_read", "_stream", "headers", "status")

    def __init__(self, response: httpx.Response) -> None:
        assert isinstance(response.stream, Stream)
        self._stream = response.stream
        self.status = response.status_code
        self.headers: Headers = tuple([(name, value) for _, name, value in kept_by(response.headers)])
        self._read: Callable[[], Awaitable[bytes]] = self._stream.read
        for name, value in self.headers:
            if name == b"content-encoding" and value.lower() not in {b"", b"identity"}:
                self._read = Inflating(self._read, value.lower()).read

    async def next(self) -> bytes:
        """Return the next bytes as they come, b"" at the end; raises `UpstreamError` where the connection dies."""
        try:
            return await self._read()
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise failure(error) from error
        except zlib.error as error:
            raise not_decoded() from error
        except RuntimeError as error:  # aiohttp's word where it had closed the connection on a broken framing
            raise failure(aiohttp.ClientPayloadError(str(error))) from error

    async def next_within(self, seconds: float) -> bytes | None:
        """Like `next`, but None where nothing comes so soon; nothing that comes later is lost."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                return await self.next()
        except TimeoutError:
            return None

    async def read(self, *, limit: int, touch: Callable[[], object] | None = None) -> bytes:
        """Return the whole body, calling `touch` at each read; raises `UpstreamFailed` beyond `limit` bytes."""
        parts: list[bytes] = []
        size = 0
        while chunk := await self.next():
            if touch is not None:
                touch()
            size += len(chunk)
            if size > limit:
                raise UpstreamFailed("The upstream's answer is too large.", reason="answer_too_large")
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def close(self) -> None:
        """Release the connection: back to the pool after a whole answer, else it is cut."""
        try:
            await self._stream.aclose()
        except (httpx.HTTPError, aiohttp.ClientError, OSError):
            return


class Inflating:
    """A body that came compressed although nobody had asked for that, read in steps of bounded size: a few bytes may
    stand for gigabytes."""

    __slots__ = ("_begun", "_coding", "_full", "_inflate", "_read", "_rest")

    def __init__(self, read: Callable[[], Awaitable[bytes]], coding: bytes) -> None:
        self._read = read
        self._coding = coding
        self._inflate = zlib.decompressobj(EITHER)
        self._rest = b""
        self._full = self._begun = False

    async def read(self) -> bytes:
        """The next bytes, b"" at the end; raises `zlib.error`, and aiohttp's error for an end inside the body."""
        if self._coding not in {b"gzip", b"x-gzip", b"deflate"}:
            raise not_decoded()
        while True:
            if self._full:
                await asyncio.sleep(0)  # nothing is waited for here: the other calls get their turn
            else:
                self._rest = await self._read()
                if not self._rest:
                    if self._begun and not self._inflate.eof:
                        raise aiohttp.ClientPayloadError("The compressed body ends too early.")
                    return b""
                if not self._begun:
                    self._begun = True
                    if self._coding == b"deflate" and self._rest[0] & 0x0F != zlib.DEFLATED:
                        self._inflate = zlib.decompressobj(BARE)
            if piece := self._step():
                return piece

    def _step(self) -> bytes:
        piece = self._inflate.decompress(self._rest, READ_SIZE)
        self._rest = self._inflate.unconsumed_tail
        self._full = len(piece) == READ_SIZE
        if self._inflate.eof and self._inflate.unused_data:  # gzip may be several, one after the other
            self._rest, self._full = self._inflate.unused_data, True
            self._inflate = zlib.decompressobj(EITHER)
        return piece


def not_decoded() -> UpstreamFailed:
    return UpstreamFailed("The upstream's answer came in a coding that can't be read.", reason="encoding", rest="5xx")


class ReadyHeaders(httpx.Headers):
    """Headers that are bytes already: httpx would look at each one to find that out, and copies this list as it is."""

    def __init__(self, headers: Headers) -> None:
        self._list = [(name, name.lower(), value) for name, value in headers]
        self._encoding = None


def kept_by(headers: httpx.Headers) -> list[tuple[bytes, bytes, bytes]]:
    """Each header's name as it came, in lower case, and its value."""
    return headers._list


class Stream(httpx.AsyncByteStream):
    """An answer's body. httpx iterates it; reading it directly takes a generator and two context managers less."""

    __slots__ = ("_connection", "_content")

    def __init__(self, connection: Connection, content: aiohttp.StreamReader) -> None:
        self._connection = connection
        self._content = content

    def read(self) -> Coroutine[Any, Any, bytes]:
        """What has come, as soon as something has; b"" at the end. Raises aiohttp's errors."""
        return self._content.readany()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read():
            yield chunk

    async def aclose(self) -> None:
        """Back to the pool after a whole answer to a request that was sent whole; else cut."""
        transport = self._connection.transport
        if self._content.is_eof() and not (transport is not None and transport.get_write_buffer_size()):
            self._connection.release()
        else:
            cut(self._connection)


def cut(connection: Connection) -> None:
    """Close the connection now, whatever of the request has not been sent."""
    if connection.transport is not None:
        connection.transport.abort()
    connection.close()


class BareRequest(aiohttp.ClientRequest):
    """Has the headers that its address makes; aiohttp would add what the client did not send."""

    def update_auto_headers(self, skip_auto_headers: Iterable[str] | None) -> None:
        """Add none."""


class Transport(AiohttpTransport):
    """httpx-aiohttp's transport on aiohttp's connections and parser, without its session's and its request's way
    there: a task to write each request, timers, cookies, redirects. The address goes out as it is, because a signature
    covers its very quoting, and so does each header."""

    def __init__(self, *, client: aiohttp.ClientSession, proxy: str) -> None:
        super().__init__(client=client, trust_env=False)
        self.session = client
        self._proxy = URL(proxy) if proxy else None
        self._targets: dict[str, aiohttp.ClientRequest] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.ByteStream)
        target = self._target(str(request.url))
        connection = await self._connect(target, seconds=request.extensions["timeout"]["connect"])
        try:
            protocol, transport = connection.protocol, connection.transport
            if protocol is None or transport is None or transport.is_closing():
                raise aiohttp.ClientConnectionResetError("The connection was closed before the request was sent.")
            protocol.set_response_params(
                skip_payload=request.method == "HEAD",
                read_until_eof=True,
                auto_decompress=False,
                read_bufsize=READ_SIZE,
            )
            content = b"".join(request.stream)
            head = head_of(request, target, length=len(content))
            transport.writelines((head, content) if content else (head,))
            message, body = await protocol.read()
            while 100 <= message.code < 200 and message.code != SWITCHING:
                message, body = await protocol.read()
        except HttpProcessingError as error:
            cut(connection)
            raise aiohttp.ClientError("The answer is no HTTP.") from error
        except BaseException:
            cut(connection)
            raise
        return httpx.Response(message.code, headers=ReadyHeaders(message.raw_headers), stream=Stream(connection, body))

    async def _connect(self, target: aiohttp.ClientRequest, *, seconds: float) -> Connection:
        """A new connection, or a kept one whose upstream has said nothing since its last answer."""
        connector = self.session.connector
        assert connector is not None
        for _ in range(MOST_STALE):
            connection = await connector.connect(target, traces=[], timeout=patience_of(seconds))
            if connection.protocol is not None and not connection.protocol.should_close:
                break
            cut(connection)
        return connection

    def _target(self, url: str) -> aiohttp.ClientRequest:
        """What aiohttp connects for: the same for all requests to an address."""
        target = self._targets.get(url)
        if target is None:
            if len(self._targets) >= MAX_TARGETS:
                self._targets.clear()
            # aiohttp reads user and password out of the proxy's address.
            target = self._targets[url] = BareRequest(
                "GET", URL(url, encoded=True), loop=asyncio.get_running_loop(), session=self.session, proxy=self._proxy
            )
        return target


def head_of(request: httpx.Request, target: aiohttp.ClientRequest, *, length: int) -> bytes:
    """The request's first lines; raises `ValueError` for a header that would be two."""
    url = target.url
    path = str(url) if target.proxy and url.scheme == "http" else url.raw_path_qs
    parts = [f"{request.method} {path} HTTP/1.1".encode("ascii")]
    given = kept_by(request.headers)
    names = [name for _, name, _ in given]
    # The host, and who we are to the host or to its proxy where their addresses say it.
    for name, value in target.headers.items():
        if name.lower().encode() not in names:
            parts.append(f"\r\n{name}: {value}".encode())
    if length or request.method not in BODILESS:
        parts.append(b"\r\nContent-Length: %d" % length)
    lines = len(parts) - 1
    for original, _, content in given:
        parts += (b"\r\n", original, b": ", content)
        lines += 1
    head = b"".join(parts)
    if head.count(b"\r") != lines or head.count(b"\n") != lines or b"\0" in head:
        raise ValueError("a header's value has more than one line")
    return head + b"\r\n\r\n"


# Addresses repeat from call to call; reading one takes longer than all else that is done here.
@lru_cache(maxsize=1024)
def address(url: str) -> httpx.URL:
    return httpx.URL(url)


@lru_cache(maxsize=16)
def patience_of(connect: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(sock_connect=connect)


class UpstreamClient:
    """The process's sessions, one for each proxy setting; made lazily on the running loop."""

    def __init__(self, *, timers: Timers) -> None:
        self.timers = timers
        self._transports: dict[str, Transport] = {}

    def transport(self, proxy: str) -> Transport:
        if proxy not in self._transports:
            self._transports[proxy] = make_transport(proxy)
        return self._transports[proxy]

    async def open(self, request: UpstreamRequest, *, proxy: str = "") -> Upstream:
        """Send the request and return when status and headers are there; raises `UpstreamError`.

        What changes nothing is sent twice where the connection was closed before an answer, as a kept one may be.
        """
        try:
            return await self._open(request, proxy=proxy)
        except UpstreamUnreachable as error:
            if request.method not in BODILESS or error.reason not in {"disconnected", "reset"}:
                raise
        return await self._open(request, proxy=proxy)

    async def _open(self, request: UpstreamRequest, *, proxy: str) -> Upstream:
        try:
            made = httpx.Request(
                request.method,
                address(request.url),
                headers=ReadyHeaders(request.headers),
                stream=httpx.ByteStream(request.content),
                extensions={"timeout": {"connect": self.timers.connect}},
            )
            return Upstream(await self.transport(proxy).handle_async_request(made))
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, ValueError) as error:
            raise failure(error) from error

    async def close(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()
        self._transports.clear()


def make_transport(proxy: str) -> Transport:
    """A transport of our own session: no limit on connections, no cookies."""
    socks = proxy.startswith("socks")
    connector: aiohttp.BaseConnector = (
        ProxyConnector.from_url(proxy, limit=0, rdns=True, keepalive_timeout=KEEP_ALIVE_SECONDS)
        if socks
        else aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
    )
    session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
    return Transport(client=session, proxy="" if socks else proxy)


def failure(error: Exception) -> UpstreamError:
    """The transport's exception as ours. Judged by aiohttp's own class: httpx-aiohttp calls a dropped connection a
    ConnectTimeout. `reason` stands in the record; no address, no account name goes to the client."""
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) else error
    if isinstance(cause, aiohttp.ServerDisconnectedError):
        return UpstreamUnreachable("The upstream closed the connection.", reason="disconnected", rest="5xx")
    if isinstance(cause, (aiohttp.ConnectionTimeoutError, aiohttp.ServerTimeoutError, asyncio.TimeoutError)):
        return UpstreamTimeout("The upstream could not be reached in time.", reason="connect_timeout", rest="timeout")
    if isinstance(cause, (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)):
        return UpstreamUnreachable("The proxy to the upstream refused.", reason="proxy", rest="5xx")
    if isinstance(cause, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return UpstreamUnreachable("The upstream's certificate is not valid.", reason="tls", rest="5xx")
    if isinstance(cause, aiohttp.ClientConnectorError):
        return UpstreamUnreachable("The upstream could not be reached.", reason="connect", rest="5xx")
    if isinstance(cause, (aiohttp.ClientPayloadError, aiohttp.ClientOSError, OSError)):
        return UpstreamUnreachable("The connection to the upstream broke.", reason="reset", rest="5xx")
    return UpstreamFailed("The upstream's answer could not be read.", reason="protocol", rest="5xx")
