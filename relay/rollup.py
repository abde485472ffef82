"""Recompute hours and days from what counts in them, never increment them.

Whoever changes a record's figures marks its hour in the same transaction. A roll-up reads marks, adds up their hours,
and writes each hour in one transaction that deletes exactly the marks it had read: if one of them is gone, somebody
else has rolled up that hour meanwhile, and this one steps back. So two workers at once, or a record that arrives in
between, cost a repetition and never a figure.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
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
    for pk, hour in RollUpMark.objects.order_by("pk").values_list("pk", "hour"):
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
            log.error("roll-up: the hour %s can't be written: %s", hour, error)
            failed.append(hour)
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
    """Write one hour and its days; return whether that was still ours to do."""
    groups = sums(hour, hour + HOUR)
    with transaction.atomic():
        if connection.vendor == "postgresql":
            # One writer at a time: two who write hours of one day would each miss the other's. SQLite has but one.
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(hashtext('baton roll-up'))")
        deleted, _ = RollUpMark.objects.filter(pk__in=marks).delete()
        if deleted != len(marks):
            transaction.set_rollback(True)
            return False
        UsageHour.objects.filter(hour=hour).delete()
        UsageHour.objects.bulk_create(
            [
                UsageHour(hour=hour, **dict(zip(DIMENSIONS, group, strict=True)), **figures)
                for group, figures in groups.items()
            ],
            batch_size=500,
        )
        for day in days_of(hour):
            _write_day(day)
    return True


def _write_day(day: date) -> None:
    """Add up a day from its hours, and from the records of the pieces of hours at its ends, where it has such."""
    start, end = day_bounds(day)
    floor = records_begin()
    if floor is not None and start < floor:
        return
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
