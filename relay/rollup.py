"""Recompute hours and days from what counts in them, never increment them.

Whoever changes a record's figures marks its hour in the same transaction. A roll-up reads marks, adds up their hours,
and writes each hour in one transaction that turns exactly the marks it had read into one for the hour's day: if one of
them is gone, somebody else has rolled up that hour meanwhile, and this one steps back. So two workers at once, or a
record that arrives in between, cost a repetition and never a figure. Days follow from their hours in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import DataError, connection, transaction

from relay.models import RollUpMark, UsageDay, UsageHour
from relay.partitions import records_begin
from relay.sums import DIMENSIONS, HOUR, MEASURES, NAMES, hour_of, sums

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RolledUp:
    """What one roll-up did. Hours that somebody else rolled up meanwhile are not counted."""

    hours: int = 0
    failed: tuple[datetime, ...] = ()


def mark(times: Iterable[datetime]) -> None:
    """Have the hours of these times rolled up again.

    Call it in the transaction that changes what counts in them: a record (its `created_at`), a correction (its
    `booked_at`).
    """
    RollUpMark.objects.bulk_create([RollUpMark(hour=hour) for hour in sorted({hour_of(at) for at in times})])


def mark_since(since: datetime, *, until: datetime) -> None:
    """Have all hours from that of `since` to that of `until` rolled up again."""
    hours = int((hour_of(until) - hour_of(since)) / HOUR) + 1
    mark(hour_of(since) + HOUR * number for number in range(hours))


def roll_up() -> RolledUp:
    """Roll up the hours that are marked now, and their days; an hour whose sums fit no column keeps its marks."""
    marked: dict[datetime, list[int]] = {}
    for pk, hour in RollUpMark.objects.filter(day=None).order_by("pk").values_list("pk", "hour"):
        marked.setdefault(hour, []).append(pk)
    floor = records_begin()
    hours, failed = 0, []
    for hour, marks in sorted(marked.items(), reverse=True):
        if floor is not None and hour < floor:
            # Its records are gone; what was rolled up of them stays.
            RollUpMark.objects.filter(pk__in=marks).delete()
            continue
        try:
            hours += _roll_up_hour(hour, marks)
        except DataError as error:
            log.error("roll-up: the hour %s can't be written: %s", hour, type(error).__name__)
            failed.append(hour)
    _roll_up_days(floor)
    return RolledUp(hours=hours, failed=tuple(failed))


def days_of(hour: datetime) -> list[date]:
    """Return the days of REPORT_TIME_ZONE that a part of this UTC hour lies in."""
    zone = ZoneInfo(settings.REPORT_TIME_ZONE)
    return sorted({hour.astimezone(zone).date(), (hour + HOUR - timedelta(microseconds=1)).astimezone(zone).date()})


def day_bounds(day: date) -> tuple[datetime, datetime]:
    """Return the first moment of a day of REPORT_TIME_ZONE and that of the next, in UTC."""
    zone = ZoneInfo(settings.REPORT_TIME_ZONE)
    start, end = (datetime.combine(at, time.min, tzinfo=zone) for at in (day, day + timedelta(days=1)))
    return start.astimezone(UTC), end.astimezone(UTC)


def _roll_up_hour(hour: datetime, marks: list[int]) -> bool:
    """Write one hour and mark its days; return whether that was still ours to do."""
    groups = sums(hour, hour + HOUR)
    rows = [
        UsageHour(hour=hour, **dict(zip(DIMENSIONS, group, strict=True)), **figures)
        for group, figures in groups.items()
    ]
    with transaction.atomic():
        if not _take(marks):
            return False
        UsageHour.objects.filter(hour=hour).delete()
        UsageHour.objects.bulk_create(rows, batch_size=500)
        RollUpMark.objects.bulk_create([RollUpMark(hour=hour, day=day) for day in days_of(hour)])
    return True


def _roll_up_days(floor: datetime | None) -> None:
    marked: dict[Any, list[int]] = {}
    for pk, day in RollUpMark.objects.exclude(day=None).values_list("pk", "day"):
        marked.setdefault(day, []).append(pk)
    for day, marks in sorted(marked.items(), reverse=True):
        try:
            with transaction.atomic():
                # A day whose first records were dropped keeps what was rolled up of it.
                if _take(marks) and (floor is None or day_bounds(day)[0] >= floor):
                    _write_day(day)
        except DataError as error:
            log.error("roll-up: the day %s can't be written: %s", day, type(error).__name__)


def _take(marks: list[int]) -> bool:
    """Delete these marks; False, and the transaction is rolled back, where somebody else had one of them."""
    if connection.vendor == "postgresql":
        # One writer at a time: whoever writes a day must see all of its hours. SQLite has but one anyway.
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('baton roll-up'))")
    deleted, _ = RollUpMark.objects.filter(pk__in=marks).delete()
    if deleted != len(marks):
        transaction.set_rollback(True)
    return deleted == len(marks)


def _write_day(day: date) -> None:
    """Add up a day from its hours, and from the records of the pieces of hours at its ends, where it has such."""
    start, end = day_bounds(day)
    first, last = hour_of(start + HOUR - timedelta(microseconds=1)), hour_of(end)
    UsageDay.objects.filter(day=day).delete()
    with connection.cursor() as cursor:
        adapt = connection.ops.adapt_datetimefield_value
        on = connection.ops.adapt_datefield_value(day)
        cursor.execute(_DAY_FROM_HOURS, [on, adapt(first), adapt(last)])
        for piece in ((start, first), (last, end)):
            if piece[0] < piece[1]:
                rows = [
                    [on, *group, *(figures[name] for name in (*NAMES, *MEASURES))]
                    for group, figures in sums(*piece).items()
                ]
                cursor.executemany(_ADD_TO_DAY, rows)


def _columns(template: str, names: Iterable[str]) -> str:
    return ", ".join(template.format(name) for name in names)


_DAY_COLUMNS = ("day", *DIMENSIONS, *NAMES, *MEASURES)
_DAY_FROM_HOURS = f"""
    INSERT INTO relay_usageday ({_columns("{}", _DAY_COLUMNS)})
    SELECT %s, {_columns("{}", DIMENSIONS)}, {_columns("MAX({})", NAMES)}, {_columns("SUM({})", MEASURES)}
    FROM relay_usagehour WHERE hour >= %s AND hour < %s GROUP BY {_columns("{}", DIMENSIONS)}
"""  # noqa: S608 - our own names
_ADD_TO_DAY = f"""
    INSERT INTO relay_usageday ({_columns("{}", _DAY_COLUMNS)}) VALUES ({_columns("%s", _DAY_COLUMNS)})
    ON CONFLICT ({_columns("{}", ("day", *DIMENSIONS))})
    DO UPDATE SET {_columns("{0} = relay_usageday.{0} + excluded.{0}", MEASURES)}
"""  # noqa: S608 - our own names
