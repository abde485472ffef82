"""What a process that died left in its journal: finished calls are shipped, open ones end as interrupted, all settled.

Whoever holds the lock of the folder does it, as often as it takes: every step leaves on disk what the next one needs,
and each may be repeated. A call that was interrupted gets its record written into the folder first, so that one is
the same from then on, whoever goes on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from relay.call import CallStatus, Record, UsageSource
from relay.entries import Entry, Kind, Opening, encode_recovered
from relay.journal import Position, segment_path, sync_folder
from relay.rows import Books
from relay.segments import (
    FINISHED,
    START,
    Cursor,
    held,
    is_done,
    load_cursor,
    mark_done,
    read,
    save_cursor,
    segment_numbers,
)
from relay.state.base import Hold

log = logging.getLogger(__name__)
OnRecovered = Callable[[Record, Sequence[Hold]], None]
# A call that ended so shortly before the end of its journal may not have settled its reservation.
UNSETTLED_SECONDS = 60.0


@dataclass(slots=True)
class _Traces:
    """What the journal says of one call."""

    opened: Entry | None = None
    latest: Entry | None = None  # the last progress
    ended: Entry | None = None

    def opening(self) -> Opening:
        """What the call held: a lost opening held nothing that we know of."""
        if self.ended is not None and self.ended.kind is Kind.RECOVERED:
            return self.ended.opening()
        holds = self.opened.opening().holds if self.opened else ()
        entry = self.ended or self.opened or self.latest
        assert entry is not None
        return Opening(record=entry.record(), holds=holds)


def recover(
    folder: Path, *, books: Books, on_recovered: OnRecovered, resettle: bool = True, anew: bool = False
) -> Iterator[int]:
    """Bring a dead process's folder to its end, piece by piece; yields after each how many records were new.

    Yields nothing where somebody else holds the folder or all is done. With `resettle`, calls that ended shortly before
    the end are settled again; with `anew`, what the folder says of how far it was shipped is not believed. Raises
    `DatabaseAway`, `OSError` and whatever `on_recovered` raises; begin anew then.
    """
    with held(folder) as mine:
        if not mine or is_done(folder):
            return
        cursor = Cursor() if anew else load_cursor(folder)
        calls = yield from _unsettled(folder, cursor.unsettled)
        _end_the_interrupted(folder, calls, books=books)
        trouble: Exception | None = None
        try:
            _settle(calls, on_recovered, resettle=resettle)
        except Exception as error:
            trouble = error  # the records first; the folder stays open until all is settled
        yield from ship(folder, cursor, books=books)
        if trouble is not None:
            raise trouble
        mark_done(folder)


def ship(folder: Path, cursor: Cursor, *, books: Books) -> Iterator[int]:
    """Put all finished calls behind the cursor into the database and move it on; yields how many were new."""
    while True:
        piece = read(folder, cursor.shipped)
        if piece.after == cursor.shipped:
            return
        if piece.torn:
            log.warning("journal: %d bytes of %s/%d are torn", piece.torn, folder.name, piece.after.segment)
        new = books.add([entry for entry, _ in piece.entries if entry.kind in FINISHED])
        cursor = Cursor(shipped=piece.after, unsettled=cursor.unsettled)
        save_cursor(folder, cursor)
        yield new


def ship_again(folder: Path, *, books: Books, since: float = 0.0) -> int:
    """Put all finished calls of a folder into the database that are not there; returns how many were new.

    Wherever its cursor stands, and without disturbing a living owner. Segments that were last written before `since`
    (Unix seconds) are not read.
    """
    new, position = 0, START
    while True:
        piece = read(folder, position)
        if piece.after == position:
            return new
        position = piece.after
        if segment_path(folder, position.segment).stat().st_mtime < since:
            position = Position(position.segment + 1, 0)
            continue
        new += books.add([entry for entry, _ in piece.entries if entry.kind in FINISHED])


def interrupted(opening: Opening, latest: Record | None) -> Record:
    """Return the record of a call whose process died: the last counts it journalled, if any, and what stays held.

    Where no figure is the provider's, a strict budget keeps what it had reserved beyond the cost that is booked.
    """
    record = latest or opening.record
    source = UsageSource.NONE.value if latest is None else latest.usage_source
    reported = source in {UsageSource.PARTIAL, UsageSource.PROVIDER}
    strict = [hold.amount for hold in opening.holds if hold.metric == "cost" and not hold.over]
    return msgspec.structs.replace(
        record,
        status=CallStatus.INTERRUPTED.value,
        usage_source=UsageSource.PARTIAL.value if reported else source,
        held_nanos=0 if reported else max(0, max(strict, default=0) - record.cost_nanos),
        error=record.error or "process_died",
        duration_ms=None,  # nobody saw its end
    )


def _unsettled(folder: Path, start: Position) -> Generator[int, None, dict[str, _Traces]]:
    """Collect the calls that have no end, and those whose end is so late that nobody may have settled them."""
    calls: dict[str, _Traces] = {}
    while True:
        piece = read(folder, start)
        for entry, _ in piece.entries:
            _note(calls, entry)
        if piece.entries:
            horizon = piece.entries[-1][0].at - UNSETTLED_SECONDS
            for call_id in [key for key, call in calls.items() if call.ended and call.ended.at < horizon]:
                del calls[call_id]
        if piece.after == start:
            return calls
        start = piece.after
        yield 0


def _note(calls: dict[str, _Traces], entry: Entry) -> None:
    call = calls.setdefault(entry.call_id, _Traces())
    if entry.kind is Kind.OPEN:
        call.opened = entry
    elif entry.kind is Kind.PROGRESS:
        call.latest = entry
    elif call.ended is None:
        call.ended = entry


def _end_the_interrupted(folder: Path, calls: dict[str, _Traces], *, books: Books) -> None:
    now = time.time()
    lines: list[bytes] = []
    for call_id, call in calls.items():
        if call.ended is not None:
            continue
        try:
            opening = call.opening()
            record = interrupted(opening, call.latest.record() if call.latest else None)
        except msgspec.MsgspecError as error:
            if (entry := call.opened or call.latest) is not None:
                books.quarantine(entry, error)
            continue
        lines.append(encode_recovered(record, opening.holds, at=now))
        call.ended = Entry(
            kind=Kind.RECOVERED,
            call_id=call_id,
            at=now,
            payload=msgspec.json.encode(Opening(record=record, holds=opening.holds)),
        )
    if lines:
        log.warning("journal: %d calls of %s were interrupted by the end of their process", len(lines), folder.name)
        _append(folder, b"".join(lines))


def _append(folder: Path, data: bytes) -> None:
    """Write a segment of its own, whole or not at all."""
    path = segment_path(folder, max(segment_numbers(folder), default=0) + 1)
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(folder)


def _settle(calls: dict[str, _Traces], on_recovered: OnRecovered, *, resettle: bool) -> None:
    for call_id, call in calls.items():
        if call.ended is not None and (resettle or call.ended.kind is Kind.RECOVERED):
            try:
                opening = call.opening()
            except msgspec.MsgspecError as error:  # it goes to quarantine; its reservation stays for a person to end
                log.error("journal: the end of call %s can't be read: %s", call_id, error)
                continue
            on_recovered(opening.record, opening.holds)
