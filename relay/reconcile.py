"""Proves that roll-ups equal records and corrections to the last nano-dollar, and names each difference.

Days are compared with records, not with hours. An hour that is marked, and a day with such an hour, may differ until
the roll-up has run; they are named as pending. Hours whose records were dropped can't be compared any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import Min, QuerySet, Sum

from relay.models import Quarantine, RollUpMark, UsageCorrection, UsageDay, UsageHour, UsageRecord
from relay.partitions import first_id, records_begin
from relay.rollup import day_bounds, days_of, first_hour
from relay.segments import waiting
from relay.sums import DIMENSIONS, HOUR, MEASURES, Group, hour_of, made_at, shifts, sums

# A mark, or an entry of the journal, that is older than this means that something does not run.
PATIENCE = timedelta(minutes=10)
LOOKS = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of one group in one period that the roll-up has wrong."""

    table: str  # "hour", "day", "total"
    period: str
    group: dict[str, Any]
    figure: str
    records: int
    rolled_up: int


@dataclass(slots=True)
class Report:
    """What the check found; `ok` where nothing differs, nothing waits too long and nothing is in quarantine."""

    since: str | None = None
    hours: int = 0
    days: int = 0
    records: int = 0
    cost_nanos: int = 0  # of records and corrections
    rolled_up_cost_nanos: int = 0
    held_nanos: int = 0
    differences: list[Difference] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    quarantined: int = 0
    waiting_marks: int = 0
    oldest_mark_seconds: float = 0.0
    waiting_entries: int = 0
    oldest_entry_seconds: float = 0.0

    @property
    def reasons(self) -> list[str]:
        """Why it is not ok, in words; empty = it is."""
        found = []
        if self.differences:
            found.append(f"{len(self.differences)} figures differ from their records")
        if self.quarantined:
            found.append(f"{self.quarantined} records are in quarantine")
        if self.oldest_mark_seconds > PATIENCE.total_seconds():
            found.append(f"hours wait to be rolled up for {self.oldest_mark_seconds:.0f} s: does the worker run?")
        if self.oldest_entry_seconds > PATIENCE.total_seconds():
            found.append(f"journal entries wait for the database for {self.oldest_entry_seconds:.0f} s")
        return found

    @property
    def ok(self) -> bool:
        return not self.reasons


def reconcile(*, now: datetime, since: datetime | None = None, journals: Path | None = None) -> Report:
    """Compare all hours and days, from `since` on, with the records of now."""
    report = Report(since=since.isoformat() if since else None)
    # What can't be compared: hours before `since`, and those whose records were dropped.
    bound = max((hour_of(at) for at in (since, records_begin()) if at is not None), default=None)
    hours = sorted(_hours(bound or first_hour(now)))
    days = sorted(
        {day for hour in hours for day in days_of(hour)} | set(UsageDay.objects.values_list("day", flat=True))
    )
    days = [day for day in days if bound is None or day_bounds(day)[0] >= bound]
    for hour in hours:
        _check_hour(report, hour)
    for day in days:
        _check_day(report, day)
    if hours:
        _check_total(report, hours[0], hours[-1] + HOUR)
    report.hours, report.days = len(hours), len(days)
    _count_what_waits(report, now=now, journals=journals or Path(settings.RELAY_DATA_DIR) / "journal")
    return report


def _hours(start: datetime) -> set[datetime]:
    """All hours in which something counts or was rolled up."""
    rolled_up = UsageHour.objects.filter(hour__gte=start).values_list("hour", flat=True).distinct()
    booked = UsageCorrection.objects.filter(booked_at__gte=start).values_list("booked_at", flat=True).distinct()
    return {*rolled_up, *map(hour_of, booked), *_hours_with_records(start)}


def _hours_with_records(start: datetime) -> Iterator[datetime]:
    """Jump from hour to hour by the key: no scan of the table."""
    hour = start
    while True:
        found = UsageRecord.objects.filter(pk__gte=first_id(hour)).order_by("pk").values_list("pk", flat=True).first()
        if found is None:
            return
        yield hour_of(made_at(found))
        hour = hour_of(made_at(found)) + HOUR


def _check_hour(report: Report, hour: datetime) -> None:
    for _ in range(LOOKS):
        expected = sums(hour, hour + HOUR)
        found = _rolled_up(UsageHour.objects.filter(hour=hour))
        differences = list(_compare("hour", hour.isoformat(), expected, found))
        # Looked up after the sums: what arrived in between has left its mark, or was rolled up and needs another look.
        if not differences or RollUpMark.objects.filter(hour=hour).exists():
            break
    report.cost_nanos += sum(figures["cost_nanos"] for figures in expected.values())
    report.held_nanos += sum(figures["held_nanos"] for figures in expected.values())
    report.rolled_up_cost_nanos += sum(row["cost_nanos"] for row in found.values())
    if differences and RollUpMark.objects.filter(hour=hour).exists():
        report.pending.append(hour.isoformat())
    else:
        report.differences += differences


