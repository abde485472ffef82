"""The local write-ahead file: every admitted call opens in it and closes in it, and is on disk before its client knows.

One thread writes: all that waits goes to the disk in one `pwritev` that syncs, then all who waited are told at once.
The event loop only encodes and appends to a queue; it never waits for a lock or a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from relay.call import CallStatus, Record, new_call_id
from relay.entries import encode_end, encode_open, encode_progress, scan
from relay.state.base import Hold

log = logging.getLogger(__name__)
LOCK = "lock"
IDLE = 0.5  # seconds until progress entries, for which nobody waits, are written; and between probes of a failing disk
# Seconds that the opening of a call that is not streamed may wait for company: its client's first byte waits for its
# end anyway, so that a short call costs one sync, and the longer ones open together.
GATHER = 0.005
# Seconds between two wakings of the thread for each call in flight, and at most: a waking costs more processor time
# than a tenth of a call, so that a busy relay writes more in one go. Calls in flight are as many as begin in the time
# that one takes (Little's law), so that long calls wait a little, and short ones hardly.
SPACING, MOST_SPACING = 0.0003, 0.005


class Position(NamedTuple):
    """A place between two entries of a folder; positions sort as they were written."""

    segment: int
    offset: int


class _Waiting(NamedTuple):
    line: bytes
    future: asyncio.Future[None] | None
    ends: bool  # the line must reach the disk, even if its future has failed


class _Bell:
    """Wakes one thread: a lock that is open while it rings. `threading.Event` takes ten times as long of the loop."""

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        try:
            self._silence.release()
        except RuntimeError:
            return  # it rings already

    def wait(self, seconds: float) -> None:
        """Return when it rings, and silence it; at the latest after `seconds`."""
        self._silence.acquire(timeout=seconds)


class Journal:
    """The journal of one process, in a folder of its own below `root`, which it holds by a lock until it stops.

    The futures of `open` and `close` resolve when the entry is on disk and fail with `OSError` where it can't be put
    there. While `healthy` is False, `open` fails at once; the thread tries again by itself, and writes the records that
    it still owes first. Never fork after `start`.
    """

    def __init__(self, root: Path, *, segment_bytes: int = 16 * 2**20, reserve_bytes: int = 64 * 2**20) -> None:
        self.folder = root / new_call_id()
        self.healthy = True
        self.failure = ""  # what the disk said, while not healthy
        self.synced = Position(1, 0)  # all before it is on disk
        self.ends: dict[int, int] = {}  # where the segments that are finished end
        self.oldest_waiting: float | None = None  # Unix seconds; the ledger moves it on
        self.shipped = 0  # ended calls that the ledger has put into the database
        self._segment_bytes = segment_bytes
        # Left free for the database, which may live on the same disk and must be able to take what waits here.
        self._reserve_bytes = reserve_bytes
        self._writing_since: float | None = None
        self._queue: deque[_Waiting] = deque()
        self._owed: list[_Waiting] = []
        self._ended = 0
        self._in_flight: set[str] = set()  # calls that were opened and have not ended
        # The loop's time: when the thread was last woken, and when it will be (0 = nothing is set for that).
        self._rung = self._next = 0.0
        self._bell = _Bell()
        self._accepting = False
        self._fd = -1
        self._size = 0
        self._lock = -1
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    # -- the event loop's side

    def open(self, record: Record, *, holds: Sequence[Hold] = ()) -> asyncio.Future[None]:
        """Write that a call was admitted: `record` as it would be if the process died now, and what is reserved.

        That of a stream at once, because its first byte waits for it; any other with the next entry that is awaited,
        within 5 ms at the latest.
        """
        if not self.healthy:
            return _failed(self._broken())
        self._in_flight.add(record.id)
        return self._append(encode_open(record, holds, at=time.time()), ends=False, hurry=record.stream)

    def progress(self, record: Record) -> None:
        """Write the counts so far, within half a second; nobody waits for it."""
        if self._accepting:
            self._queue.append(_Waiting(encode_progress(record, at=time.time()), None, ends=False))

    def close(self, record: Record) -> asyncio.Future[None]:
        """Write the record of a call that has ended, or was refused.

        Where that fails the record is written later, as that of a call that was interrupted; only refusals get lost.
        """
        if not self.healthy and record.status == CallStatus.REFUSED:
            return _failed(self._broken())
        self._in_flight.discard(record.id)
        return self._append(encode_end(record, at=time.time()), ends=True, hurry=True)

    @property
    def waiting(self) -> int:
        """How many ended calls are on disk here and not yet in the database."""
        return max(0, self._ended - self.shipped)

    @property
    def oldest_age(self) -> float:
        """For how many seconds the oldest of them has been waiting."""
        oldest = self.oldest_waiting
        return 0.0 if oldest is None else max(0.0, time.time() - oldest)

    @property
    def stalled(self) -> float:
        """For how many seconds the disk has not answered, 0.0 while it does."""
        since = self._writing_since
        return 0.0 if since is None else time.monotonic() - since

    def _append(self, line: bytes, *, ends: bool, hurry: bool) -> asyncio.Future[None]:
        if not self._accepting:
            return _failed(OSError(errno.EPIPE, "the journal is not running"))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._queue.append(_Waiting(line, future, ends))
        now = loop.time()
        at = max(now if hurry else now + GATHER, self._rung + min(MOST_SPACING, SPACING * len(self._in_flight)))
        if at <= now:
            self._hurry(now)
        elif at < self._next or self._next <= now:  # none is set, or one that a loop that has ended took along
            self._next = at
            loop.call_at(at, self._time_has_come, loop)
        return future

    def _time_has_come(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next = 0.0  # uvloop rounds, and may be early: whoever comes in the meantime sets a timer of his own
        self._hurry(loop.time())

    def _hurry(self, now: float) -> None:
        if self._queue:
            self._rung = now
            self._bell.ring()

    # -- life

    def start(self) -> None:
        """Make the folder, lock it, write the first segment; raises `OSError` where that can't be done."""
        # Under another name until it is whole and locked: nobody may take it for a dead process's.
        hidden = self.folder.with_name(f".{self.folder.name}")
        try:
            hidden.parent.mkdir(parents=True, exist_ok=True)
            hidden.mkdir(mode=0o700)  # who called whom is nobody else's business
            self._lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._new_segment(self.synced.segment, folder=hidden)
            hidden.rename(self.folder)
            sync_folder(self.folder.parent)
        except OSError:
            self._leave_segment()
            if self._lock >= 0:
                os.close(self._lock)
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        self._accepting = True
        self._thread.start()

    def stop(self) -> None:
        """Put everything on disk, end the thread, let go of the folder: the ledger then ships it like a dead one's."""
        if not self._accepting:
            return
        self._accepting = False
        self._bell.ring()
        self._thread.join()
        if late := self._take():
            self._write(late)
        if self._owed:
            log.error("journal: %d records could not be written: %s", len(self._owed), self.failure)
        self._leave_segment()
        os.close(self._lock)

    # -- the thread

    def _run(self) -> None:
        while self._accepting or self._queue:
            self._bell.wait(IDLE)
            batch = self._take()
            if batch or not self.healthy:
                self._write([*self._owed, *batch])

    def _take(self) -> list[_Waiting]:
        batch = []
        while self._queue:
            batch.append(self._queue.popleft())
        return batch

    def _write(self, batch: list[_Waiting]) -> None:
        self._owed = []
        pieces = self._pieces(batch)
        written = 0
        self._writing_since = time.monotonic()
        try:
            if self._fd < 0:
                self._new_segment(self.synced.segment + 1)
            for piece in pieces:
                self._sync(piece)
                written += len(piece)
                _tell(piece, None)
        except Exception as error:  # whatever it is: nobody may wait for ever
            self._fail(batch[written:], error)
            return
        finally:
            self._writing_since = None
        if not self.healthy:
            log.warning("journal: writing works again")
        self.healthy, self.failure = True, ""

    def _pieces(self, batch: list[_Waiting]) -> Iterator[list[_Waiting]]:
        """What still fits into the segment, then what fits into the next; the segment changes between two pieces."""
        piece: list[_Waiting] = []
        free = self._size - self.synced.offset
        for waiting in batch:
            if len(waiting.line) > free:
                if piece:
                    yield piece
                self._new_segment(self.synced.segment + 1, at_least=len(waiting.line))
                piece, free = [], self._size
            piece.append(waiting)
            free -= len(waiting.line)
        if piece:
            yield piece

    def _sync(self, piece: list[_Waiting]) -> None:
        data = b"".join([waiting.line for waiting in piece])
        segment, offset = self.synced
        done = 0
        while done < len(data):
            done += write_through(self._fd, data[done:] if done else data, offset + done)
        self.synced = Position(segment, offset + len(data))
        ended = sum(waiting.ends for waiting in piece)
        if ended and self.oldest_waiting is None:
            self.oldest_waiting = time.time()
        self._ended += ended

    def _fail(self, lost: list[_Waiting], error: Exception) -> None:
        """Refuse who waits; keep the records of calls that ended: there are no more of them than calls in flight."""
        if self.healthy:
            log.error("journal: can't be written, new calls are refused: %s", error)
        self.failure = getattr(error, "strerror", None) or type(error).__name__
        self.healthy = False
        # What a failed sync left on disk is unknown: cut it off and begin elsewhere.
        self._leave_segment()
        self._owed = [_Waiting(_unanswered(waiting.line), None, ends=True) for waiting in lost if waiting.ends]
        _tell(lost, self._broken())

    def _broken(self) -> OSError:
        return OSError(errno.EIO, f"the journal can't be written: {self.failure}")

    def _new_segment(self, number: int, *, at_least: int = 0, folder: Path | None = None) -> None:
        self._leave_segment()
        size = max(self._segment_bytes, at_least)
        folder = folder or self.folder
        if shutil.disk_usage(folder).free < size + self._reserve_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path = segment_path(folder, number)
        # Not O_EXCL: one that could not be made whole the last time is made again.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
            sync_folder(folder)
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self._fd, self._size, self.synced = fd, size, Position(number, 0)

    def _leave_segment(self) -> None:
        if self._fd < 0:
            return
        segment, offset = self.synced
        self.ends[segment] = offset
        try:
            os.ftruncate(self._fd, offset)
        except OSError as error:
            log.warning("journal: segment %d could not be cut to its length: %s", segment, error)
        with contextlib.suppress(OSError):  # a late report of writes that no sync has vouched for
            os.close(self._fd)
        self._fd, self._size = -1, 0


