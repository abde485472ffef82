"""What stands in a journal segment: one checksummed line an entry, and how whole lines are told from torn ones.

    1 e 1764547200123 00000871 9ae1f00c 01930c5e-7b3a-7f41-9c1d-2f6f3c1e8a55 {"id":...}

Format version, kind, Unix milliseconds, length of the JSON, CRC-32 of all that and of what follows it, call id, JSON.
JSON escapes line ends, so a reader that lost its way finds the next line by its first bytes and proves it by its sum.
No I/O in here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar
from zlib import crc32

import msgspec

from relay.call import Record
from relay.state.base import Hold

T = TypeVar("T")
MAX_PAYLOAD = 99_999_999  # what eight digits can say
_HEAD = re.compile(rb"(1 ([oper]) (\d{13}) (\d{8})) ([0-9a-f]{8}) ((\S{1,64}) )")
MAX_HEAD = 4 + 14 + 9 + 9 + 65
_NEXT = b"\n1 "
# Whatever a record carries: text, rather than no record.
_encode = msgspec.json.Encoder(enc_hook=str).encode
_SURROGATES = re.compile("[\x00\ud800-\udfff]")


class Kind(Enum):
    """What an entry says of its call; the byte stands in the line."""

    OPEN = b"o"  # admitted: the record as it would be if the process died now, and its reservation
    PROGRESS = b"p"  # the record with the counts seen so far
    END = b"e"  # the record
    RECOVERED = b"r"  # the record that whoever found this journal made, and the reservation to settle


class Opening(msgspec.Struct, frozen=True):
    """What OPEN and RECOVERED entries carry."""

    record: Record
    holds: tuple[Hold, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One whole line, its JSON not yet read."""

    kind: Kind
    call_id: str
    at: float  # Unix seconds
    payload: bytes

    def record(self) -> Record:
        """Return the record; raises `msgspec.MsgspecError` where the JSON is none."""
        return self.opening().record if self.kind in _WITH_HOLDS else _read(self.payload, _RECORD)

    def opening(self) -> Opening:
        """Return record and holds of an OPEN or RECOVERED entry; raises like `record`."""
        return _read(self.payload, _OPENING)


_WITH_HOLDS = frozenset({Kind.OPEN, Kind.RECOVERED})
_RECORD = msgspec.json.Decoder(Record)
_OPENING = msgspec.json.Decoder(Opening)
_KINDS = {kind.value: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found in a piece of a segment: entries with the offset behind each, bytes read, bytes given up."""

    entries: list[tuple[Entry, int]]
    used: int
    torn: int


def encode_open(record: Record, holds: Sequence[Hold], *, at: float) -> bytes:
    return _line(Kind.OPEN, record.id, _payload(Opening(record=record, holds=tuple(holds))), at=at)


def encode_recovered(record: Record, holds: Sequence[Hold], *, at: float) -> bytes:
    return _line(Kind.RECOVERED, record.id, _payload(Opening(record=record, holds=tuple(holds))), at=at)


def encode_progress(record: Record, *, at: float) -> bytes:
    return _line(Kind.PROGRESS, record.id, _payload(record), at=at)


def encode_end(record: Record, *, at: float) -> bytes:
    return _line(Kind.END, record.id, _payload(record), at=at)


def scan(data: bytes, *, whole: bool) -> Scan:
    """Find the entries in `data`. With `whole`, nothing follows it; else a line cut at its end is left for later."""
    entries: list[tuple[Entry, int]] = []
    offset = torn = 0
    while offset < len(data):
        found = _entry_at(data, offset)
        if isinstance(found, tuple):
            entries.append(found)
            offset = found[1]
            continue
        if found is _Cut.HERE and not whole:
            break
        following = data.find(_NEXT, offset)
        if following < 0 and not whole:
            # The three bytes might be cut as well.
            torn += _weight(data[offset:-2])
            offset = max(offset, len(data) - 2)
            break
        end = len(data) if following < 0 else following + 1
        torn += _weight(data[offset:end])
        offset = end
    return Scan(entries=entries, used=offset, torn=torn)


def clean(value: Any) -> Any:
    """Return plain data without what a database refuses in text: NUL and lone surrogates become U+FFFD."""
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


class _Cut(Enum):
    """A line that may go on behind the data, or that is none."""

    HERE = 1
    NO_LINE = 2


def _line(kind: Kind, call_id: str, payload: bytes, *, at: float) -> bytes:
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"an entry of {len(payload)} bytes is too long for the journal")
    head = b"1 %b %013d %08d" % (kind._value_, int(at * 1000), len(payload))
    body = b"%b %b" % (call_id.encode("ascii"), payload)
    return b"%b %08x %b\n" % (head, crc32(body, crc32(head)), body)


def _entry_at(data: bytes, offset: int) -> tuple[Entry, int] | _Cut:
    match = _HEAD.match(data, offset)
    if match is None:
        return _Cut.HERE if len(data) - offset < MAX_HEAD and data[offset] else _Cut.NO_LINE
    start, end = match.end(), match.end() + int(match[4])
    if end + 1 > len(data):
        return _Cut.HERE
    payload = data[start:end]
    if crc32(payload, crc32(match[6], crc32(match[1]))) != int(match[5], 16):
        return _Cut.NO_LINE
    entry = Entry(kind=_KINDS[match[2]], call_id=match[7].decode(), at=int(match[3]) / 1000, payload=payload)
    return entry, end + 1


def _weight(data: bytes) -> int:
    """How many bytes were lost: the zeros of a preallocated tail are none."""
    return len(data.strip(b"\0"))


def _payload(value: Record | Opening) -> bytes:
    try:
        payload = _encode(value)
    except UnicodeEncodeError:
        return _encode(clean(msgspec.to_builtins(value, enc_hook=str)))
    return _encode(clean(msgspec.to_builtins(value, enc_hook=str))) if b"\\u0000" in payload else payload


def _read(payload: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    if b"\\u0000" not in payload and b"\\ud" not in payload:
        return decoder.decode(payload)
    return msgspec.convert(clean(json.loads(payload)), decoder.type)
