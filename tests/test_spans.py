"""A time taken apart for roll-ups and records: nothing left out, nothing twice, whatever the zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.spans import DAY, HOUR, Cover, Piece, cover, hour_of, hour_runs, midnight, runs

# Half hours, a midnight that the clocks skip (Beirut), days of 23 and 25 hours (New York).
ZONES = [ZoneInfo(name) for name in ("UTC", "Asia/Kolkata", "Asia/Beirut", "America/New_York", "Pacific/Chatham")]
START = datetime(2026, 3, 20, tzinfo=UTC)
moments = st.integers(0, 30 * 86_400).map(lambda seconds: START + timedelta(seconds=seconds))
hours = st.integers(-30, 750).map(lambda number: START + HOUR * number)


def pieces(parts: Cover, zone: ZoneInfo) -> list[tuple[datetime, datetime]]:
    """Everything that the cover counts, in order."""
    found = [(midnight(day, zone), midnight(day + DAY, zone)) for day in parts.days]
    found += [(hour, hour + HOUR) for hour in parts.hours]
    found += [(piece.start, piece.end) for piece in parts.records]
    return sorted(found)


@given(st.sampled_from(ZONES), moments, moments, st.sets(hours, max_size=40), st.booleans())
def test_every_moment_counts_once(
    zone: ZoneInfo, one: datetime, other: datetime, dirty: set[datetime], hourly: bool
) -> None:
    start, end = sorted((one, other))
    parts = cover(start, end, dirty=dirty, zone=zone, hourly=hourly)
    found = pieces(parts, zone)
    if start == end:
        assert found == []
        return
    assert (found[0][0], found[-1][1]) == (start, end)
    assert all(before[1] == after[0] for before, after in pairwise(found))


@given(st.sampled_from(ZONES), moments, moments, st.sets(hours, max_size=40), st.booleans())
def test_what_changed_is_read_from_records(
    zone: ZoneInfo, one: datetime, other: datetime, dirty: set[datetime], hourly: bool
) -> None:
    start, end = sorted((one, other))
    parts = cover(start, end, dirty=dirty, zone=zone, hourly=hourly)
    rolled_up = [(midnight(day, zone), midnight(day + DAY, zone)) for day in parts.days]
    rolled_up += [(hour, hour + HOUR) for hour in parts.hours]
    assert not any(first < hour + HOUR and hour < last for first, last in rolled_up for hour in dirty)
    assert all(piece.start.astimezone(zone).date() == piece.day for piece in parts.records)
    if hourly:
        assert parts.days == ()
        assert all(hour_of(piece.start) == hour_of(piece.end - timedelta(microseconds=1)) for piece in parts.records)


def test_a_clean_month_is_read_from_days_alone() -> None:
    zone = ZoneInfo("Europe/Berlin")
    parts = cover(midnight(date(2026, 3, 1), zone), midnight(date(2026, 4, 1), zone), dirty=(), zone=zone)
    assert (len(parts.days), parts.hours, parts.records) == (31, (), ())


def test_the_current_hour_makes_its_day_hours_and_one_piece() -> None:
    now = datetime(2026, 3, 20, 14, tzinfo=UTC)
    parts = cover(START, START + DAY, dirty={now}, zone=ZoneInfo("UTC"))
    assert (parts.days, len(parts.hours)) == ((), 23)
    assert parts.records == (Piece(now, now + HOUR, date(2026, 3, 20)),)


def test_a_stale_day_is_read_from_its_hours() -> None:
    parts = cover(START, START + 2 * DAY, dirty=(), stale={START.date()}, zone=ZoneInfo("UTC"))
    assert (parts.days, len(parts.hours), parts.records) == ((date(2026, 3, 21),), 24, ())


def test_a_day_behind_is_one_piece_not_many() -> None:
    dirty = {START + HOUR * number for number in range(24)}
    parts = cover(START, START + DAY, dirty=dirty, zone=ZoneInfo("UTC"))
    assert parts.records == (Piece(START, START + DAY, START.date()),)


@pytest.mark.parametrize(
    "days,expected",
    [
        ([], []),
        ([1, 2, 3, 7, 8], [(1, 3), (7, 8)]),
        ([5], [(5, 5)]),
    ],
)
def test_runs(days: list[int], expected: list[tuple[int, int]]) -> None:
    found = runs([date(2026, 1, day) for day in days])
    assert [(first.day, last.day) for first, last in found] == expected
    found_hours = hour_runs([START + HOUR * hour for hour in days])
    assert [(first.hour, last.hour) for first, last in found_hours] == expected