def _unanswered(line: bytes) -> bytes:
    """The same end, of a call whose client won't get its last bytes: it used what it used, but it did not go well."""
    [(entry, _)] = scan(line, whole=True).entries
    try:
        record = entry.record()
    except msgspec.MsgspecError:  # what the database will not take either: quarantine needs it as it is
        return line
    if record.status == CallStatus.OK:
        record.status, record.error = CallStatus.INTERRUPTED.value, record.error or "not_recordable"
    return encode_end(record, at=entry.at)


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"{number:012d}.journal"


def write_through(fd: int, data: bytes, offset: int) -> int:
    """Write and sync, like `pwrite` and `fdatasync`: in one call where the file system can, because after each call the
    thread waits for the interpreter. Returns how many bytes were written."""
    try:
        return os.pwritev(fd, [data], offset, os.RWF_DSYNC)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    written = os.pwrite(fd, data, offset)
    os.fdatasync(fd)
    return written


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _failed(error: OSError) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def _tell(batch: Sequence[_Waiting], error: OSError | None) -> None:
    """One call into each event loop, whatever the number of those who wait there."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiting in batch:
        if waiting.future is not None:
            by_loop.setdefault(waiting.future.get_loop(), []).append(waiting.future)
    for loop, futures in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, futures, error)
        except RuntimeError:
            log.debug("journal: the loop of %d waiting calls is closed", len(futures))


def _resolve(futures: list[asyncio.Future[None]], error: OSError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
