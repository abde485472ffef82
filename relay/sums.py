"""What counts in a time: its records' figures in groups, as roll-ups, reports and the check command all add them up.

A correction changes its record's row, and usually counts in the hour of the record: then the row says it all. Booked in
another hour (the record's period was closed), it counts there, and the record's own hour keeps what it had before. A
correction that names no changed field left the row alone and is added where it is booked.

The model of a call is the one that answered, else the one that was sent, else the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from typing import Any
from uuid import UUID

from django.db.models import Count, F, Max, Q, QuerySet, Sum
from django.db.models.functions import Coalesce

from relay.call import CallStatus, UsageSource
from relay.models import ANSWERING_MODEL, UsageCorrection, UsageRecord
from relay.partitions import first_id

HOUR = timedelta(hours=1)
CHUNK = 500
NAMES = ("team_name", "key_name", "account_name")
# What corrections have differences of.
CORRECTED = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_nanos",
)
MODEL = ANSWERING_MODEL
GROUPS: dict[str, Any] = {
    "team_id": Coalesce("team_id", 0),
    "key_id": Coalesce("key_id", 0),
    "account_id": Coalesce("account_id", 0),
    "provider": F("provider"),
    "model": MODEL,
}
ERRORS = (CallStatus.UPSTREAM_ERROR.value, CallStatus.INTERRUPTED.value)
# Figures that are not the provider's last word.
ESTIMATES = (UsageSource.ESTIMATED.value, UsageSource.PARTIAL.value)
_REFUSED = Q(status=CallStatus.REFUSED.value)
_ESTIMATED = Q(usage_source__in=ESTIMATES)
FIGURES: dict[str, Any] = {
    "calls": Count("pk", filter=~_REFUSED),
    "errors": Count("pk", filter=Q(status__in=ERRORS)),
    "refused": Count("pk", filter=_REFUSED),
    "estimated_calls": Count("pk", filter=_ESTIMATED),
    "estimated_cost_nanos": Sum("cost_nanos", filter=_ESTIMATED),
    "unpriced_calls": Count("pk", filter=Q(unpriced=True)),
    **{name: Sum(name) for name in CORRECTED},
    "held_nanos": Sum("held_nanos"),
    "duration_ms": Sum("duration_ms"),
    "time_to_first_token_ms": Sum("time_to_first_token_ms"),
    "time_to_first_token_calls": Count("time_to_first_token_ms"),
}
DIMENSIONS = tuple(GROUPS)
MEASURES = tuple(FIGURES)
Group = tuple[Any, ...]  # one value for each of DIMENSIONS
Figures = dict[str, Any]  # NAMES and MEASURES


@dataclass(frozen=True, slots=True)
class Shift:
    """Figures that rows alone don't tell: to be added at `at`, for whom `whose` says (see there)."""

    whose: dict[str, Any]
    at: datetime
    figures: dict[str, int]


