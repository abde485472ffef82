"""Server-Sent Events, bytes to bytes. Lines end at CRLF, LF or CR and nothing else (WHATWG HTML, section 9.2.5).

`str.splitlines` also splits on U+2028, U+2029 and U+0085, which stand unescaped in JSON: never decode before splitting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from relay.errors import UpstreamFailed

BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
LINE = re.compile(rb"\r\n|\n|\r")
BOM = b"\xef\xbb\xbf"  # may stand before a stream's first line, and belongs to no field's name
MAX_EVENT_BYTES = 64 * 1024 * 1024


class SseFramer:
    """Cuts a byte stream behind its last blank line, so that whole events go on and the rest waits."""

    __slots__ = ("_edge", "_size", "_tail")

    def __init__(self) -> None:
        self._tail: list[bytes] = []  # in pieces: an image of megabytes comes in a thousand, and is joined once
        self._size = 0
        self._edge = b""  # the last three bytes: a blank line may have begun there

    def feed(self, chunk: bytes) -> bytes:
        """Return what is complete, byte for byte; raises `UpstreamFailed` for an event beyond 64 MiB."""
        # The plain case first: nearly every upstream ends its writes with an event's end.
        if chunk.endswith(b"\n\n"):
            return self._join(chunk)
        seen = self._edge + chunk
        cut = last_event_end(seen)
        if not cut:
            self._keep(chunk, edge=seen)
            return b""
        data = self._join(chunk)
        cut += len(data) - len(seen)
        if rest := data[cut:]:
            self._keep(rest, edge=rest)
        return data[:cut]

    def flush(self) -> bytes:
        return self._join(b"")

    def _keep(self, chunk: bytes, *, edge: bytes) -> None:
        self._tail.append(chunk)
        self._size += len(chunk)
        self._edge = edge[-3:]
        if self._size > MAX_EVENT_BYTES:
            raise UpstreamFailed("The upstream sent an event that is too large.", reason="event_too_large")

    def _join(self, chunk: bytes) -> bytes:
        if not self._tail:
            return chunk
        data = b"".join([*self._tail, chunk])
        self._tail, self._size, self._edge = [], 0, b""
        return data


def last_event_end(data: bytes) -> int:
    """Return the offset behind the last blank line, 0 if there is none.

    A CR at the very end may be half of a CRLF: that line is not over yet.
    """
    whole = data[:-1] if data.endswith(b"\r") else data
    if b"\r" not in whole:
        return whole.rfind(b"\n\n") + 2 if b"\n\n" in whole else 0
    end = 0
    for match in BLANK_LINE.finditer(whole):
        end = match.end()
    return end


def events(block: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield `(offset, event name, data)` for each event of a block; data lines are joined by LF (same section)."""
    # A regular expression costs five times as much as looking for what nearly every upstream ends its lines with.
    plain = b"\r" not in block
    start, size = 0, len(block)
    while start < size:
        end = event_end(block, start, plain=plain)
        name, data = b"", None
        event = block[start:end] if start else block[:end].removeprefix(BOM)
        for line in event.split(b"\n") if plain else LINE.split(event):
            field, _, value = line.partition(b":")
            if field == b"data":
                value = value[1:] if value.startswith(b" ") else value
                data = value if data is None else data + b"\n" + value
            elif field == b"event":
                name = value.removeprefix(b" ")
        if data is not None:
            yield start, name, data
        start = end


def event_end(block: bytes, start: int, *, plain: bool) -> int:
    """The offset behind the event that begins at `start`; `plain` = no line ends with CR."""
    if plain:
        end = block.find(b"\n\n", start)
        return len(block) if end < 0 else end + 2
    match = BLANK_LINE.search(block, start)
    return match.end() if match else len(block)
