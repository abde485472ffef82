"""What people choose as a time, read in the installation's zone."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from relay.time_choice import PRESETS, Span, chosen, preset

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 23, 23, 30, tzinfo=UTC)  # already the 24th in Berlin


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    "name,start,end",
    [
        ("24h", "2026-11-23T00:00Z", "2026-11-24T23:00Z"),
        ("today", "2026-11-24T00:00+01:00", "2026-11-25T00:00+01:00"),
        ("yesterday", "2026-11-23T00:00+01:00", "2026-11-24T00:00+01:00"),
        ("7d", "2026-11-18T00:00+01:00", "2026-11-25T00:00+01:00"),
        ("30d", "2026-10-26T00:00+01:00", "2026-11-25T00:00+01:00"),
        ("month", "2026-11-01T00:00+01:00", "2026-11-25T00:00+01:00"),
        ("last-month", "2026-10-01T00:00+02:00", "2026-11-01T00:00+01:00"),
        ("quarter", "2026-10-01T00:00+02:00", "2026-11-25T00:00+01:00"),
        ("year", "2026-01-01T00:00+01:00", "2026-11-25T00:00+01:00"),
    ],
)
def test_presets(name: str, start: str, end: str) -> None:
    assert preset(name, now=NOW, zone=BERLIN) == Span(at(start), at(end))


def test_every_preset_has_a_span() -> None:
    assert {name for name in PRESETS if preset(name, now=NOW, zone=BERLIN)} == set(PRESETS)
    assert preset("all", now=NOW, zone=BERLIN) == Span(None, None)


@pytest.mark.parametrize(
    "params,start,end",
    [
        ({"day": "2026-03-29"}, "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00"),
        ({"day": "2026-02"}, "2026-02-01T00:00+01:00", "2026-03-01T00:00+01:00"),
        ({"day": "2026-11-23T10"}, "2026-11-23T10:00Z", "2026-11-23T11:00Z"),
        ({"from": "2026-11-01", "to": "2026-11-02"}, "2026-11-01T00:00+01:00", "2026-11-03T00:00+01:00"),
        ({"from": "2026-11-01", "day": "today"}, "2026-11-01T00:00+01:00", None),
        ({"to": "2026-11-02"}, None, "2026-11-03T00:00+01:00"),
        ({}, "2026-11-24T00:00+01:00", "2026-11-25T00:00+01:00"),
    ],
)
def test_chosen(params: dict[str, str], start: str | None, end: str | None) -> None:
    expected = Span(at(start) if start else None, at(end) if end else None)
    assert chosen(params, default="today", now=NOW, zone=BERLIN) == expected


@pytest.mark.parametrize(
    "params",
    [
        {"day": "tomorrow"},
        {"day": "2026-13-01"},
        {"day": "2026-11-23T99"},
        {"day": "9999-12-31T23"},
        {"day": "0001-01-01T00"},
        {"from": "2026-11-02", "to": "2026-11-01"},
        {"from": "0001-01-01"},
        {"to": "9999-12-31"},
        {"from": "x"},
    ],
)
def test_what_is_no_time_is_refused(params: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        chosen(params, default="today", now=NOW, zone=BERLIN)