def hour_of(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def sums(start: datetime, end: datetime) -> dict[Group, Figures]:
    """Add up what counts from `start` to before `end`."""
    groups = _record_sums(UsageRecord.objects.filter(pk__gte=first_id(start), pk__lt=first_id(end)))
    for shift in shifts(start, end):
        figures = groups.setdefault(group_of(shift.whose), names_of(shift.whose) | dict.fromkeys(MEASURES, 0))
        for name, value in shift.figures.items():
            figures[name] += value
    return {group: figures for group, figures in groups.items() if any(figures[name] for name in MEASURES)}


def shifts(start: datetime, end: datetime) -> Iterator[Shift]:
    """Yield what has to be added to the rows of this time: corrections that count here and not in their record's row,
    and the opposite of those that are in the row and count elsewhere."""
    low, high = hour_of(start), hour_of(end - timedelta(microseconds=1)) + HOUR
    of_these_hours = Q(record_id__gte=first_id(low), record_id__lt=first_id(high))
    one_hour = high - low == HOUR
    booked = UsageCorrection.objects.filter(booked_at__gte=start, booked_at__lt=end)
    if one_hour:
        booked = booked.filter(~of_these_hours | Q(changes={}))
    for correction, record in _with_records(booked):
        if not correction.changes or _is_elsewhere(correction):
            owner = whose(record) if record is not None else correction.whose  # retention has dropped the record
            yield Shift(owner, correction.booked_at, {name: getattr(correction, name) for name in CORRECTED})
    moved = UsageCorrection.objects.filter(record_id__gte=first_id(start), record_id__lt=first_id(end))
    if one_hour:
        moved = moved.exclude(booked_at__gte=low, booked_at__lt=high)
    yield from _undone(moved.exclude(changes={}))


def whose(record: UsageRecord | None) -> dict[str, Any]:
    """Return what sums group a record by: DIMENSIONS as the database would have them, NAMES and tags. None: nobody."""
    if record is None:
        return {}
    model = record.response_model or record.upstream_model or record.requested_model
    ids = {name: getattr(record, name) or 0 for name in ("team_id", "key_id", "account_id")}
    names = {name: getattr(record, name) for name in NAMES}
    return {**ids, **names, "provider": record.provider, "model": model, "tags": record.tags}


def group_of(owner: Mapping[str, Any]) -> Group:
    return tuple(owner.get(name) or ("" if name in ("provider", "model") else 0) for name in DIMENSIONS)


def names_of(owner: Mapping[str, Any]) -> dict[str, Any]:
    return {name: owner.get(name, "") for name in NAMES}


def figures_of(record: UsageRecord) -> dict[str, int]:
    """Return what one row counts, by the rules of FIGURES."""
    refused, estimated = record.status == CallStatus.REFUSED, record.usage_source in ESTIMATES
    return {
        "calls": int(not refused),
        "errors": int(record.status in ERRORS),
        "refused": int(refused),
        "estimated_calls": int(estimated),
        "estimated_cost_nanos": record.cost_nanos if estimated else 0,
        "unpriced_calls": int(record.unpriced),
        **{name: getattr(record, name) or 0 for name in CORRECTED},
        "held_nanos": record.held_nanos,
        "duration_ms": record.duration_ms or 0,
        "time_to_first_token_ms": record.time_to_first_token_ms or 0,
        "time_to_first_token_calls": int(record.time_to_first_token_ms is not None),
    }


def made_at(record_id: UUID) -> datetime:
    """Return the time that is in a UUIDv7."""
    return datetime.fromtimestamp((record_id.int >> 80) / 1000, UTC)


def _is_elsewhere(correction: UsageCorrection) -> bool:
    return hour_of(correction.booked_at) != hour_of(made_at(correction.record_id))


def _undone(corrections: QuerySet[UsageCorrection]) -> Iterator[Shift]:
    """What each row counted before the corrections that count elsewhere, less what it counts now."""
    elsewhere = (
        (correction, record)
        for correction, record in _with_records(corrections.order_by("record_id", "-created_at", "-pk"))
        if record is not None and _is_elsewhere(correction)
    )
    for _, pairs in groupby(elsewhere, key=lambda pair: pair[0].record_id):
        now: dict[str, int] = {}
        record = None
        for correction, record in pairs:
            now = now or figures_of(record)
            for name, (old, _) in correction.changes.items():
                # Counts by their differences: corrections that count here may stand between those that don't.
                known = (getattr(record, name) or 0) - getattr(correction, name) if name in CORRECTED else old
                setattr(record, name, known)
        assert record is not None
        yield Shift(
            whose(record), record.created_at, {name: value - now[name] for name, value in figures_of(record).items()}
        )


def _with_records(corrections: QuerySet[UsageCorrection]) -> Iterator[tuple[UsageCorrection, UsageRecord | None]]:
    ordered = corrections if corrections.query.order_by else corrections.order_by("pk")
    rows = ordered.iterator(chunk_size=CHUNK)
    records: dict[UUID, UsageRecord] = {}
    while batch := list(islice(rows, CHUNK)):
        # Of the batch before, only the last may go on in this one.
        last = batch[0].record_id
        records = {pk: record for pk, record in records.items() if pk == last}
        missing = {correction.record_id for correction in batch} - records.keys()
        records |= UsageRecord.objects.in_bulk(list(missing))
        for correction in batch:
            yield correction, records.get(correction.record_id)


def _record_sums(records: QuerySet[UsageRecord]) -> dict[Group, Figures]:
    # Other names than the fields', which Django would take for the columns.
    rows: Any = (
        records.order_by()
        .values(**{f"of_{name}": expression for name, expression in GROUPS.items()})
        .annotate(**{f"last_{name}": Max(name) for name in NAMES})
        .annotate(**{f"sum_{name}": expression for name, expression in FIGURES.items()})
    )
    return {
        tuple(row[f"of_{name}"] for name in DIMENSIONS): {
            **{name: row[f"last_{name}"] for name in NAMES},
            **{name: int(row[f"sum_{name}"] or 0) for name in MEASURES},
        }
        for row in rows
    }
