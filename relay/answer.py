"""Passing an upstream answer on: bytes to the client, a copy to the meter, the last bytes held back."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from msgspec import Struct

from accounts import health
from relay.call import Account
from relay.errors import NotRecordable, UpstreamError, UpstreamFailed
from relay.flight import Flight
from relay.providers import PROVIDERS
from relay.providers.base import Framer, Headers, Provider
from relay.providers.headers import returned
from relay.reply import Head
from relay.upstream import Upstream

MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_ERROR_BYTES = 1024 * 1024
# Events before the first content are held back, so that another account can still take the call: so many bytes at
# most, and for so many seconds, after which a client should see that its answer has begun.
MAX_HELD_BYTES = 1024 * 1024
HOLD_SECONDS = 2.0
PROGRESS_SECONDS = 5.0
# After its terminal event an upstream ends the response at once; waiting for that keeps the connection for the next.
LINGER_SECONDS = 0.02
# Names of what was left out, which may stand in the client's body as anything.
UNPRINTABLE = re.compile(r"[^ -~]")
MAX_DROPPED = 1000
SSE_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"connection", b"keep-alive"),
    (b"x-accel-buffering", b"no"),
)


class Last(Struct, frozen=True):
    """What goes out only when the record is on disk: a whole answer, or the end of a stream."""

    head: Head | None = None
    block: bytes = b""


async def pass_answer_on(flight: Flight, upstream: Upstream, account: Account, *, dropped: tuple[str, ...]) -> Last:
    """Relay one upstream answer, all but its last bytes. Raises `UpstreamError` for anything but success."""
    provider = PROVIDERS[account.kind]
    if upstream.status < 200:
        raise UpstreamFailed("The upstream switched to another protocol.", reason="protocol", rest="5xx")
    if upstream.status >= 300:
        body = await upstream.read(limit=MAX_ERROR_BYTES)
        error = provider.classify(upstream.status, upstream.headers, body, now=time.time())
        error.body = provider.native_error(flight.call, error)
        raise error
    flight.record.upstream_request_id = provider.request_id(upstream.headers)[:200]
    headers = [*returned(upstream.headers), *own_headers(flight, dropped)]
    if flight.call.envelope.stream and provider.streams(upstream.headers):
        head = Head(upstream.status, stream_headers(headers, reframed=provider.reframes))
        hide = provider.hidden(flight.call, account) or unchanged
        return Last(block=hide(await pass_stream_on(flight, upstream, provider, head=head, hide=hide)))
    if flight.reply.started:
        raise UpstreamFailed("The upstream answered without streaming.", reason="not_a_stream")
    return Last(head=Head(upstream.status, tuple(headers), await whole_body(flight, upstream, provider)))


def stream_headers(headers: list[tuple[bytes, bytes]], *, reframed: bool) -> Headers:
    """The headers of an answer that is relayed as events; its type is ours where the framing is."""
    own = SSE_HEADERS if reframed else SSE_HEADERS[1:]
    names = {name for name, _ in own}
    return (*(item for item in headers if item[0] not in names), *own)


async def whole_body(flight: Flight, upstream: Upstream, provider: Provider) -> bytes:
    """Read and meter an answer that is not streamed."""
    flight.watch.expect("idle", flight.run.timers.idle)
    body = await upstream.read(limit=MAX_ANSWER_BYTES, touch=flight.watch.touch)
    body = provider.whole(flight.call, body)
    assert flight.meter is not None
    flight.first_token = flight.elapsed()
    flight.meter.whole(body)
    if flight.meter.error:
        raise in_band(flight, upstream, provider)
    return body


def unchanged(block: bytes) -> bytes:
    return block


async def pass_stream_on(
    flight: Flight, upstream: Upstream, provider: Provider, *, head: Head, hide: Callable[[bytes], bytes]
) -> bytes:
    """Relay a stream up to its terminal event; returns that and what follows it. What `hide` leaves out of a block the
    meter has seen all the same."""
    meter, watch, reply = flight.meter, flight.watch, flight.reply
    assert meter is not None
    framer = provider.framer(flight.call, flight.model)
    block, cut = await opening(flight, upstream, provider, framer)
    await begin(flight, head)
    await reply.put(hide(block if cut < 0 else block[:cut]))
    await asyncio.sleep(0)  # the client's first bytes go out now, not after all that has come already
    while cut < 0:
        block = b""
        while not block and (chunk := await upstream.next()):
            now = watch.touch()
            block = framer.feed(chunk)
        if not block:
            break
        cut = meter.feed(block)
        if flight.first_token is None and meter.content_seen:
            flight.first_token = flight.elapsed()
        if now - flight.last_progress > PROGRESS_SECONDS:
            note_progress(flight, now)
        await reply.put(hide(block if cut < 0 else block[:cut]))
    else:
        return await rest_of(flight, upstream, framer, block[cut:])
    tail = framer.flush()
    if tail and meter.feed(tail) >= 0:
        return tail
    raise cut_short()


async def opening(flight: Flight, upstream: Upstream, provider: Provider, framer: Framer) -> tuple[bytes, int]:
    """The events with which the client's answer begins, and where in them the terminal event stands, or -1.

    What comes before the first content is held back for a moment: until the client has something, another account may
    take the call (DESIGN section 2). Raises the `UpstreamError` that the stream says, or its end; an answer that had
    begun, and says itself why it failed, passes as it came where no other account would do better."""
    meter, watch = flight.meter, flight.watch
    assert meter is not None
    held, until = b"", 0.0
    while True:
        chunk = await (upstream.next_within(until - watch.touch()) if held else upstream.next())
        if chunk is None:
            return held, -1
        now = watch.touch()
        block = framer.feed(chunk) if chunk else framer.flush()
        cut = meter.feed(block) if block else -1
        cut += len(held) if cut >= 0 else 0
        held += block
        if meter.error:
            error = in_band(flight, upstream, provider)
            if error.try_next_account or not (meter.failed_answer and cut > 0):
                raise error
        if not chunk and cut < 0:
            raise cut_short()
        if meter.content_seen or cut >= 0 or len(held) > MAX_HELD_BYTES:
            return held, cut
        if held and not until:
            until = now + HOLD_SECONDS
            watch.expect("idle", flight.run.timers.idle)


def cut_short() -> UpstreamFailed:
    return UpstreamFailed("The upstream's stream ended before its end.", reason="cut_stream", rest="5xx")


async def begin(flight: Flight, head: Head) -> None:
    """The answer begins here: the open entry must be on disk, then the client gets its first byte."""
    await recorded(flight)
    if flight.meter is not None and flight.meter.content_seen:
        flight.first_token = flight.elapsed()
    flight.forwarded = True
    flight.call.forget_body()
    if flight.account is not None:
        await health.answered(flight.run.store, flight.account, flight.model, now=time.time())
    flight.watch.expect("idle", flight.run.timers.idle)
    flight.reply.start(head)
    flight.reply.keep_alive(flight.dialect.keep_alive, after=flight.run.keep_alive_after)


async def recorded(flight: Flight) -> None:
    """Wait until the journal's open entry is on disk; raises `NotRecordable`."""
    opened = flight.opened
    assert opened is not None
    try:
        await (opened if opened.done() else asyncio.shield(opened))
    except OSError as error:
        raise NotRecordable("This relay can't record calls at the moment.", retry_after=5) from error


