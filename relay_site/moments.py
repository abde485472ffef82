"""Moments that people name. What lies further off overflows wherever it is shown in another time zone."""

from __future__ import annotations

from datetime import UTC, datetime

from django.utils import timezone

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def read_moment(text: str) -> datetime | None:
    """An ISO 8601 time; without an offset it counts in the installation's time zone. "" = None. Raises `ValueError`."""
    if not text:
        return None
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no ISO 8601 time, such as 2027-01-31T18:00:00Z") from None
    moment = timezone.make_aware(value) if timezone.is_naive(value) else value
    if wrong := far_off(moment):
        raise ValueError(f"{text!r} {wrong}")
    return moment


def far_off(moment: datetime | None) -> str:
    """What is wrong with a moment that somebody chose, "" = nothing."""
    return "" if moment is None or EARLIEST <= moment < LATEST else "is too far off: choose a time from 1970 to 8999"
