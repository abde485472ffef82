"""A journal folder as its readers see it: segments in order, how far they are shipped, whether its owner lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from relay.entries import Entry, Kind, scan
from relay.journal import LOCK, Position, segment_path

CHUNK = 1024 * 1024
START = Position(0, 0)
FINISHED = frozenset({Kind.END, Kind.RECOVERED})
SUFFIX = ".journal"
_CURSOR = "cursor"
_DONE = "done"
_HALF_MADE = 3600.0  # seconds after which a folder without its name was left by a process that died making it


@dataclass(frozen=True, slots=True)
class Piece:
    """Entries with the place of each, where to read on, and the bytes that are no entries."""

    entries: list[tuple[Entry, Position]]
    after: Position
    torn: int


class Cursor(msgspec.Struct, frozen=True):
    """How far a folder is shipped, and from where on a call may have neither ended nor been settled."""

    shipped: Position = START
    unsettled: Position = START


def journal_folders(root: Path) -> list[Path]:
    """The folders of all processes, oldest first."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def segment_numbers(folder: Path) -> list[int]:
    try:
        with os.scandir(folder) as found:  # asked for every batch; `Path.glob` takes fifty times as long
            names = [entry.name.removesuffix(SUFFIX) for entry in found if entry.name.endswith(SUFFIX)]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isdigit())


def read(
    folder: Path, start: Position, *, limit: Position | None = None, ends: Mapping[int, int] | None = None
) -> Piece:
    """Read one piece behind `start`: nothing behind `limit`, of each segment in `ends` only so many bytes.

    Returns an empty piece at the end of the last segment. Raises `OSError`.
    """
    for number in segment_numbers(folder):
        if number < start.segment or (limit is not None and number > limit.segment):
            continue
        offset = start.offset if number == start.segment else 0
        with segment_path(folder, number).open("rb", buffering=0) as file:
            end = (ends or {}).get(number, os.fstat(file.fileno()).st_size)
            if limit is not None and number == limit.segment:
                end = limit.offset
            if offset < end:
                return _read_piece(file.fileno(), Position(number, offset), end)
            start = Position(number, max(offset, end)) if number > start.segment else start
    return Piece(entries=[], after=start, torn=0)


def read_all(folder: Path, start: Position = START) -> Iterator[Piece]:
    """Read on piece by piece to the end."""
    while True:
        piece = read(folder, start)
        if piece.after == start:
            return
        yield piece
        start = piece.after


def waiting(root: Path) -> tuple[int, float | None]:
    """Return how many ended calls of all folders are not in the database yet, and when the oldest of them ended."""
    count, oldest = 0, None
    for folder in journal_folders(root):
        if is_done(folder):
            continue
        for piece in read_all(folder, load_cursor(folder).shipped):
            ended = [entry.at for entry, _ in piece.entries if entry.kind in FINISHED]
            count += len(ended)
            oldest = min([*ended, oldest] if oldest is not None else ended, default=None)
    return count, oldest


def load_cursor(folder: Path) -> Cursor:
    """Return the saved cursor; one that can't be read means the start: a record that comes twice is booked once."""
    try:
        return msgspec.json.decode((folder / _CURSOR).read_bytes(), type=Cursor)
    except (OSError, msgspec.MsgspecError):
        return Cursor()


def save_cursor(folder: Path, cursor: Cursor) -> None:
    new = folder / f"{_CURSOR}.new"
    new.write_bytes(msgspec.json.encode(cursor))
    new.replace(folder / _CURSOR)


def is_done(folder: Path) -> bool:
    """Whether all of a dead process's folder is in the database and settled."""
    return (folder / _DONE).exists()


def mark_done(folder: Path) -> None:
    (folder / _DONE).touch()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock; yields False where its owner, or another who recovers it, has it."""
    try:
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    else:
        yield True
    finally:
        os.close(fd)


def drop_shipped(
    root: Path, own: Mapping[Path, int], *, now: float, keep_seconds: float, keep_bytes: int, free_bytes: int
) -> int:
    """Delete shipped segments older than `keep_seconds`, and older ones first where all together pass `keep_bytes` or
    less than `free_bytes` of the disk are free; and folders that have none left. Returns how many segments went.

    Shipped are all segments of folders that are done and, of each folder in `own`, those below the given number.
    """
    shipped: list[tuple[float, int, Path]] = []
    for folder in journal_folders(root):
        below = own.get(folder, 10**12 if is_done(folder) else 0)
        for path in (segment_path(folder, number) for number in segment_numbers(folder) if number < below):
            stat = path.stat()
            shipped.append((stat.st_mtime, stat.st_blocks * 512, path))
    total = sum(size for _, size, _ in shipped)
    dropped = 0
    for modified, size, path in sorted(shipped):
        if now - modified < keep_seconds and total <= keep_bytes and shutil.disk_usage(root).free >= free_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
        dropped += 1
    _drop_empty(root, own, now=now)
    return dropped


def _drop_empty(root: Path, own: Mapping[Path, int], *, now: float) -> None:
    for folder in root.iterdir() if root.is_dir() else ():
        half_made = folder.name.startswith(".") and now - folder.stat().st_mtime > _HALF_MADE
        if half_made or (folder not in own and is_done(folder) and not segment_numbers(folder)):
            shutil.rmtree(folder, ignore_errors=True)


def _read_piece(fd: int, start: Position, end: int) -> Piece:
    size = CHUNK
    while True:
        length = min(size, end - start.offset)
        data = os.pread(fd, length, start.offset)
        whole = start.offset + length >= end or len(data) < length
        found = scan(data, whole=whole)
        if found.used or whole:
            break
        size *= 4  # one entry that is longer than the piece
    entries = [(entry, Position(start.segment, start.offset + behind)) for entry, behind in found.entries]
    after = Position(start.segment, end if whole else start.offset + found.used)
    return Piece(entries=entries, after=after, torn=found.torn)