def _check_day(report: Report, day: date) -> None:
    start, end = day_bounds(day)
    marks = RollUpMark.objects.filter(hour__gte=hour_of(start), hour__lt=end)
    for _ in range(LOOKS):
        found = _rolled_up(UsageDay.objects.filter(day=day))
        differences = list(_compare("day", day.isoformat(), _by_hours(start, end), found))
        if not differences or marks.exists():
            break
    if differences and marks.exists():
        report.pending.append(day.isoformat())
    else:
        report.differences += differences


def _by_hours(start: datetime, end: datetime) -> dict[Group, dict[str, Any]]:
    """Sums that a correction from one hour of the day to another can't blur."""
    total: dict[Group, dict[str, Any]] = {}
    piece = start
    while piece < end:
        until = min(hour_of(piece) + HOUR, end)
        for group, figures in sums(piece, until).items():
            into = total.setdefault(group, dict.fromkeys(MEASURES, 0))
            for name in MEASURES:
                into[name] += figures[name]
        piece = until
    return total


def _check_total(report: Report, start: datetime, end: datetime) -> None:
    """The same once more in one plain sum, which shares no rule with the roll-up but the corrections'."""
    records = UsageRecord.objects.filter(pk__gte=first_id(start), pk__lt=first_id(end))
    report.records = records.count()
    plain = int(records.aggregate(cost=Sum("cost_nanos"))["cost"] or 0)
    plain += sum(shift.figures["cost_nanos"] for shift in shifts(start, end))
    rolled_up = UsageHour.objects.filter(hour__gte=start, hour__lt=end).aggregate(cost=Sum("cost_nanos"))["cost"]
    if plain != int(rolled_up or 0) and not report.pending and not RollUpMark.objects.exists():
        period = f"{start.isoformat()}/{end.isoformat()}"
        report.differences.append(Difference("total", period, {}, "cost_nanos", plain, int(rolled_up or 0)))


def _compare(
    table: str, period: str, expected: dict[Group, dict[str, Any]], found: dict[Group, dict[str, Any]]
) -> Iterator[Difference]:
    nothing = dict.fromkeys(MEASURES, 0)
    for group in sorted({*expected, *found}):
        ours, theirs = expected.get(group, nothing), found.get(group, nothing)
        for name in MEASURES:
            if ours[name] != theirs[name]:
                named = dict(zip(DIMENSIONS, group, strict=True))
                yield Difference(table, period, named, name, ours[name], theirs[name])


def _rolled_up(rows: QuerySet[Any]) -> dict[Group, dict[str, Any]]:
    return {tuple(row[name] for name in DIMENSIONS): row for row in rows.values()}


def _count_what_waits(report: Report, *, now: datetime, journals: Path) -> None:
    report.quarantined = Quarantine.objects.filter(resolved_at=None).count()
    report.waiting_marks = RollUpMark.objects.count()
    marked = RollUpMark.objects.aggregate(at=Min("at"))["at"]
    report.oldest_mark_seconds = _age(marked.timestamp() if marked else None, now)
    report.waiting_entries, oldest = waiting(journals)
    report.oldest_entry_seconds = _age(oldest, now)


def _age(at: float | None, now: datetime) -> float:
    return max(0.0, now.timestamp() - at) if at is not None else 0.0


def lines(report: Report) -> Iterable[str]:
    """The report for a person."""
    yield f"{report.records} records in {report.hours} hours and {report.days} days: {report.cost_nanos} nano-dollars."
    yield f"Rolled up: {report.rolled_up_cost_nanos} nano-dollars. Held for calls of unknown cost: {report.held_nanos}."
    yield (
        f"Waiting: {report.waiting_marks} marks, {report.waiting_entries} journal entries; "
        f"{report.quarantined} records in quarantine."
    )
    for found in report.differences:
        group = ", ".join(f"{name} {value}" for name, value in found.group.items())
        figures = f"{found.figure} is {found.rolled_up}, records say {found.records}"
        yield f"{found.table} {found.period}: {figures} ({group})"
    if report.pending:
        yield f"Not rolled up yet: {', '.join(report.pending)}"
    yield "OK" if report.ok else f"NOT OK: {'; '.join(report.reasons)}."
