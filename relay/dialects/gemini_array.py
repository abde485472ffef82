"""Gemini's streams as they are framed: events, or the elements of one JSON array; the first byte tells which."""

from __future__ import annotations

import re

from relay.errors import UpstreamFailed
from relay.sse import MAX_EVENT_BYTES, SseFramer

SPACE = b" \t\r\n"
MARK = re.compile(rb'["{}\[\]]')
STRING_END = re.compile(rb'["\\]')
OPENING, CLOSING = frozenset(b"{["), frozenset(b"}]")
QUOTE, BACKSLASH = b'"\\'


class ElementFramer:
    """Cuts a JSON array behind its last whole element, so that bytes stay as they came; the closing `]` is one more
    piece, and a single object counts as an element."""

    __slots__ = ("_base", "_depth", "_in_string", "_position", "_tail")

    def __init__(self, *, array: bool) -> None:
        self._tail = b""
        self._position = 0  # in the tail: what is before it was looked at
        self._depth = 0
        self._base = 1 if array else 0
        self._in_string = False

    def feed(self, chunk: bytes) -> bytes:
        """Return what is complete; raises `UpstreamFailed` for an element beyond 64 MiB."""
        data = self._tail + chunk if self._tail else chunk
        cut = self._scan(data)
        self._tail = data[cut:]
        self._position -= cut
        if len(self._tail) > MAX_EVENT_BYTES:
            raise UpstreamFailed("The upstream sent an event that is too large.", reason="event_too_large")
        return data[:cut]

    def _scan(self, data: bytes) -> int:
        """Go on from the last position to the end; returns the offset behind the last whole piece."""
        cut, position = 0, self._position
        while True:
            if self._in_string:
                match = STRING_END.search(data, position)
                if match is None:
                    break
                if data[match.start()] == BACKSLASH:
                    if match.end() == len(data):
                        self._position = match.start()
                        return cut
                    position = match.end() + 1
                    continue
                self._in_string = False
            else:
                match = MARK.search(data, position)
                if match is None:
                    break
                mark = data[match.start()]
                if mark == QUOTE:
                    self._in_string = True
                elif mark in OPENING:
                    self._depth += 1
                elif mark in CLOSING:
                    self._depth -= 1
                    cut = match.end() if self._depth <= self._base else cut
            position = match.end()
        self._position = len(data)
        return len(data) if self._depth <= 0 and cut else cut

    def flush(self) -> bytes:
        tail, self._tail, self._position = self._tail, b"", 0
        return tail


class GeminiFramer:
    """Whichever of the two the upstream sends."""

    __slots__ = ("_framer", "_head")

    def __init__(self) -> None:
        self._framer: SseFramer | ElementFramer | None = None
        self._head = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return what is complete, byte for byte; raises `UpstreamFailed` for what is too large."""
        if self._framer is None:
            self._head += chunk
            first = self._head.lstrip(SPACE)[:1]
            if not first:
                return b""
            self._framer = ElementFramer(array=first == b"[") if first in b"[{" else SseFramer()
            chunk, self._head = self._head, b""
        return self._framer.feed(chunk)

    def flush(self) -> bytes:
        head, self._head = self._head, b""
        return head if self._framer is None else self._framer.flush()


def is_array(block: bytes) -> bool:
    """Whether a stream that begins so is a JSON array (or one object), and no stream of events."""
    return block.lstrip(SPACE)[:1] in (b"[", b"{")


def elements(block: bytes) -> tuple[bytes, int]:
    """The whole elements of a block as a JSON array of their own, and the offset of the stream's closing `]`, -1
    without it."""
    end = block.rstrip(SPACE)
    # An element ends with `}`, so that a bracket at the end is the stream's own.
    closing = len(end) - 1 if end.endswith(b"]") else -1
    inner = (end[:closing] if closing >= 0 else end).lstrip(SPACE)
    inner = inner.removeprefix(b"[").lstrip(SPACE).removeprefix(b",").rstrip(SPACE)
    return b"[" + inner + b"]", closing
