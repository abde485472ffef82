"""relay/upstream.py: bytes up and down unchanged over a real socket, and every way a connection dies, named."""

from __future__ import annotations

import asyncio
import gzip
import socket
import zlib
from collections.abc import Callable

import httpx
import pytest
from asgiref.sync import async_to_sync

from relay.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from relay.providers.base import UpstreamRequest
from relay.upstream import ReadyHeaders, Timers, UpstreamClient
from tests.listening import Serve, listening

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def exchange(serve: Serve, *, timers: Timers | None = None) -> tuple[int, bytes]:
    """Serve one connection with `serve`, call it, and return status and body."""

    async def story() -> tuple[int, bytes]:
        client = UpstreamClient(timers=timers or Timers())
        async with listening(serve) as port:
            try:
                request = UpstreamRequest("POST", f"http://127.0.0.1:{port}/v1/x?beta=true", ((b"x-a", b"1"),), b"{}")
                upstream = await client.open(request)
                try:
                    return upstream.status, await upstream.read(limit=1000)
                finally:
                    await upstream.close()
            finally:
                await client.close()

    return async_to_sync(story)()


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(2)


def answering(data: bytes, *, abort: bool = False, seen: list[bytes] | None = None) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await request_of(reader)
        if seen is not None:
            seen.append(received)
        writer.write(data)
        await writer.drain()
        if abort:
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
            await asyncio.sleep(0.05)
        writer.transport.abort() if abort else writer.close()

    return serve


