"""What to show of an account's state: pure, from its row and its events, so that it needs no running relay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from accounts.events import CREDENTIAL, REST
from accounts.health import BY_HAND, CAUSES
from accounts.models import Account, AccountEvent

BEGINS = (REST, CREDENTIAL)


@dataclass(frozen=True, slots=True)
class Resting:
    """A rest that still runs; `model` "" = the whole account."""

    model: str
    cause: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Status:
    """`state` is ready, resting, off, expired, fault or deleted; `resting` may be partial: some models only."""

    state: str
    cause: str = ""
    resting: tuple[Resting, ...] = ()

    @property
    def partial(self) -> bool:
        return bool(self.resting) and all(rest.model for rest in self.resting)

    @property
    def until(self) -> datetime | None:
        """When the last of its rests ends."""
        return max((rest.until for rest in self.resting), default=None)


def open_rests(events: Iterable[AccountEvent], *, now: datetime) -> dict[int, tuple[Resting, ...]]:
    """Return the rests that still run, by account; `events` in any order, the latest about a model counts."""
    latest: dict[tuple[int, str], AccountEvent] = {}
    for event in sorted(events, key=lambda event: (event.at, event.pk or 0)):
        if event.kind not in BEGINS and event.cause == BY_HAND and not event.model:
            latest = {key: known for key, known in latest.items() if key[0] != event.account_id}
        latest[event.account_id, event.model] = event
    found: dict[int, list[Resting]] = {}
    for (account_id, model), event in latest.items():
        if event.kind in BEGINS and event.until and event.until > now:
            found.setdefault(account_id, []).append(Resting(model, event.cause, event.until))
    return {account_id: tuple(sorted(rests, key=lambda rest: rest.model)) for account_id, rests in found.items()}


def status(account: Account, rests: Sequence[Resting], *, fault: str, now: datetime) -> Status:
    """Return the state that matters most: what a person must act on comes before what passes by itself."""
    if account.deleted_at:
        return Status("deleted")
    if not account.active:
        return Status("off", "switched off by a person")
    if account.expires_at and account.expires_at <= now:
        return Status("expired", f"since {account.expires_at:%Y-%m-%d}")
    if fault:
        return Status("fault", fault)
    if any(rest.cause == CREDENTIAL for rest in rests):
        return Status("fault", CAUSES[CREDENTIAL], tuple(rests))
    if rests:
        return Status("resting", rests[0].cause, tuple(rests))
    return Status("ready")


def statuses(accounts: Sequence[Account], *, faults: Mapping[int, str], now: datetime) -> dict[int, Status]:
    """Return the status of each account by id; one query."""
    ids = [account.pk for account in accounts]
    since = AccountEvent.objects.filter(account_id__in=ids, kind__in=BEGINS, until__gt=now).order_by("at")
    first = since.values_list("at", flat=True).first()
    events = AccountEvent.objects.filter(account_id__in=ids, at__gte=first) if first else AccountEvent.objects.none()
    rests = open_rests(events, now=now)
    return {
        account.pk: status(account, rests.get(account.pk, ()), fault=faults.get(account.pk, ""), now=now)
        for account in accounts
    }
