"""Journals and ledgers for tests: records that ended, written to a real disk, and the threads that ship them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asgiref.sync import async_to_sync

from relay.call import CallStatus, Record, UsageSource, new_call_id
from relay.entries import Entry, scan
from relay.journal import Journal
from relay.ledger import Ledger
from relay.state.base import Hold


def a_record(**fields: Any) -> Record:
    """A call that ended well, with every figure that a provider reports."""
    now = time.time()
    values: dict[str, Any] = {
        "id": new_call_id(now),
        "created_at": now,
        "status": CallStatus.OK.value,
        "usage_source": UsageSource.PROVIDER.value,
        "cost_nanos": 1000,
    }
    return Record(**(values | fields))


def write(journal: Journal, *entries: tuple[str, Any]) -> None:
    """Write, in order, ("open", record), ("open", (record, holds)), ("progress", record) or ("end", record)."""

    async def all_of_them() -> None:
        futures = []
        for kind, value in entries:
            if kind == "progress":
                journal.progress(value)
            elif kind == "end":
                futures.append(journal.close(value))
            else:
                record, holds = value if isinstance(value, tuple) else (value, ())
                futures.append(journal.open(record, holds=holds))
        await asyncio.gather(*futures)

    async_to_sync(all_of_them)()


def entries_in(folder: Path) -> list[Entry]:
    return [
        entry for path in sorted(folder.glob("*.journal")) for entry, _ in scan(path.read_bytes(), whole=True).entries
    ]


@contextmanager
def a_journal(root: Path, *, segment_bytes: int = 2**20) -> Iterator[Journal]:
    journal = Journal(root, segment_bytes=segment_bytes)
    journal.start()
    try:
        yield journal
    finally:
        journal.stop()


Recovered = list[tuple[Record, Sequence[Hold]]]


@contextmanager
def a_ledger(journal: Journal, recovered: Recovered | None = None, *, interval: float = 0.02) -> Iterator[Ledger]:
    """A running ledger; it is stopped before its journal is, so that the folder stays a living one's."""
    settled = [] if recovered is None else recovered
    ledger = Ledger(journal, interval=interval, on_recovered=lambda record, holds: settled.append((record, holds)))
    ledger.start()
    try:
        yield ledger
    finally:
        ledger.stop()


def a_dead_folder(root: Path, *entries: tuple[str, Any]) -> Path:
    """The folder of a process that wrote these entries and is gone."""
    with a_journal(root) as journal:
        write(journal, *entries)
    return journal.folder


def eventually(holds: Callable[[], object], *, seconds: float = 20.0) -> None:
    """Wait until `holds()` is true; fails when it does not become so."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.01)


def ids(records: Iterable[Record]) -> list[str]:
    return [record.id for record in records]
