"""A corrected or repriced record changes the counters that had counted it, once, whichever relay sees it first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

from asgiref.sync import sync_to_async
from django.apps import apps

from apikeys.ledger_sums import OWNER_COLUMNS, TOKEN_COLUMNS
from apikeys.rules import Counted, counted_one
from relay.call import LimitRule
from relay.state.base import Store
from relay.state.snapshot import give_connection_back

AT_ONCE = 1000
OVERLAP = 500  # ids: a transaction that began earlier may commit later
FIRST_LOOK = timedelta(hours=26)  # back, at a start: while no relay ran, corrections were made too
Owner = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Change:
    """What one correction took from some owners and gave to others, by metric."""

    id: int
    corrected_at: float
    called_at: float
    model: str
    amounts: Mapping[Owner, Mapping[str, int]]


@dataclass(slots=True)
class Seen:
    """How far this process has read; `done` are ids within the overlap."""

    last: int | None = None
    done: set[int] = field(default_factory=set)


_seen: WeakKeyDictionary[Store, Seen] = WeakKeyDictionary()


async def follow(store: Store, rules: Callable[[], Iterable[LimitRule]], *, now: float) -> None:
    """Apply the corrections that are new to the store's counters; `rules` are all limits there are, asked for only
    where something was corrected. Raises DatabaseError, StoreAway: call it again."""
    seen = _seen.setdefault(store, Seen())
    if seen.last is None:
        seen.last = await sync_to_async(start)(now)
    changes = await sync_to_async(read)(seen.last - OVERLAP, seen.done)
    if not changes:
        return
    limits: dict[Owner, list[Counted]] = defaultdict(list)
    for rule in rules():
        limits[rule.scope, rule.owner_id].append(counted_one(rule))
    cuts = await store.seeded()
    for change in changes:
        amounts = counters_of(change, limits, cuts)
        if amounts:
            await store.adjust(amounts, now=now, once=f"correction:{change.id}")
        seen.done.add(change.id)
    seen.last = max(seen.last, changes[-1].id)
    seen.done = {number for number in seen.done if number > seen.last - OVERLAP}


def counters_of(change: Change, limits: Mapping[Owner, Sequence[Counted]], cuts: Mapping[str, float]) -> dict[str, int]:
    """Return the signed amounts by counter. A limit that was seeded later has the corrected figures already."""
    found: dict[str, int] = {}
    for owner, amounts in change.amounts.items():
        for limit in limits.get(owner, ()):
            seeded = limit.metric in amounts and cuts.get(limit.limit, change.corrected_at) < change.corrected_at
            if seeded and amounts[limit.metric] and limit.matches(change.model):
                found[limit.counter(change.called_at)[0]] = amounts[limit.metric]
    return found


def start(now: float) -> int:
    """The last correction that is too old to matter."""
    corrections = apps.get_model("relay", "UsageCorrection").objects
    before = datetime.fromtimestamp(now, UTC) - FIRST_LOOK
    newest = corrections.filter(created_at__lt=before).order_by("-pk").values_list("pk", flat=True).first()
    give_connection_back()
    return newest or 0


def read(after: int, done: set[int]) -> list[Change]:
    """The corrections behind an id that are not done, oldest first."""
    try:
        corrections = apps.get_model("relay", "UsageCorrection").objects
        rows = list(corrections.filter(pk__gt=after).exclude(pk__in=done).order_by("pk")[:AT_ONCE])
        wanted = {row.record_id for row in rows}
        records = apps.get_model("relay", "UsageRecord").objects.in_bulk(wanted) if wanted else {}
        return [change_of(row, records[row.record_id]) for row in rows if row.record_id in records]
    finally:
        give_connection_back()


def change_of(correction: Any, record: Any) -> Change:
    """What changed for whom: the same owner gets the difference, another one all of it."""
    was, became = before_and_after(correction.changes, record)
    amounts: dict[Owner, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("requests", "tokens", "cost"), 0))
    for sign, figures in ((-1, was), (1, became)):
        if figures["status"] == "refused":
            continue
        used = {
            "requests": 1,
            "tokens": sum(figures[name] or 0 for name in TOKEN_COLUMNS),
            "cost": figures["cost_nanos"] + figures["held_nanos"],
        }
        for scope, column in OWNER_COLUMNS.items():
            if figures[column] is not None:
                owner = amounts[scope, figures[column]]
                for metric, amount in used.items():
                    owner[metric] += sign * amount
    called_at, corrected_at = record.created_at.timestamp(), correction.created_at.timestamp()
    return Change(correction.pk, corrected_at, called_at, record.requested_model, amounts)


def before_and_after(changes: Mapping[str, Sequence[Any]], record: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    columns = (*TOKEN_COLUMNS, "cost_nanos", "held_nanos", "status", *OWNER_COLUMNS.values())
    now = {name: getattr(record, name) for name in columns}
    was = now | {name: pair[0] for name, pair in changes.items() if name in now}
    became = now | {name: pair[1] for name, pair in changes.items() if name in now}
    return was, became
