"""Which table answers for which time: roll-ups that are up to date for whole days and hours, else records. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Piece:
    """From `start` up to, not including, `end` (UTC), never across a local midnight; `day` is the local date."""

    start: datetime
    end: datetime
    day: date


@dataclass(frozen=True, slots=True)
class Cover:
    """A time, taken apart: nothing is left out and nothing counts twice."""

    days: tuple[date, ...]
    hours: tuple[datetime, ...]
    records: tuple[Piece, ...]


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The first moment of a local day, in UTC; where clocks skip midnight, the moment of the change."""
    return datetime.combine(day, time.min, tzinfo=zone).astimezone(UTC)


def hour_of(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def cover(
    start: datetime,
    end: datetime,
    *,
    dirty: Collection[datetime],
    zone: ZoneInfo,
    stale: Collection[date] = (),
    hourly: bool = False,
) -> Cover:
    """Take the time from `start` to `end` apart. `dirty` hours (UTC) have records that their roll-ups don't know yet,
    `stale` days were not added up since their hours were.

    With `hourly` every piece lies within one hour, and daily roll-ups are left alone.
    """
    dirty, stale = frozenset(dirty), frozenset(stale)
    days: list[date] = []
    hours: list[datetime] = []
    records: list[Piece] = []
    for piece in local_days(start, end, zone):
        fresh = piece.day not in stale and not any(hour in dirty for hour in hours_of(piece))
        if fresh and not hourly and is_whole_day(piece, zone):
            days.append(piece.day)
            continue
        for hour in hours_of(piece):
            part = Piece(max(piece.start, hour), min(piece.end, hour + HOUR), piece.day)
            if part.end - part.start == HOUR and hour not in dirty:
                hours.append(hour)
            elif not hourly and records and records[-1].end == part.start and records[-1].day == part.day:
                records[-1] = Piece(records[-1].start, part.end, part.day)
            else:
                records.append(part)
    return Cover(tuple(days), tuple(hours), tuple(records))


def local_days(start: datetime, end: datetime, zone: ZoneInfo) -> Iterator[Piece]:
    """The time as pieces of one local day each."""
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    day = start.astimezone(zone).date()
    while start < end:
        following = max(midnight(day + DAY, zone), start)
        if following > start:
            yield Piece(start, min(end, following), day)
            start = following
        day += DAY


def is_whole_day(piece: Piece, zone: ZoneInfo) -> bool:
    return piece.start == midnight(piece.day, zone) and piece.end == midnight(piece.day + DAY, zone)


def hours_of(piece: Piece) -> Iterator[datetime]:
    """The hours, UTC, that the piece touches."""
    hour = hour_of(piece.start)
    while hour < piece.end:
        yield hour
        hour += HOUR


def runs(days: Collection[date]) -> list[tuple[date, date]]:
    """Days as runs without a gap, first and last."""
    found: list[tuple[date, date]] = []
    for day in sorted(days):
        if found and day - found[-1][1] == DAY:
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found


def hour_runs(hours: Collection[datetime]) -> list[tuple[datetime, datetime]]:
    """Hours as runs without a gap, first and last."""
    found: list[tuple[datetime, datetime]] = []
    for hour in sorted(hours):
        if found and hour - found[-1][1] == HOUR:
            found[-1] = (found[-1][0], hour)
        else:
            found.append((hour, hour))
    return found