def test_a_request_goes_up_as_it_was_made() -> None:
    seen: list[bytes] = []
    status, body = exchange(answering(OK + b"3\r\nabc\r\n0\r\n\r\n", seen=seen))
    assert (status, body) == (200, b"abc")
    head, _, content = seen[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/x?beta=true HTTP/1.1"
    assert sorted(line.split(b":")[0].lower() for line in lines[1:]) == [b"content-length", b"host", b"x-a"]
    assert content == b"{}"


@pytest.mark.parametrize("value", [b"1\r\nx-b: 2", b"1\n", b"1\r", b"1\0"])
def test_a_header_that_would_be_two_goes_nowhere(value: bytes) -> None:
    seen: list[bytes] = []

    async def story() -> None:
        client = UpstreamClient(timers=Timers())
        async with listening(answering(OK, seen=seen)) as port:
            try:
                await client.open(UpstreamRequest("POST", f"http://127.0.0.1:{port}/", ((b"x-a", value),), b"{}"))
            finally:
                await client.close()

    with pytest.raises(UpstreamError) as caught:
        async_to_sync(story)()
    assert (caught.value.reason, seen) == ("protocol", [])


def test_a_header_s_bytes_go_up_as_they_are() -> None:
    seen: list[bytes] = []

    async def story() -> None:
        client = UpstreamClient(timers=Timers())
        headers = ((b"x-a", "\xe4".encode()), (b"x-a", b"\xe4"), (b"host", b"own.test"))
        async with listening(answering(OK + b"0\r\n\r\n", seen=seen)) as port:
            upstream = await client.open(UpstreamRequest("POST", f"http://127.0.0.1:{port}/", headers, b"{}"))
            await upstream.close()
            await client.close()

    async_to_sync(story)()
    lines = seen[0].split(b"\r\n")
    assert [line for line in lines if line.lower().startswith((b"x-a", b"host"))] == [
        b"x-a: \xc3\xa4", b"x-a: \xe4", b"host: own.test",
    ]  # fmt: skip


def test_an_answer_before_the_request_is_all_sent_is_read_and_its_connection_not_used_again() -> None:
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.transport.abort()

    async def story() -> None:
        client = UpstreamClient(timers=Timers())
        async with listening(serve) as port:
            for _ in range(2):
                request = UpstreamRequest("POST", f"http://127.0.0.1:{port}/", (), b"x" * 30_000_000)
                upstream = await client.open(request)
                assert (upstream.status, await upstream.read(limit=10)) == (413, b"no")
                await upstream.close()
            await client.close()

    async_to_sync(story)()
    assert opened == 2


def test_a_call_that_is_cancelled_while_its_request_is_sent_sends_no_more_of_it() -> None:
    read = 0

    async def story() -> None:
        started, cancelled, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal read
            await reader.readuntil(b"\r\n\r\n")
            started.set()
            await cancelled.wait()
            try:
                while data := await reader.read(2**20):
                    read += len(data)
            finally:
                ended.set()

        client = UpstreamClient(timers=Timers())
        async with listening(serve) as port:
            request = UpstreamRequest("POST", f"http://127.0.0.1:{port}/", (), b"x" * 60_000_000)
            call = asyncio.create_task(client.open(request))
            await asyncio.wait_for(started.wait(), 5)
            call.cancel()
            await asyncio.wait([call])
            cancelled.set()
            await asyncio.wait_for(ended.wait(), 5)
            await client.close()

    async_to_sync(story)()
    assert read < 30_000_000


def closing_after(answers: int, *, late: bytes = b"") -> Serve:
    """Answers so many requests on a connection, says `late`, and closes it without a word of that."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(answers):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
        if late:
            await asyncio.sleep(0.05)
            writer.write(late)
            await asyncio.sleep(1)
        else:
            await reader.readuntil(b"\r\n\r\n")

    return serve


def three_gets(serve: Serve) -> list[tuple[int, bytes]]:
    async def story() -> list[tuple[int, bytes]]:
        client, found = UpstreamClient(timers=Timers()), []
        async with listening(serve) as port:
            for _ in range(3):
                upstream = await client.open(UpstreamRequest("GET", f"http://127.0.0.1:{port}/", (), b""))
                found.append((upstream.status, await upstream.read(limit=10)))
                await upstream.close()
                await asyncio.sleep(0.1)
            await client.close()
        return found

    return async_to_sync(story)()


def test_a_get_on_a_kept_connection_that_was_closed_is_sent_again() -> None:
    assert three_gets(closing_after(1)) == [(200, b"hi")] * 3


def test_what_an_upstream_says_unasked_is_nobody_s_answer() -> None:
    late = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 5\r\n\r\nstale"
    assert three_gets(closing_after(1, late=late)) == [(200, b"hi")] * 3


def test_a_server_that_speaks_first_is_no_upstream() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.test ESMTP\r\n")
        await reader.read(1)

    with pytest.raises(UpstreamError):
        exchange(serve)


def test_an_interim_answer_is_not_the_answer() -> None:
    assert exchange(answering(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK + b"3\r\nabc\r\n0\r\n\r\n")) == (
        200,
        b"abc",
    )


def test_an_upstream_that_closes_without_an_answer_is_unreachable() -> None:
    with pytest.raises(UpstreamUnreachable) as caught:
        exchange(answering(b""))
    assert caught.value.reason == "disconnected"


def test_a_connection_cut_inside_a_body_is_not_a_clean_end() -> None:
    with pytest.raises(UpstreamUnreachable) as caught:
        exchange(answering(OK + b"3\r\nabc\r\n"))
    assert caught.value.reason == "reset"


def test_a_reset_inside_a_body_is_named_reset() -> None:
    with pytest.raises(UpstreamUnreachable) as caught:
        exchange(answering(OK + b"3\r\nabc\r\n", abort=True))
    assert caught.value.reason == "reset"


def test_a_port_where_nobody_listens_is_unreachable() -> None:
    async def story() -> None:
        client = UpstreamClient(timers=Timers())
        try:
            await client.open(UpstreamRequest("POST", "http://127.0.0.1:1/", (), b""))
        finally:
            await client.close()

    with pytest.raises(UpstreamUnreachable) as caught:
        async_to_sync(story)()
    assert caught.value.reason == "connect"


def test_an_address_that_never_accepts_times_out_at_connect() -> None:
    """A listener whose backlog is full neither accepts nor refuses."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))

        async def story() -> None:
            client = UpstreamClient(timers=Timers(connect=0.2))
            try:
                await client.open(UpstreamRequest("POST", f"http://127.0.0.1:{port}/", (), b""))
            finally:
                await client.close()

        with pytest.raises(UpstreamTimeout) as caught:
            async_to_sync(story)()
    assert caught.value.reason == "connect_timeout"


def test_an_answer_beyond_the_limit_is_refused() -> None:
    with pytest.raises(UpstreamError) as caught:
        exchange(answering(OK + b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n"))
    assert caught.value.reason == "answer_too_large"


BARE = zlib.compressobj(wbits=-15)
CODED = {
    "gzip": (b"gzip", gzip.compress(b"abc" * 9)),
    "in any case": (b"GZip", gzip.compress(b"abc" * 9)),
    "two of them": (b"gzip", gzip.compress(b"abc" * 4) + gzip.compress(b"abc" * 5)),
    "deflate": (b"deflate", zlib.compress(b"abc" * 9)),
    "bare deflate": (b"deflate", BARE.compress(b"abc" * 9) + BARE.flush()),
    "identity": (b"identity", b"abc" * 9),
}


def coded(coding: bytes, body: bytes, *, step: int, status: bytes = b"200 OK") -> Serve:
    head = b"HTTP/1.1 %s\r\ncontent-encoding: %s\r\ntransfer-encoding: chunked\r\n\r\n" % (status, coding)
    pieces = [body[start : start + step] for start in range(0, len(body), step)]
    return answering(head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n")


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("coding, body", CODED.values(), ids=CODED.keys())
def test_an_answer_that_is_compressed_unasked_is_read_all_the_same(coding: bytes, body: bytes, step: int) -> None:
    assert exchange(coded(coding, body, step=step, status=b"400 Bad")) == (400, b"abc" * 9)


@pytest.mark.parametrize(
    "coding, damage, reason",
    [(b"br", bytes, "encoding"), (b"gzip", bytes.upper, "encoding"), (b"gzip", lambda body: body[:-9], "reset")],
)
def test_an_answer_that_cannot_be_decompressed_is_the_upstream_s_failure(
    coding: bytes, damage: Callable[[bytes], bytes], reason: str
) -> None:
    with pytest.raises(UpstreamError) as caught:
        exchange(coded(coding, damage(b"\x1f\x8bno gzip" if damage is bytes.upper else gzip.compress(b"abc")), step=99))
    assert caught.value.reason == reason


def test_a_decompression_bomb_comes_in_small_pieces_with_turns_for_others_between() -> None:
    async def story() -> None:
        client, sizes, turns = UpstreamClient(timers=Timers()), [], 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async with listening(coded(b"gzip", gzip.compress(bytes(10_000_000)), step=10**6)) as port:
            upstream = await client.open(UpstreamRequest("POST", f"http://127.0.0.1:{port}/", (), b"{}"))
            other = asyncio.create_task(others())
            while piece := await upstream.next():
                sizes.append(len(piece))
            other.cancel()
            await upstream.close()
            await client.close()
        assert (sum(sizes), max(sizes)) == (10_000_000, 64 * 1024)
        assert turns > len(sizes) / 2

    async_to_sync(story)()


def test_an_answer_that_is_no_http_is_a_failure() -> None:
    with pytest.raises(UpstreamError) as caught:
        exchange(answering(b"HELLO\r\n\r\n"))
    assert caught.value.reason == "protocol"


def test_headers_that_are_bytes_already_are_httpx_headers_all_the_same() -> None:
    pairs = ((b"X-One", b"1"), (b"x-two", b"\xe4"), (b"x-two", b"3"))
    ready = httpx.Request("GET", "http://upstream.test", headers=ReadyHeaders(pairs)).headers
    assert (ready.raw[-3:], ready["x-one"], ready.get_list("X-Two")) == (list(pairs), "1", ["\xe4", "3"])


def test_a_body_that_breaks_the_framing_while_nobody_waits_is_the_upstreams_failure() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"1\r\nx\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"zz\r\n")
        await writer.drain()
        await reader.read(1)
        writer.close()

    async def story() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = UpstreamClient(timers=Timers(connect=2))
        port = server.sockets[0].getsockname()[1]
        upstream = await client.open(UpstreamRequest("GET", f"http://127.0.0.1:{port}/", (), b""))
        try:
            assert await upstream.next() == b"x"
            assert await upstream.next_within(0.3) is None
            with pytest.raises(UpstreamError):
                await asyncio.wait_for(upstream.next(), 2)
        finally:
            await upstream.close()
            await client.close()
            server.close()

    async_to_sync(story)()
