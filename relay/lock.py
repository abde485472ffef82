"""Without Redis, limits and rests live in one process's memory: exactly one relay may run on a data folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


class RelayAlreadyRunning(RuntimeError):
    """A second relay was started without a shared store."""


class RelayLock:
    """`relay.lock` in the data folder; with a shared store any number of relays hold it together."""

    def __init__(self, folder: Path, *, shared: bool) -> None:
        self._path = folder / "relay.lock"
        self._shared = shared
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Take the lock, or raise `RelayAlreadyRunning` that says what to do."""
        self._file = self._path.open("a+")
        mode = fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._file, mode | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            self._file = None
            raise RelayAlreadyRunning(
                f"Another relay process holds {self._path}. Limits live in one process's memory unless REDIS_URL is "
                "set: stop the other process, or set REDIS_URL for both."
            ) from error
        if not self._shared:
            self._file.truncate(0)
            self._file.write(str(os.getpid()))
            self._file.flush()

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
