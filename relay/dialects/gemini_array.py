"""Gemini's streams as they are framed: events, or the elements of one JSON array; the first byte tells which."""

from __future__ import annotations

import re

from relay.errors import UpstreamFailed
from relay.sse import MAX_EVENT_BYTES, SseFramer

SPACE = b" \t\r\n"
MARK = re.compile(rb'["{}\[\]]')
STRING_END = re.compile(rb'["\\]')
OPENING = frozenset(b"{[")
QUOTE, BACKSLASH = b'"\\'


class ElementFramer:
    """Cuts a JSON array behind its last whole element, so that bytes stay as they came; the closing `]` is one more
    piece, and a single object counts as an element."""

    __slots__ = ("_base", "_depth", "_escaped", "_in_string", "_size", "_tail")

    def __init__(self, *, array: bool) -> None:
        self._tail: list[bytes] = []  # the pieces of what is not whole yet; each byte is looked at once
        self._size = 0
        self._depth = 0
        self._base = 1 if array else 0
        self._in_string = False
        self._escaped = False

    def feed(self, chunk: bytes) -> bytes:
        """Return what is complete; raises `UpstreamFailed` for an element beyond 64 MiB."""
        cut = self._scan(chunk)
        if not cut:
            self._keep(chunk)
            return b""
        whole = b"".join((*self._tail, chunk[:cut]))
        self._tail, self._size = [], 0
        self._keep(chunk[cut:])
        return whole

    def _keep(self, rest: bytes) -> None:
        self._tail.append(rest)
        self._size += len(rest)
        if self._size > MAX_EVENT_BYTES:
            raise UpstreamFailed("The upstream sent an event that is too large.", reason="event_too_large")

    def _scan(self, chunk: bytes) -> int:
        """Go through the next bytes; returns the offset behind the last whole piece, 0 where none ends in them."""
        cut = 0
        position = 1 if self._escaped and chunk else 0
        self._escaped = self._escaped and not chunk
        while match := (STRING_END if self._in_string else MARK).search(chunk, position):
            mark, position = chunk[match.start()], match.end()
            if mark == BACKSLASH:
                self._escaped = position == len(chunk)
                position += 1
            elif mark == QUOTE:
                self._in_string = not self._in_string
            elif mark in OPENING:
                self._depth += 1
            else:
                self._depth -= 1
                cut = position if self._depth <= self._base else cut
        return len(chunk) if self._depth <= 0 and cut else cut

    def flush(self) -> bytes:
        tail, self._tail, self._size = b"".join(self._tail), [], 0
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
