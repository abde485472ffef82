"""The times that people choose in reports and lists, in the installation's time zone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from relay.spans import DAY, HOUR, hour_of, midnight

PRESETS: Mapping[str, str] = {
    "24h": "Last 24 hours",
    "today": "Today",
    "yesterday": "Yesterday",
    "7d": "Last 7 days",
    "30d": "Last 30 days",
    "month": "This month",
    "last-month": "Last month",
    "quarter": "This quarter",
    "year": "This year",
    "all": "All time",
}
LEAST, MOST = date(2000, 1, 1), date(2200, 1, 1)


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` up to, not including, `end`; None = unbounded."""

    start: datetime | None
    end: datetime | None


def preset(name: str, *, now: datetime, zone: ZoneInfo) -> Span:
    """Return the span of a preset, in whole days, or whole hours for `24h`; raises `KeyError` for what is none."""
    today = now.astimezone(zone).date()
    month = today.replace(day=1)
    last_month = (month - DAY).replace(day=1)
    tomorrow = midnight(today + DAY, zone)
    begins = {
        "24h": hour_of(now) - 23 * HOUR,
        "today": midnight(today, zone),
        "7d": midnight(today - timedelta(days=6), zone),
        "30d": midnight(today - timedelta(days=29), zone),
        "month": midnight(month, zone),
        "quarter": midnight(month.replace(month=month.month - (month.month - 1) % 3), zone),
        "year": midnight(month.replace(month=1), zone),
        "all": None,
    }
    if name == "yesterday":
        return Span(midnight(today - DAY, zone), midnight(today, zone))
    if name == "last-month":
        return Span(midnight(last_month, zone), midnight(month, zone))
    return Span(begins[name], None if name == "all" else tomorrow)


def chosen(params: Mapping[str, str], *, default: str, now: datetime, zone: ZoneInfo) -> Span:
    """Return what the parameters `from` and `to` (days, both included) or `day` mean.

    `day` is a preset, a day (2026-11-23), a month (2026-11), or an hour in UTC (2026-11-23T10). Raises `ValueError`.
    """
    if params.get("from") or params.get("to"):
        first, last = params.get("from", ""), params.get("to", "")
        span = Span(
            midnight(day_of(first), zone) if first else None, midnight(day_of(last) + DAY, zone) if last else None
        )
        if span.start and span.end and span.end <= span.start:
            raise ValueError("The time ends before it begins.")
        return span
    day = params.get("day") or default
    if day in PRESETS:
        return preset(day, now=now, zone=zone)
    if "T" in day:
        day_of(day.partition("T")[0])
        hour = datetime.fromisoformat(f"{day}:00+00:00")
        return Span(hour, hour + HOUR)
    if len(day) == len("2026-11"):
        first_day = day_of(f"{day}-01")
        return Span(midnight(first_day, zone), midnight((first_day + timedelta(days=31)).replace(day=1), zone))
    return Span(midnight(day_of(day), zone), midnight(day_of(day) + DAY, zone))


def day_of(text: str) -> date:
    """Read a day as forms send it; raises `ValueError` for what is none, or so far off that it must be a slip."""
    day = date.fromisoformat(text)
    if not LEAST <= day <= MOST:
        raise ValueError(f"{text} is too far off.")
    return day
