"""What happened to accounts, written off the hot path by a thread of its own; the database may be away for a while."""

from __future__ import annotations

import logging
import threading
from collections import deque
from datetime import UTC, datetime

from django.db import DatabaseError, InterfaceError, close_old_connections, connection

from accounts.models import AccountEvent
from relay.call import Account
from relay.state.base import Rest

logger = logging.getLogger(__name__)

KEPT = 10_000  # events that wait for the database; the oldest go first
REPEAT = 5.0  # seconds in which the same rest of the same account is one event
RETRY = 5.0  # seconds between attempts while the database is away

REST, CREDENTIAL, RECOVERED = "rest", "credential", "recovered"

_noted: dict[tuple[int, str, str], float] = {}


class EventWriter:
    """Takes events from any thread without waiting and writes them in one of its own."""

    def __init__(self, *, kept: int = KEPT) -> None:
        self._waiting: deque[AccountEvent] = deque(maxlen=kept)
        self._wake = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None
        self.lost = 0

    def note(self, event: AccountEvent) -> None:
        """Never waits, never raises."""
        if len(self._waiting) == self._waiting.maxlen:
            self.lost += 1
        self._waiting.append(event)
        self._wake.set()

    def start(self) -> None:
        """Idempotent."""
        if self._thread is None:
            self._ending = False
            self._thread = threading.Thread(target=self._run, name="account-events", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Write what waits, once, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ending = True
            self._wake.set()
            thread.join(timeout=10)

    def flush(self) -> int:
        """Write what waits on the caller's connection; returns how many. Raises what the database raises."""
        batch = list(self._waiting)
        AccountEvent.objects.bulk_create(batch)
        for _ in batch:
            self._waiting.popleft()
        return len(batch)

    def _run(self) -> None:
        while not self._ending:
            self._wake.wait()
            self._wake.clear()
            while self._waiting and not self._write() and not self._ending:
                threading.Event().wait(RETRY)
        connection.close()

    def _write(self) -> bool:
        try:
            close_old_connections()
            self.flush()
        except (DatabaseError, InterfaceError) as error:
            logger.warning("Account events wait for the database: %s", type(error).__name__)
            return False
        return True


EVENTS = EventWriter()


def rested(account: Account, rest: Rest, *, now: float) -> None:
    """Note a rest. Many calls fail at once where one does: the same rest within seconds is one event."""
    said = (account.id, rest.model, rest.cause)
    if now - _noted.get(said, -REPEAT) < REPEAT:
        return
    _noted[said] = now
    kind = CREDENTIAL if rest.cause == CREDENTIAL else REST
    EVENTS.note(
        AccountEvent(
            account_id=account.id,
            account_name=account.name,
            at=moment(now),
            kind=kind,
            model=rest.model[:200],
            cause=rest.cause,
            until=moment(rest.until),
            http_status=rest.http_status,
        )
    )
    if kind == CREDENTIAL:
        logger.warning("Account %s rests: its credential or balance was rejected (%s)", account.name, rest.http_status)


def recovered(account_id: int, account_name: str, model: str, *, cause: str, now: float) -> None:
    """Note the end of a rest: by a call that succeeded, or by hand."""
    for said in [said for said in _noted if said[0] == account_id]:
        del _noted[said]
    EVENTS.note(
        AccountEvent(
            account_id=account_id,
            account_name=account_name,
            at=moment(now),
            kind=RECOVERED,
            model=model[:200],
            cause=cause,
        )
    )


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
