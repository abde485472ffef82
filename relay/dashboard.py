"""The dashboard: how the relay does, over hours or days. What needs a person is in relay/attention.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse

from relay.charts import Chart, Series, bars, curves
from relay.reports import Answer, Figures, Group, Question, answer, report_zone
from relay.spans import DAY, HOUR, hour_of
from relay.sums import MEASURES, sums
from relay.time_choice import preset
from relay_site.display import count, milliseconds, short, usd, usd_short

STEPS: Mapping[str, tuple[str, str]] = {"hour": ("24h", "Last 24 hours"), "day": ("30d", "Last 30 days")}
TOP = 5
TOKENS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("Input", ("input_tokens",)),
    ("Cache read", ("cache_read_input_tokens",)),
    ("Cache write", ("cache_creation_5m_input_tokens", "cache_creation_1h_input_tokens")),
    ("Output", ("output_tokens",)),
)


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    value: str
    note: str
    link: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class TopRow:
    name: str
    cost: str
    calls: str
    share: float  # of the greatest, in per cent
    link: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    step: str
    steps: tuple[tuple[str, str, bool], ...]
    figures: tuple[Figure, ...]
    charts: tuple[Chart, ...]
    tops: tuple[tuple[str, tuple[TopRow, ...]], ...]
    empty: bool


def build(step: str, *, now: datetime) -> Dashboard:
    """Return the dashboard by `hour` (the last 24) or `day` (the last 30)."""
    step = step if step in STEPS else "hour"
    time = STEPS[step][0]
    span = preset(time, now=now, zone=report_zone())
    start, end = span.start or now, hour_of(now) + HOUR if step == "hour" else span.end or now
    add = cache(sums)
    over_time = answer(Question(start, end, by=(step,)), add=add)
    by_whom = answer(Question(start, end, by=("team", "key", "model")), add=add)
    moments = steps_between(step, start, end)
    rows = [over_time.groups.get((moment,), dict.fromkeys(MEASURES, 0)) for moment in moments]
    return Dashboard(
        step=step,
        steps=tuple((name, text, name == step) for name, (_, text) in STEPS.items()),
        figures=figures(over_time.total(), time=time),
        charts=charts(step, moments, rows),
        tops=tuple((name, top(by_whom, name, time=time)) for name in ("key", "team", "model")),
        empty=not any(row["calls"] or row["refused"] for row in rows),
    )


def steps_between(step: str, start: datetime, end: datetime) -> list[Any]:
    """Every hour (UTC) or local day of the time."""
    if step == "hour":
        return [start + HOUR * number for number in range(round((end - start) / HOUR))]
    first, last = start.astimezone(report_zone()).date(), (end - timedelta(microseconds=1)).astimezone(report_zone())
    return [first + DAY * number for number in range((last.date() - first).days + 1)]


def records(**params: str) -> str:
    """The address of the records behind a figure."""
    return f"{reverse('admin:relay_usagerecord_changelist')}?{urlencode(params)}"


def figures(total: Figures, *, time: str) -> tuple[Figure, ...]:
    calls = total["calls"]
    rate = f"{100 * total['errors'] / calls:.2f} %" if calls else "-"
    first = ratio(total["time_to_first_token_ms"], total["time_to_first_token_calls"])
    tokens = sum(total[name] for _, names in TOKENS for name in names)
    kinds = ", ".join(f"{text.lower()} {short(sum(total[name] for name in names))}" for text, names in TOKENS)
    return (
        Figure("Calls", count(calls), f"{count(total['refused'])} refused", records(day=time, status="called")),
        Figure("Cost, USD", usd_short(total["cost_nanos"]), usd(total["cost_nanos"]), records(day=time)),
        Figure("Tokens", short(tokens), kinds, records(day=time), wide=True),
        Figure("Error rate", rate, f"{count(total['errors'])} failed", records(day=time, status="failed")),
        Figure("First token", milliseconds(first), "mean of calls with one", records(day=time)),
        Figure("Duration", milliseconds(ratio(total["duration_ms"], calls)), "mean of all calls", records(day=time)),
    )


def ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def charts(step: str, moments: Sequence[Any], rows: Sequence[Figures]) -> tuple[Chart, ...]:
    labels = [label(step, moment) for moment in moments]
    links = [records(day=parameter(step, moment)) for moment in moments]

    def series(name: str, colour: int, value: Callable[[Figures], float | None]) -> Series:
        return Series(name, tuple(value(row) for row in rows), colour)

    def total(names: tuple[str, ...]) -> Callable[[Figures], float]:
        return lambda row: sum(row[name] for name in names)

    def whole(number: float) -> str:
        return short(round(number))

    calls = (
        series("Answered", 1, lambda row: row["calls"] - row["errors"]),
        series("Failed", 5, total(("errors",))),
        series("Refused", 3, total(("refused",))),
    )
    tokens = [series(name, colour, total(names)) for colour, (name, names) in enumerate(TOKENS, start=1)]
    cost = [series("Cost", 1, total(("cost_nanos",)))]
    rates = [series("Error rate", 5, lambda row: percent(row["errors"], row["calls"]))]
    waits = (
        series("First token", 2, lambda row: ratio(row["time_to_first_token_ms"], row["time_to_first_token_calls"])),
        series("Whole answer", 4, lambda row: ratio(row["duration_ms"], row["calls"])),
    )
    return (
        bars("Calls", labels, calls, said=whole, links=links),
        bars("Cost, USD", labels, cost, said=lambda nanos: usd_short(round(nanos)), links=links),
        bars("Tokens", labels, tokens, said=whole, links=links),
        curves("Error rate", labels, rates, said=lambda share: f"{share:.3g} %", links=links),
        curves("Mean time to first token and to the end", labels, waits, said=milliseconds, links=links),
    )


def percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def label(step: str, moment: Any) -> str:
    return f"{moment.astimezone(report_zone()):%H:%M}" if step == "hour" else f"{moment:%d %b}"


def parameter(step: str, moment: Any) -> str:
    """The hour (UTC) or day as the list of records takes it."""
    return f"{moment:%Y-%m-%dT%H}" if step == "hour" else f"{moment}"


def top(found: Answer, dimension: str, *, time: str) -> tuple[TopRow, ...]:
    """The groups of one dimension that cost most."""
    index = found.question.by.index(dimension)
    groups: dict[Any, Figures] = {}
    for group, row in found.groups.items():
        into = groups.setdefault(group[index], dict.fromkeys(("cost_nanos", "calls"), 0))
        for name in into:
            into[name] += row[name]
    ranked = sorted(groups.items(), key=lambda item: (-item[1]["cost_nanos"], -item[1]["calls"], str(item[0])))[:TOP]
    greatest = max((row["cost_nanos"] for _, row in ranked), default=0)
    return tuple(
        TopRow(
            found.name(dimension, value),
            usd_short(row["cost_nanos"]),
            count(row["calls"]),
            100 * row["cost_nanos"] / greatest if greatest else 0.0,
            records(day=time, **{dimension: str(value or "none")}),
        )
        for value, row in ranked
        if row["calls"]
    )


__all__ = ["Dashboard", "Group", "build"]
