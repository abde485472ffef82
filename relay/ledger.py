"""Ships finished entries of the journal to the database in batches, exactly once, and what dead processes left too.

One thread. It reads back what the journal has synced, so a database that is away costs disk, not memory; it goes on
from where it was when the database is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

from relay.entries import Kind
from relay.journal import Journal, Position
from relay.recovery import UNSETTLED_SECONDS, OnRecovered, recover
from relay.rows import Books, DatabaseAway
from relay.segments import START, Cursor, Piece, drop_shipped, is_done, journal_folders, read, save_cursor

log = logging.getLogger(__name__)
SWEEP_SECONDS = 5.0
DROP_SECONDS = 60.0
# How far it came is saved so often: after a death the records since then are read again, and booked once all the same.
SAVE_SECONDS = 1.0
LONGEST_PAUSE = 1.0
STOP_SECONDS = 8.0


class Ledger:
    """Ships the own journal's records, and every few seconds looks for folders whose process has died.

    `on_recovered(record, holds)` is called in the ledger's thread, for calls that a death may have left unsettled; it
    may be called again for the same call. `caught_up` is set once nothing of dead processes is left to do.
    """

    def __init__(self, journal: Journal, *, interval: float, on_recovered: OnRecovered) -> None:
        self.caught_up = threading.Event()
        self.failure = ""  # why the database takes nothing, while it does not
        self._journal = journal
        self._root = journal.folder.parent
        self._interval = interval
        self._on_recovered = on_recovered
        self._books = Books()
        self._cursor = Cursor()
        self._unsaved = False
        self._open: dict[str, Position] = {}  # calls that a recovery would have to look at, oldest first
        self._ended: deque[tuple[float, str]] = deque()
        self._recoveries: dict[Path, Iterator[int]] = {}
        self._failed: set[Path] = set()  # folders whose recovery has to begin anew
        self._next_sweep = self._next_drop = self._next_save = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ship what is left, for a few seconds; what remains then waits in the folder for whoever recovers it.

        Stop the journal first: its folder is then brought to its end like a dead process's.
        """
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=STOP_SECONDS + 2)

    # -- the thread

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            pause = self._try_round(pause)
        self._finish()
        for recovery in self._recoveries.values():
            recovery.close()  # type: ignore[attr-defined]
        self._books.close()

    def _try_round(self, pause: float) -> float:
        """Do one round; return the seconds until the next."""
        try:
            more = self._round(now=time.monotonic())
        except DatabaseAway as error:
            self._note_failure(str(error))
        except Exception as error:  # a thread that dies would lose nothing, but ship nothing either
            log.exception("ledger: a round failed")
            self._note_failure(f"{type(error).__name__}")
        else:
            self._note_failure("")
            return 0.005 if more else self._interval
        return min(LONGEST_PAUSE, max(self._interval, pause * 2))

    def _round(self, *, now: float) -> bool:
        # No further than now: the next round gets what comes meanwhile, in one batch, not call by call.
        until = self._journal.synced
        while self._ship(until) and not self._stopping.is_set():
            pass
        if self._unsaved and now >= self._next_save:
            self._next_save = now + SAVE_SECONDS
            self._save()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._look_for_the_dead()
        if now >= self._next_drop:
            self._next_drop = now + DROP_SECONDS
            self._drop()
        return self._recover_some()

    def _ship(self, limit: Position) -> bool:
        """Ship one piece of the own journal, nothing behind `limit`; return whether there was one."""
        journal, start = self._journal, self._cursor.shipped
        if start >= limit:
            return False
        piece = read(journal.folder, start, limit=limit, ends=journal.ends)
        if piece.after == start:
            return False
        ended = [entry for entry, _ in piece.entries if entry.kind is Kind.END]
        if ended:
            journal.oldest_waiting = ended[0].at
            self._books.add(ended)
        self._cursor = Cursor(shipped=piece.after, unsettled=self._track(piece, start))
        self._unsaved = True
        journal.shipped += len(ended)
        if not journal.waiting:
            journal.oldest_waiting = None
        return True

    def _save(self) -> None:
        save_cursor(self._journal.folder, self._cursor)
        self._unsaved = False

    def _track(self, piece: Piece, start: Position) -> Position:
        """Return from where on a recovery would have to read, if the process died now."""
        for entry, _ in piece.entries:
            if entry.kind is Kind.OPEN:
                self._open[entry.call_id] = start
            elif entry.kind is Kind.END:
                self._ended.append((entry.at, entry.call_id))
        settled = time.time() - UNSETTLED_SECONDS
        while self._ended and self._ended[0][0] < settled:
            self._open.pop(self._ended.popleft()[1], None)
        return next(iter(self._open.values()), piece.after)

    def _look_for_the_dead(self) -> None:
        for folder in journal_folders(self._root):
            if folder != self._journal.folder and folder not in self._recoveries and not is_done(folder):
                self._recoveries[folder] = recover(folder, books=self._books, on_recovered=self._on_recovered)

    def _recover_some(self) -> bool:
        """Go one piece on in the oldest folder; return whether there is more to do."""
        for folder, recovery in list(self._recoveries.items()):
            try:
                next(recovery)
            except StopIteration:
                del self._recoveries[folder]
                self._failed.discard(folder)
                continue
            except BaseException:
                del self._recoveries[folder]
                self._failed.add(folder)
                raise
            return True
        if not self._failed:
            self.caught_up.set()
        return False

    def _drop(self) -> None:
        own = {self._journal.folder: min(self._cursor.shipped, self._cursor.unsettled).segment}
        dropped = drop_shipped(
            self._root,
            own,
            now=time.time(),
            keep_seconds=settings.RELAY_JOURNAL_KEEP_SECONDS,
            keep_bytes=settings.RELAY_JOURNAL_KEEP_BYTES,
            free_bytes=settings.RELAY_JOURNAL_FREE_BYTES,
        )
        if dropped:
            log.info("ledger: dropped %d shipped segments", dropped)

    def _finish(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            try:
                while self._ship(self._journal.synced):
                    pass
                if self._cursor.shipped != START:
                    self._save()
                own = recover(self._journal.folder, books=self._books, on_recovered=self._on_recovered, resettle=False)
                for _ in own:
                    if time.monotonic() > deadline:
                        return
            except DatabaseAway as error:
                self._note_failure(str(error))
                time.sleep(0.2)
            except Exception:
                log.exception("ledger: the last round failed")
                return
            else:
                return

    def _note_failure(self, failure: str) -> None:
        if failure and not self.failure:
            log.error("ledger: the database takes nothing, records wait in the journal: %s", failure)
        elif self.failure and not failure:
            log.warning("ledger: the database takes records again")
        self.failure = failure
