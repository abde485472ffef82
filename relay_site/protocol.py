"""uvicorn's HTTP protocol, but what is written in one step of the event loop leaves in one piece, and who wants to
know that the client has left is called instead of having to wait in a task.

uvicorn writes an answer's headers and its body one after the other, and uvloop sends each at once: a system call more,
and a client woken twice. `--http relay_site.protocol:GatheringProtocol`; without it all works, for a tenth more CPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from relay.slim import LEAVING

# Of a request line and headers, before anybody knows who asks: httptools keeps what comes, without end.
MAX_HEAD_BYTES = 512 * 1024


class Gathering:
    """A transport that holds what is written until the event loop's next step; all else is the real one's."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self._call_soon = asyncio.get_running_loop().call_soon

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._call_soon(self._flush)
        self._parts.append(data)

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class GatheringProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.leaving: set[Callable[[], object]] = set()
        self._reads_head, self._head_bytes = True, 0
        super().connection_made(cast(asyncio.Transport, Gathering(transport)))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._reads_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's headers are too large.")

    def on_message_begin(self) -> None:
        self._reads_head, self._head_bytes = True, 0
        super().on_message_begin()
        self.scope["extensions"] = {LEAVING: self.leaving}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        self._reads_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self.pipeline:
            # uvicorn stops reading at 64 KiB of body until the application asks for more; nobody asks once all is here,
            # and a socket that is not read does not tell that the client has left.
            self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for told in tuple(self.leaving):
            told()
