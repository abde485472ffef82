"""Odd but legal ways to put the same events on the wire."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relay.simulator.base import Event

ENDS = (b"\n", b"\r\n", b"\r")


def reframe(events: Sequence[Event], frames: frozenset[str]) -> list[Event]:
    """Return the events with the same meaning and other bytes; `frames` as docs/simulator.md lists them."""
    last = len(events) - 1
    return [
        Event(frame(event.data, frames, number=number, last=number == last), event.kind)
        for number, event in enumerate(events)
    ]


def frame(data: bytes, frames: frozenset[str], *, number: int, last: bool) -> bytes:
    lines = data.removesuffix(b"\n\n").split(b"\n")
    if "noname" in frames:
        lines = [line for line in lines if not line.startswith(b"event:")]
    if "multi" in frames:
        lines = [part for line in lines for part in split_data(line)]
    if "nospace" in frames:
        lines = [line.replace(b": ", b":", 1) for line in lines]
    if "comments" in frames:
        lines = [b": a comment of its own", b"", b": a comment", *lines, b":"]
    end = line_end(frames, number)
    return end.join(lines) + (b"" if last and "tail" in frames else end + end)


def split_data(line: bytes) -> list[bytes]:
    """Return a data line as two, split where JSON allows white space: behind the first comma of an object.

    All our events begin with short members that hold no comma, so the first one is never inside a string.
    """
    head, comma, tail = line.partition(b",")
    return [head + comma, b"data: " + tail] if comma and line.startswith(b"data: {") else [line]


def line_end(frames: frozenset[str], number: int) -> bytes:
    if "mixed" in frames:
        return ENDS[number % 3]
    return b"\r\n" if "crlf" in frames else b"\r" if "cr" in frames else b"\n"


def pieces(data: bytes, frames: frozenset[str]) -> Iterator[bytes]:
    """Yield the writes that carry one event."""
    if "bytes" in frames:
        yield from (data[index : index + 1] for index in range(len(data)))
    elif "utf8" in frames:
        yield from split_characters(data)
    else:
        yield data


def split_characters(data: bytes) -> Iterator[bytes]:
    """Yield the bytes cut behind the first byte of each character that has several."""
    start = 0
    for index, byte in enumerate(data):
        if byte >= 0xC0:
            yield data[start : index + 1]
            start = index + 1
    yield data[start:]