async def rest_of(flight: Flight, upstream: Upstream, framer: Framer, last: bytes) -> bytes:
    """The last bytes: the terminal event and what follows it, normally nothing. An upstream that stays open is not
    waited for; where another end comes, the one before it was none, and goes out."""
    meter = flight.meter
    assert meter is not None
    try:
        while True:
            async with asyncio.timeout(meter.linger or LINGER_SECONDS):
                chunk = await upstream.next()
            flight.watch.touch()
            block = framer.feed(chunk) if chunk else framer.flush()
            cut = meter.feed(block) if block and meter.linger else -1
            if cut >= 0 and not meter.error:
                await flight.reply.put(last + block[:cut])
                last, block = b"", block[cut:]
            last += block
            if not chunk:
                return last
    except (TimeoutError, UpstreamError):
        return last


def in_band(flight: Flight, upstream: Upstream, provider: Provider) -> UpstreamError:
    """An error inside a 200, before any content: as if it had come with its own status."""
    assert flight.meter is not None
    status = flight.dialect.in_band_status(flight.meter.error)
    return provider.classify(status, upstream.headers, flight.meter.error_body, now=time.time())


def note_progress(flight: Flight, now: float) -> None:
    """Put the counts so far into the journal, so that a death of this process loses little of them."""
    flight.last_progress = now
    flight.run.note_progress(flight)


def own_headers(flight: Flight, dropped: tuple[str, ...] = ()) -> list[tuple[bytes, bytes]]:
    """Baton's own headers on every answer."""
    headers = [(b"x-request-id", flight.call.id.encode())]
    if flight.rates:
        headers += flight.dialect.rate_headers(flight.rates, now=time.time())
    if dropped:
        headers.append((b"x-relay-dropped", UNPRINTABLE.sub("?", ",".join(dropped))[:MAX_DROPPED].encode()))
    return headers
