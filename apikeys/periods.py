"""When the period of a limit begins and ends, in the limit's time zone. Pure.

Every moment lies in exactly one period of each kind. Days, weeks (from Monday) and months begin at local midnight; on
the days when clocks change they are an hour shorter or longer. Minutes, hours and blocks of five hours are counted in
elapsed time from local midnight, so the last block of an ordinary day has four hours (20:00 to 24:00).
"""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

BLOCKS = {"minute": 60, "hour": 3600, "5h": 5 * 3600}
PERS = ("minute", "hour", "5h", "day", "week", "month", "total")


class Period(NamedTuple):
    """From `start` up to, not including, `end`, in Unix seconds; `total` ends never (infinity)."""

    start: int
    end: float


ALWAYS = Period(0, math.inf)


def period(per: str, time_zone: str, *, at: float) -> Period:
    """Return the period that holds `at`. Raises ValueError for a kind that there is not, ZoneInfoNotFoundError."""
    if per == "total":
        return ALWAYS
    zone = ZoneInfo(time_zone)
    today = datetime.fromtimestamp(math.floor(at), zone).date()  # whole: it would round up into the next day
    if per in BLOCKS:
        start, end = midnight(today, zone), midnight(today + timedelta(days=1), zone)
        size = BLOCKS[per]
        start += int(at - start) // size * size
        return Period(start, min(start + size, end))
    if per == "day":
        first, following = today, today + timedelta(days=1)
    elif per == "week":
        first = today - timedelta(days=today.weekday())
        following = first + timedelta(days=7)
    elif per == "month":
        first = today.replace(day=1)
        following = (first + timedelta(days=31)).replace(day=1)
    else:
        raise ValueError(f"{per!r} is no period; there are {', '.join(PERS)}.")
    return Period(midnight(first, zone), midnight(following, zone))


@lru_cache(maxsize=4096)
def midnight(day: date, zone: ZoneInfo) -> int:
    """The first moment of a local day. Where clocks skip midnight, `fold=0` reads it with the offset from before the
    change, which is the moment of the change itself."""
    return math.floor(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
