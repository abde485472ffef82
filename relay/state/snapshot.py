"""Rows that every call needs, held in memory: loaded whole, swapped whole, reloaded when a trigger raised a version."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from django.db import connection
from django.db.models import QuerySet

from accounts.models import TableVersion

logger = logging.getLogger(__name__)

T = TypeVar("T")
CHUNK = 1000
PAUSE = 0.001  # seconds between chunks: the event loop gets the interpreter
# For so many seconds the poller keeps a SQLite connection: opening one for each poll costs more than the poll, but one
# kept for ever would not notice that a backup was put in the file's place.
KEPT_SECONDS = 10.0


class Snapshot(Generic[T]):
    """What `load` made of some tables. `current` is replaced, never changed, so that readers need no lock."""

    def __init__(self, tables: tuple[str, ...], load: Callable[[], T], *, empty: T) -> None:
        self.tables = tables
        self.load = load
        self.current = empty
        self.loaded = False  # False until the database could be read once
        self.versions: Mapping[str, int] = {}  # of its tables, when it was loaded

    def refresh(self, versions: Mapping[str, int]) -> bool:
        """Reload if one of the tables changed since the last load; returns whether. Raises what `load` raises."""
        mine = {table: versions.get(table, 0) for table in self.tables}
        if self.loaded and mine == self.versions:
            return False
        self.current = self.load()
        # The versions from before the load: a change meanwhile makes another load, never a missed one.
        self.versions, self.loaded = mine, True
        return True


def table_versions() -> dict[str, int]:
    """The versions of all watched tables, one query."""
    return dict(TableVersion.objects.values_list("table", "version"))


def give_connection_back() -> None:
    """After a query in a thread that no request owns: into the pool, or closed. Leaves a transaction alone."""
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def chunked(rows: QuerySet[Any, Any], *, size: int = CHUNK) -> Iterator[Any]:
    """Yield the tuples of a `values_list` whose first column is the primary key, in its order, pausing between chunks.

    One query per chunk: neither the database nor the interpreter is held while the event loop waits.
    """
    last: Any = None
    pause = threading.Event()
    while True:
        page = rows.order_by("pk") if last is None else rows.filter(pk__gt=last).order_by("pk")
        chunk = list(page[:size])
        yield from chunk
        if len(chunk) < size:
            return
        last = chunk[-1][0]
        pause.wait(PAUSE)


class SnapshotPoller:
    """One thread that keeps snapshots current. While the database is away they stay as they were."""

    def __init__(self, snapshots: Sequence[Snapshot[Any]], *, interval: float) -> None:
        self._snapshots = snapshots
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.healthy = True
        self._kept_until = 0.0

    def load_all(self) -> None:
        """Bring every snapshot up to date, in the caller's thread; raises `DatabaseError` without a database."""
        with self._lock:
            versions = table_versions()
            for snapshot in self._snapshots:
                snapshot.refresh(versions)

    def versions(self) -> dict[str, int]:
        """What this process has taken over: table -> version, the lowest where several snapshots hold a table."""
        held: dict[str, int] = {}
        for snapshot in self._snapshots:
            for table, version in snapshot.versions.items():
                held[table] = min(version, held.get(table, version))
        return held

    def start(self) -> None:
        """Poll from now on; idempotent."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop polling and wait for a load under way; idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._poll()
        connection.close()

    def _poll(self) -> None:
        """One look at the versions. One snapshot that can't be loaded does not stop the others."""
        try:
            versions = table_versions()
        except Exception as error:
            self._failed(error, "table versions")
            return
        failed = [snapshot for snapshot in self._snapshots if not self._refreshed(snapshot, versions)]
        if not failed and not self.healthy:
            logger.info("Snapshots are current again")
        self.healthy = not failed
        self._keep_connection(now=time.monotonic())

    def _keep_connection(self, *, now: float) -> None:
        """Keep an open SQLite file for a few seconds; other databases' connections go where all go."""
        if connection.vendor != "sqlite":
            give_connection_back()
        elif now >= self._kept_until:
            connection.close()
            self._kept_until = now + KEPT_SECONDS

    def _refreshed(self, snapshot: Snapshot[Any], versions: Mapping[str, int]) -> bool:
        try:
            with self._lock:
                snapshot.refresh(versions)
        except Exception as error:
            self._failed(error, ", ".join(snapshot.tables))
            return False
        return True

    def _failed(self, error: Exception, what: str) -> None:
        """Keep what there is; say so once, not every half second."""
        if self.healthy:
            logger.error("Can't read %s; what was loaded before stays in force", what, exc_info=error)
        self.healthy = False
        connection.close()
