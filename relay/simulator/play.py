"""Plays an answer as its script says: in time, in pieces, broken off."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Sequence

from relay.simulator.base import CONTENT, TERMINAL, Dialect, Event, Reply
from relay.simulator.framing import pieces, reframe
from relay.simulator.http import Exchange, Headers
from relay.simulator.script import Script

STREAM_FAULTS = ("pause", "hang", "fail", "reset", "cut", "eof")


class Player:
    def __init__(self, exchange: Exchange, script: Script, dialect: Dialect) -> None:
        self._exchange = exchange
        self._script = script
        self._dialect = dialect
        self._frames = script.words("frame")
        self._whole = False
        self._held = b""  # what `burst` keeps for one write
        self._packer = zlib.compressobj(wbits=31) if script.has("gzip") else None

    async def play(self, reply: Reply) -> None:
        await asyncio.sleep(self._script.seconds("first"))
        if await self._strikes("before"):
            return
        if reply.events is None:
            self._whole = True
            await self._play_body(reply)
        else:
            await self._play_events(reply, reply.events)

    async def _play_body(self, reply: Reply) -> None:
        await asyncio.sleep(self._script.seconds("delay") * self._script.count("chunks"))
        body = gzip.compress(reply.body) if self._script.has("gzip") else reply.body
        half = len(body) // 2
        # Without a length even half a body can end as HTTP wants it.
        length = None if self._script.has("eof") else len(body)
        await self._exchange.start(reply.status, self._headers(reply), length=length)
        for point in ("first", "opened", "0"):
            if await self._strikes(point):
                return
        await self._exchange.send(body[:half])
        if await self._strikes_in_body():
            return
        await self._exchange.send(body[half:])
        await self._exchange.end()

    async def _play_events(self, reply: Reply, events: Sequence[Event]) -> None:
        script = self._script
        if reply.sse:
            events = reframe(events, self._frames)
        await self._exchange.start(reply.status, self._headers(reply))
        if await self._strikes("first"):
            return
        await asyncio.sleep(script.seconds("wait"))
        sent = 0
        for event in events:
            if event.kind == CONTENT and sent == 0 and await self._strikes("0"):
                return
            if event.kind == TERMINAL and await self._strikes("end"):
                return
            if event.kind == CONTENT:
                await self._before_delta(sent)
            await self._send(event.data)
            if event is events[0] and await self._strikes("opened"):
                return
            sent += event.kind == CONTENT
            if event.kind == CONTENT and await self._strikes(str(sent)):
                return
        await self._end()

    async def _before_delta(self, number: int) -> None:
        every = self._script.count("pings")
        if every and number % every == 0 and self._dialect.ping:
            await self._send(self._dialect.ping)
        delay = self._script.seconds("delay")
        if delay:
            await asyncio.sleep(delay)

    async def _send(self, data: bytes) -> None:
        if self._packer:
            data = self._packer.compress(data) + self._packer.flush(zlib.Z_SYNC_FLUSH)
        if "burst" in self._frames:
            self._held += data
            return
        for piece in pieces(data, self._frames):
            await self._exchange.send(piece)
            if len(piece) != len(data):
                await asyncio.sleep(0)

    async def _flush(self) -> None:
        held, self._held = self._held, b""
        await self._exchange.send(held)

    async def _end(self) -> None:
        self._held += self._packer.flush() if self._packer else b""
        await self._flush()
        await self._exchange.end()

    async def _strikes(self, point: str) -> bool:
        """Let the faults of this point happen; returns whether the answer is over."""
        script, exchange = self._script, self._exchange
        if not any(script.point(name) == point for name in STREAM_FAULTS):
            return False
        await self._flush()
        if script.point("pause") == point:
            await asyncio.sleep(float(script.argument("pause")))
        if script.point("hang") == point:
            await asyncio.Event().wait()
        if script.point("fail") == point and not self._whole:
            await self._send(self._dialect.error_event(script.argument("fail"), script))
            await self._end()
        elif script.point("reset") == point:
            exchange.reset()
        elif script.point("cut") == point:
            exchange.cut()
        elif script.point("eof") == point:
            await self._end_early(point)
        return exchange.ended

    async def _strikes_in_body(self) -> bool:
        """A whole body has no deltas: every later point lies in its middle."""
        script = self._script
        points = {script.point(name) for name in STREAM_FAULTS} - {"", "before", "first", "opened", "0"}
        for point in sorted(points):
            if await self._strikes(point):
                return True
        return False

    async def _end_early(self, point: str) -> None:
        if point == "before":
            self._exchange.cut()
        else:
            await self._end()

    def _headers(self, reply: Reply) -> Headers:
        content_type = self._script.text("content_type", reply.content_type)
        extra = [(b"content-type", content_type.encode())]
        if self._script.has("gzip"):
            extra.append((b"content-encoding", b"gzip"))
        scripted = [
            (name.strip().encode(), text.strip().encode())
            for name, _, text in (
                value.decode("latin-1").partition(":")
                for header, value in self._exchange.request.headers
                if header.lower() == b"x-sim-header"
            )
        ]
        return (*extra, *reply.headers, *scripted)
