"""Periods: calendar borders in any time zone, and every moment in exactly one period of each kind."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apikeys.periods import PERS, period

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Shanghai",
    "Asia/Kolkata",  # +5:30
    "Asia/Kathmandu",  # +5:45
    "Australia/Lord_Howe",  # clocks move by half an hour
    "America/Havana",  # midnight does not exist in spring and comes twice in autumn
    "Africa/Cairo",  # autumn's midnight falls back to 23:00
    "America/Santiago",
    "Pacific/Apia",  # had no 2011-12-30
    "Pacific/Kiritimati",  # +14
    "Pacific/Pago_Pago",  # -11
)
LENGTHS = {"minute": 60, "hour": 3600, "5h": 18_000, "day": 90_000, "week": 7 * 90_000, "month": 32 * 86_400}


def moment(text: str, zone: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def bounds(per: str, zone: str, at: str) -> tuple[str, str]:
    found = period(per, zone, at=moment(at, zone))
    start, end = (datetime.fromtimestamp(edge, ZoneInfo(zone)) for edge in found)
    return start.strftime("%Y-%m-%d %H:%M"), end.strftime("%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    "per, zone, at, expected",
    [
        ("minute", "UTC", "2026-06-01 12:34:56", ("2026-06-01 12:34", "2026-06-01 12:35")),
        ("hour", "Asia/Kolkata", "2026-06-01 12:34:56", ("2026-06-01 12:00", "2026-06-01 13:00")),
        ("hour", "Asia/Kathmandu", "2026-06-01 12:59:59", ("2026-06-01 12:00", "2026-06-01 13:00")),
        ("5h", "Asia/Shanghai", "2026-06-01 09:59:59", ("2026-06-01 05:00", "2026-06-01 10:00")),
        ("5h", "UTC", "2026-06-01 23:59:59", ("2026-06-01 20:00", "2026-06-02 00:00")),
        ("day", "Asia/Kathmandu", "2026-06-01 00:00:00", ("2026-06-01 00:00", "2026-06-02 00:00")),
        ("day", "Europe/Berlin", "2026-03-29 12:00:00", ("2026-03-29 00:00", "2026-03-30 00:00")),
        ("day", "America/Havana", "2026-03-08 12:00:00", ("2026-03-08 01:00", "2026-03-09 00:00")),
        ("day", "Pacific/Apia", "2011-12-29 12:00:00", ("2011-12-29 00:00", "2011-12-31 00:00")),
        ("week", "UTC", "2026-06-07 23:59:59", ("2026-06-01 00:00", "2026-06-08 00:00")),
        ("week", "America/New_York", "2026-06-08 00:00:00", ("2026-06-08 00:00", "2026-06-15 00:00")),
        ("month", "Asia/Shanghai", "2026-04-30 23:59:59", ("2026-04-01 00:00", "2026-05-01 00:00")),
        ("month", "UTC", "2024-02-29 12:00:00", ("2024-02-01 00:00", "2024-03-01 00:00")),
        ("month", "UTC", "2026-12-31 23:59:59", ("2026-12-01 00:00", "2027-01-01 00:00")),
    ],
)
def test_periods_begin_and_end_on_local_borders(per: str, zone: str, at: str, expected: tuple[str, str]) -> None:
    assert bounds(per, zone, at) == expected


@pytest.mark.parametrize(
    "zone, day, hours",
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("Asia/Shanghai", "2026-03-29", 24),
    ],
)
def test_days_are_as_long_as_the_clocks_make_them(zone: str, day: str, hours: float) -> None:
    found = period("day", zone, at=moment(f"{day} 12:00:00", zone))
    assert found.end - found.start == hours * 3600
    blocks = [period("5h", zone, at=found.start + number * 3600).start for number in range(int(hours))]
    assert len(set(blocks)) == 5


def test_total_has_one_period() -> None:
    assert period("total", "UTC", at=0.0) == (0, math.inf)


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="'fortnight' is no period"):
        period("fortnight", "UTC", at=0.0)


@given(per=st.sampled_from(PERS), zone=st.sampled_from(ZONES), at=st.floats(1.0e9, 2.2e9))
@example(per="day", zone="America/Havana", at=1_772_946_000.0)
@example(per="hour", zone="Australia/Lord_Howe", at=1_775_314_800.0)
@example(per="day", zone="Pacific/Apia", at=1_325_239_200.0)
def test_every_moment_lies_in_exactly_one_period(per: str, zone: str, at: float) -> None:
    found = period(per, zone, at=at)
    assert found.start <= at < found.end
    assert found.end - found.start <= LENGTHS.get(per, math.inf)
    assert period(per, zone, at=found.start) == found
    if per != "total":
        last = math.nextafter(found.end, 0.0)
        assert period(per, zone, at=last) == found
        assert period(per, zone, at=found.end).start == found.end
        assert period(per, zone, at=found.start - 1).end == found.start


@given(zone=st.sampled_from(ZONES), at=st.floats(1.0e9, 2.2e9))
def test_days_tile_weeks_and_months(zone: str, at: float) -> None:
    for longer in ("week", "month"):
        found = period(longer, zone, at=at)
        edge, days = float(found.start), 0
        while edge < found.end:
            day = period("day", zone, at=edge)
            assert day.start == edge
            edge, days = day.end, days + 1
        assert edge == found.end
        assert days <= 31


@given(st.datetimes(datetime(2001, 1, 1), datetime(2037, 12, 31)), st.sampled_from(ZONES))
def test_a_row_of_the_last_local_second_belongs_to_the_old_month(when: datetime, zone: str) -> None:
    first = when.replace(day=1, hour=0, minute=0, second=0, microsecond=0, fold=0, tzinfo=ZoneInfo(zone))
    border = first.timestamp()
    assert period("month", zone, at=border).start == border
    before = datetime.fromtimestamp(border - 1, ZoneInfo(zone))
    assert period("month", zone, at=border - 1).end == border
    assert before.month == (first - timedelta(days=1)).month
