"""Between a call's task and the response that reads it: one head, then chunks through a bounded buffer.

The task outlives its client. The response only reads; when the client has gone it says so here, and the task decides
what that means. Both run on one event loop, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from msgspec import Struct

MAX_BUFFERED_BYTES = 256 * 1024


class Head(Struct, frozen=True):
    """Status and headers of an answer; `body` is the whole of it, None = chunks follow."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None = None


class Reply:
    """What one client gets."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._head: asyncio.Future[Head] = self._loop.create_future()
        self._chunks: list[bytes] = []
        self._buffered = 0
        self.ended = False
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._keep_alive: asyncio.TimerHandle | None = None
        self._last_put = 0.0
        self.started = False
        self.status: int | None = None  # of the answer, once it has started
        self.client_left = False
        self.on_client_left: Callable[[], None] | None = None
        self.on_held: Callable[[bool], None] | None = None  # told where the client lets the call wait, and when no more

    # -- the call's side -----------------------------------------------------------------------------

    def start(self, head: Head) -> None:
        """Give status and headers; the first one counts."""
        self.started = True
        if self.status is None:
            self.status = head.status
        if not self._head.done():
            self._head.set_result(head)
        self._last_put = self._loop.time()

    def keep_alive(self, block: bytes, *, after: float, at_once: bool = False) -> None:
        """From now on put `block` between events whenever nothing else was put for `after` seconds."""
        if at_once and not self.ended:
            self._append(block)
        if not self.ended and self._keep_alive is None:
            self._keep_alive = self._loop.call_later(after, self._put_keep_alive, block, after)

    def _put_keep_alive(self, block: bytes, after: float) -> None:
        silent = self._loop.time() - self._last_put
        if silent >= after and not self._chunks:
            # A client that reads nothing needs no sign of life either, and must not fill the buffer.
            self._append(block)
        wait = after if silent >= after else after - silent
        self._keep_alive = self._loop.call_later(wait, self._put_keep_alive, block, after)

    async def put(self, chunk: bytes) -> None:
        """Hand over whole events; waits while the client reads too slowly. A client that left is sent nothing."""
        if self.client_left or not chunk:
            return
        self._append(chunk)
        if self._buffered > MAX_BUFFERED_BYTES:
            await self._room()

    async def _room(self) -> None:
        held = self.on_held or bool
        held(True)
        try:
            while self._buffered > MAX_BUFFERED_BYTES and not self.client_left:
                self._writable = self._loop.create_future()
                await self._writable
        finally:
            held(False)

    def _append(self, chunk: bytes) -> None:
        self._last_put = self._loop.time()
        self._chunks.append(chunk)
        self._buffered += len(chunk)
        self._wake_reader()

    def end(self) -> None:
        """No more chunks, and nobody to tell that the client leaves: the call is settled. Idempotent."""
        self.ended = True
        self.on_client_left = None
        if self._keep_alive is not None:
            self._keep_alive.cancel()
            self._keep_alive = None
        if not self._head.done():
            self._head.cancel()
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    # -- the response's side -------------------------------------------------------------------------

    async def head(self) -> Head:
        """Wait for the head; a client that leaves meanwhile cancels this. One reader, once."""
        return await self._head

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield what was put, joined where several wait."""
        while True:
            if self._chunks:
                chunk = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                self._buffered = 0
                if self._writable is not None and not self._writable.done():
                    self._writable.set_result(None)
                yield chunk
            elif self.ended:
                return
            else:
                self._readable = self._loop.create_future()
                await self._readable

    def leave(self) -> None:
        """The client has gone; idempotent, and meaningless once everything was handed over."""
        if self.client_left or (self.ended and not self._chunks):
            return
        self.client_left = True
        self._chunks.clear()
        self._buffered = 0
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if self.on_client_left is not None:
            self.on_client_left()
