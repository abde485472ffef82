"""Journals from the outside: what commands do with folders that no living relay owns, or that came from elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from asgiref.sync import async_to_sync
from django.conf import settings

from accounts import quota
from accounts.snapshot import ACCOUNTS
from apikeys import admission
from relay.call import Record
from relay.models import Quarantine, UsageRecord
from relay.recovery import recover, ship_again
from relay.rows import Books
from relay.segments import is_done, journal_folders, segment_numbers
from relay.state import make_store
from relay.state.base import Hold


@dataclass(slots=True)
class Shipped:
    """How many folders were looked at, how many records are new, how many folders belong to living processes."""

    folders: int = 0
    records: int = 0
    alive: int = 0


def recover_all(root: Path, *, anew: bool = False) -> Shipped:
    """Bring every dead process's folder below `root` to its end; with `anew`, from its start on.

    Raises `DatabaseAway`, `OSError`, `StoreAway`; nothing is lost by trying again.
    """
    done, books = Shipped(), Books()
    try:
        for folder in folders_of(root):
            done.folders += 1
            done.records += sum(recover(folder, books=books, on_recovered=settle, anew=anew))
            done.alive += not is_done(folder)
    finally:
        books.close()
    return done


def ship_all_again(root: Path, *, since: float = 0.0) -> Shipped:
    """Put every finished call of these folders into the database that is not there, whatever was shipped before;
    then recover the dead. `since` (Unix seconds) spares segments that were last written before. Raises as above."""
    again, books = Shipped(), Books()
    try:
        again.records = sum(ship_again(folder, books=books, since=since) for folder in folders_of(root))
    finally:
        books.close()
    done = recover_all(root, anew=True)
    done.records += again.records
    resolve_booked(now=datetime.now(UTC))
    return done


def folders_of(path: Path) -> list[Path]:
    """`path` itself if it is a journal folder, else those in it."""
    return [path] if segment_numbers(path) else journal_folders(path)


def resolve_booked(*, now: datetime) -> int:
    """Resolve quarantined entries whose record is in the table by now; return how many."""
    waiting = Quarantine.objects.filter(resolved_at=None)
    ids = [row_id for row_id in waiting.values_list("record_id", flat=True) if len(row_id) == 36]
    booked = [str(pk) for pk in UsageRecord.objects.filter(pk__in=ids).values_list("pk", flat=True)]
    return waiting.filter(record_id__in=booked).update(resolved_at=now)


def settle(record: Record, holds: Sequence[Hold]) -> None:
    """Settle what a dead process had reserved, where reservations outlive their process. Raises `StoreAway`.

    A relay that keeps them in memory seeds its counters from the ledger when it starts.
    """
    if settings.REDIS_URL:
        async_to_sync(_settle)(record, holds)


async def _settle(record: Record, holds: Sequence[Hold]) -> None:
    store, now = make_store(settings.REDIS_URL), time.time()
    try:
        await admission.settle_recovered(store, record, holds, now=now)
        await quota.settle_recovered(record, accounts=ACCOUNTS.current, store=store, now=now)
    finally:
        await store.close()
