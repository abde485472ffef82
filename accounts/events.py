"""What happened to accounts, written off the hot path by a thread of its own; the database may be away for a while."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.mail import mail_admins
from django.db import Error, connection

from accounts.models import AccountEvent
from relay.call import Account
from relay.state.base import Rest, Store

logger = logging.getLogger(__name__)

KEPT = 10_000  # events that wait for the database; the oldest go first
BATCH = 500
QUIET = 3600.0  # seconds in which a rejected credential is mailed once
REPEAT = 5.0  # seconds in which the same rest of the same account is one event
RETRY = 5.0  # seconds between attempts while the database is away
LONGEST_REST = 7 * 24 * 3600.0  # how far back a rest that still runs may have begun

REST, CREDENTIAL, RECOVERED = "rest", "credential", "recovered"
BY_HAND = "ended by hand"
BEGINS = (REST, CREDENTIAL)

_noted: dict[tuple[int, str, str], float] = {}


class EventWriter:
    """Takes events from any thread without waiting and writes them in one of its own."""

    def __init__(self, *, kept: int = KEPT, retry: float = RETRY) -> None:
        self._waiting: deque[AccountEvent] = deque()
        self._lock = threading.Lock()
        self._kept, self._retry = kept, retry
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = 0  # events that found no room, or that the database refused

    def note(self, event: AccountEvent) -> None:
        """Never waits for the database, never raises."""
        with self._lock:
            self._waiting.append(event)
            if len(self._waiting) > self._kept:
                self._waiting.popleft()
                self.lost += 1
        self._wake.set()

    def start(self) -> None:
        """Write from now on; idempotent."""
        if self._thread is None:
            self._ending.clear()
            self._thread = threading.Thread(target=self._run, name="account-events", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Try once more to write what waits, and end the thread; idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ending.set()
            self._wake.set()
            thread.join(timeout=10)

    def flush(self) -> int:
        """Write what waits on the caller's connection; returns how many rows. Raises what the database raises."""
        written = 0
        while batch := self._next_batch():
            try:
                AccountEvent.objects.bulk_create(batch)
            except Exception:
                self._put_back(batch)
                raise
            written += len(batch)
        return written

    def _next_batch(self) -> list[AccountEvent]:
        with self._lock:
            return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]

    def _put_back(self, batch: list[AccountEvent]) -> None:
        with self._lock:
            self._waiting.extendleft(reversed(batch))

    def _run(self) -> None:
        while not self._ending.is_set():
            self._wake.wait()
            self._wake.clear()
            while not self._written() and not self._ending.wait(self._retry):
                pass
            connection.close()

    def _written(self) -> bool:
        """Whether nothing waits any more; a database that is away keeps it waiting."""
        try:
            self.flush()
        except Error as error:
            logger.warning("Account events wait for the database: %s", type(error).__name__)
            connection.close()
            return False
        except Exception:
            self._write_singly()
        return True

    def _write_singly(self) -> None:
        """One row that no database takes must not hold back the others for ever."""
        for event in self._next_batch():
            try:
                event.save(force_insert=True)
            except Exception as error:
                self.lost += 1
                logger.error("An event of account %s was dropped: %s", event.account_name, type(error).__name__)
        self._wake.set()


EVENTS = EventWriter()


def rested(account: Account, rest: Rest, *, now: float) -> None:
    """Note a rest. Many calls fail at once where one does: the same rest within seconds is one event."""
    said = (account.id, rest.model, rest.cause)
    before = _noted.get(said, -QUIET)
    if 0 <= now - before < REPEAT:
        return
    _noted[said] = now
    rejected = rest.cause == CREDENTIAL
    EVENTS.note(
        AccountEvent(
            account_id=account.id,
            account_name=account.name,
            at=moment(now),
            kind=CREDENTIAL if rejected else REST,
            model=clean(rest.model),
            cause=rest.cause,
            until=moment(rest.until),
            http_status=rest.http_status,
            named=rest.named,
        )
    )
    if rejected:
        logger.warning("Account %s rests: its credential or balance was rejected (%s)", account.name, rest.http_status)
        tell_admins(account, rest, again=now - before < QUIET)


def tell_admins(account: Account, rest: Rest, *, again: bool) -> None:
    """Mail it where ADMINS are set, not again within the hour; the mail goes out in a thread of its own."""
    if settings.ADMINS and not again:
        threading.Thread(target=mail, args=(account.name, rest), name="account-mail", daemon=True).start()


def mail(account_name: str, rest: Rest) -> None:
    try:
        mail_admins(
            f"Account {account_name} was rejected",
            f"The upstream rejected the credential or the balance of the account {account_name} "
            f"(HTTP status {rest.http_status}).\nIt rests until {moment(rest.until):%Y-%m-%d %H:%M:%S} UTC, then one "
            "call tries it again.",
        )
    except OSError as error:
        logger.warning("Admins could not be mailed about account %s: %s", account_name, type(error).__name__)


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
            model=clean(model),
            cause=cause,
        )
    )


async def restore_rests(store: Store, *, now: float) -> int:
    """Put the rests that still run back into the store, from their events; returns how many. Call it at start."""
    rests = await sync_to_async(unfinished_rests)(now=now)
    for rest in rests:
        await store.rest(rest, now=now)
    return len(rests)


def unfinished_rests(*, now: float) -> list[Rest]:
    """The rests that still run, by what was last noted of each account and model; one query."""
    since = moment(now - LONGEST_REST)
    return running(AccountEvent.objects.filter(at__gte=since).order_by("at", "pk"), now=now)


def running(events: Iterable[AccountEvent], *, now: float) -> list[Rest]:
    """Fold events, oldest first, to the rests that still run. A recovery by hand of the whole account ends them all."""
    rests: dict[tuple[int, str], Rest] = {}
    for event in events:
        if event.kind in BEGINS and event.until is not None:
            until = event.until.timestamp()
            rests[event.account_id, event.model] = Rest(
                event.account_id, event.model, until, event.cause, event.named, event.http_status
            )
        elif event.kind == RECOVERED:
            rests.pop((event.account_id, event.model), None)
            if event.cause == BY_HAND and not event.model:
                rests = {place: rest for place, rest in rests.items() if place[0] != event.account_id}
    return [rest for rest in rests.values() if rest.until > now]


def clean(model: str) -> str:
    """Client text as every database takes it."""
    return model.replace("\x00", "").encode("utf-8", "replace").decode()[:200]


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
