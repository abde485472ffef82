"""Recompute hours and days from what counts in them, never increment them.

Whoever changes a record's figures marks its hour in the same transaction. A roll-up reads marks, adds up their hours,
and writes each hour in one transaction that turns exactly the marks it had read into one for the hour's day: if one of
them is gone, somebody else has rolled up that hour meanwhile, and this one steps back. So two workers at once, or a
record that arrives in between, cost a repetition and never a figure. Days follow from their hours in the same way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import DataError, connection, transaction
from django.db.models import Min

from relay.models import RollUpMark, UsageCorrection, UsageDay, UsageHour, UsageRecord
from relay.partitions import records_begin
from relay.sums import DIMENSIONS, HOUR, MEASURES, NAMES, Figures, Group, hour_of, made_at, sums

log = logging.getLogger(__name__)
GAP_SECONDS = 0.01


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
    """Have all hours from that of `since`, or the first with anything in it, to that of `until` rolled up again."""
    start = max(hour_of(since), first_hour(until))
    mark(start + HOUR * number for number in range(int((hour_of(until) - start) / HOUR) + 1))


def first_hour(now: datetime) -> datetime:
    """The first hour in which anything counts or was rolled up, that of `now` where there is nothing."""
    record = UsageRecord.objects.order_by("pk").values_list("pk", flat=True).first()
    day = UsageDay.objects.aggregate(at=Min("day"))["at"]
    known = [
        UsageHour.objects.aggregate(at=Min("hour"))["at"],
        UsageCorrection.objects.aggregate(at=Min("booked_at"))["at"],
        made_at(record) if record else None,
        day_bounds(day)[0] if day else None,
    ]
    return hour_of(min((at for at in known if at is not None), default=now))


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
    start, end = (datetime.combine(at, datetime.min.time(), tzinfo=zone) for at in (day, day + timedelta(days=1)))
    return start.astimezone(UTC), end.astimezone(UTC)


def _roll_up_hour(hour: datetime, marks: list[int]) -> bool:
    """Write one hour and mark its days; return whether that was still ours to do."""
    rows = _rows(connection.ops.adapt_datetimefield_value(hour), sums(hour, hour + HOUR))
    with transaction.atomic():
        taken = _take(marks)
        if taken:
            _replace(_HOURS, connection.ops.adapt_datetimefield_value(hour), rows)
            RollUpMark.objects.bulk_create([RollUpMark(hour=hour, day=day) for day in days_of(hour)])
    _let_others_write()
    return taken


def _roll_up_days(floor: datetime | None) -> None:
    marked: dict[Any, list[int]] = {}
    for pk, day in RollUpMark.objects.exclude(day=None).values_list("pk", "day"):
        marked.setdefault(day, []).append(pk)
    for day, marks in sorted(marked.items(), reverse=True):
        try:
            _roll_up_day(day, marks, floor=floor)
        except DataError as error:
            log.error("roll-up: the day %s can't be written: %s", day, type(error).__name__)


def _roll_up_day(day: date, marks: list[int], *, floor: datetime | None) -> None:
    """Write one day, unless somebody else does; hours whose records were dropped are still known, pieces of hours not:
    a day that begins with such a piece keeps what was rolled up of it."""
    on = connection.ops.adapt_datefield_value(day)
    stays = floor is not None and any(start < floor for start, _ in _pieces(day))
    rows = [] if stays else _rows(on, _sums_of_day(day))
    with transaction.atomic():
        if _take(marks) and not stays:
            _replace(_DAYS, on, rows)
    _let_others_write()


def _sums_of_day(day: date) -> dict[Group, Figures]:
    """Add up a day from its hours, and from the records of the pieces of hours at its ends, where it has such."""
    first, last = _whole_hours(day)
    adapt = connection.ops.adapt_datetimefield_value
    with connection.cursor() as cursor:
        cursor.execute(_SUMS_OF_HOURS, [adapt(first), adapt(last)])
        groups = {row[: len(DIMENSIONS)]: _figures(row[len(DIMENSIONS) :]) for row in cursor.fetchall()}
    for piece in _pieces(day):
        for group, figures in sums(*piece).items():
            into = groups.setdefault(group, {**figures, **dict.fromkeys(MEASURES, 0)})
            for measure in MEASURES:
                into[measure] += figures[measure]
    return groups


def _whole_hours(day: date) -> tuple[datetime, datetime]:
    """Return the beginning of the first whole hour of a day and the end of the last."""
    start, end = day_bounds(day)
    return hour_of(start + HOUR - timedelta(microseconds=1)), hour_of(end)


def _pieces(day: date) -> list[tuple[datetime, datetime]]:
    """Return the pieces of hours at a day's ends; most zones have none."""
    (start, end), (first, last) = day_bounds(day), _whole_hours(day)
    return [piece for piece in ((start, first), (last, end)) if piece[0] < piece[1]]


def _figures(values: Sequence[Any]) -> Figures:
    names = dict(zip(NAMES, values, strict=False))
    return names | {name: int(value) for name, value in zip(MEASURES, values[len(NAMES) :], strict=True)}


def _rows(at: Any, groups: Mapping[Group, Figures]) -> list[list[Any]]:
    """The values to be written: made before anything is locked."""
    return [[at, *group, *(figures[name] for name in (*NAMES, *MEASURES))] for group, figures in groups.items()]


def _replace(table: _Table, at: Any, rows: Sequence[Sequence[Any]]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(table.delete, [at])
        cursor.executemany(table.insert, rows)


def _let_others_write() -> None:
    """SQLite has one writer and no queue: without a gap between two of ours, the ledger would not get in."""
    if connection.vendor == "sqlite":
        time.sleep(GAP_SECONDS)


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


def _columns(template: str, names: Iterable[str]) -> str:
    return ", ".join(template.format(name) for name in names)


class _Table(NamedTuple):
    delete: str
    insert: str


def _table(name: str, moment: str) -> _Table:
    columns = (moment, *DIMENSIONS, *NAMES, *MEASURES)
    return _Table(
        f"DELETE FROM {name} WHERE {moment} = %s",  # noqa: S608 - our own names
        f"INSERT INTO {name} ({_columns('{}', columns)}) VALUES ({_columns('%s', columns)})",  # noqa: S608
    )


_HOURS, _DAYS = _table("relay_usagehour", "hour"), _table("relay_usageday", "day")
_SUMS_OF_HOURS = f"""
    SELECT {_columns("{}", DIMENSIONS)}, {_columns("MAX({})", NAMES)}, {_columns("SUM({})", MEASURES)}
    FROM relay_usagehour WHERE hour >= %s AND hour < %s GROUP BY {_columns("{}", DIMENSIONS)}
"""  # noqa: S608 - our own names
