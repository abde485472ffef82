"""The usage report: what the page's address asks for, and its table and chart; the same address gives the same view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from django.http import QueryDict
from django.urls import reverse

from relay.charts import LEFT_OVER, Chart, Series, bars, coloured
from relay.reports import DIMENSIONS, TAG, TIMES, Answer, Figures, Group, Question, answer, report_zone
from relay.spans import DAY, midnight
from relay.sums import MEASURES
from relay.time_choice import PRESETS, chosen
from relay_site.display import short, usd_short

DEFAULT_DAY = "month"
OFFERED = ("today", "yesterday", "7d", "30d", "month", "last-month", "quarter", "year")
GROUPINGS = ("team", "key", "tag", "account", "provider", "model", "day", "week", "month")
SHOWN = {
    "cost": ("Cost, USD", "cost_nanos"),
    "calls": ("Calls", "calls"),
    "tokens": ("Tokens", "tokens"),
}
TOKENS = tuple(name for name in MEASURES if name.endswith("_tokens") and name != "reasoning_tokens")
WRITTEN = tuple(name for name in TOKENS if name.startswith("cache_creation_"))
STACKED = 8
ROWS = 500
LONGEST_DAYS = 3700
FIRST = date(2020, 1, 1)


@dataclass(frozen=True, slots=True)
class Asked:
    """The report's address, read; what can't be read is named in `problem` and its default stands in."""

    day: str
    first: date
    last: date
    by: tuple[str, ...]
    tag: str
    shown: str
    where: Mapping[str, str] = field(default_factory=dict)
    free: bool = False
    problem: str = ""

    def query(self, **changes: Any) -> str:
        """The address of this report, with other values; None takes a parameter out."""
        time = {"from": self.first, "to": self.last} if self.free else {"day": self.day}
        params = {**time, "by": list(self.by), "tag": self.tag, "show": self.shown, **self.where, **changes}
        return urlencode([(name, item) for name, value in params.items() for item in as_list(value)])

    def question(self, by: Sequence[str], *, zone: ZoneInfo) -> Question:
        columns = {DIMENSIONS[name]: typed(name, value) for name, value in self.where.items()}
        return Question(
            midnight(self.first, zone), midnight(self.last + DAY, zone), by=self.dimensions(by), where=columns
        )

    def dimensions(self, by: Sequence[str]) -> tuple[str, ...]:
        """The names as reports know them: a tag with its name."""
        return tuple(f"{TAG}{self.tag}" if name == "tag" else name for name in by)


def as_list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [] if value in (None, "") else [value]


def typed(dimension: str, value: str) -> Any:
    """A value of the address as its column has it; what is no id belongs to nobody, and "none" is no name."""
    if not DIMENSIONS[dimension].endswith("_id"):
        return "" if value == "none" else value
    return int(value) if value.isdecimal() else 0


def read(params: QueryDict, *, now: datetime) -> Asked:
    """Read the report's address."""
    zone, problem = report_zone(), ""
    given = {name: params.get(name, "") for name in ("day", "from", "to")}
    try:
        span = chosen(given, default=DEFAULT_DAY, now=now, zone=zone)
    except ValueError as error:
        problem, given = f"This time can't be read: {error}", {"day": DEFAULT_DAY}
        span = chosen(given, default=DEFAULT_DAY, now=now, zone=zone)
    start, end = span.start or midnight(FIRST, zone), span.end or now
    first, last = start.astimezone(zone).date(), (end - timedelta(microseconds=1)).astimezone(zone).date()
    if (last - first).days > LONGEST_DAYS:
        problem, first = f"At most {LONGEST_DAYS} days are added up at once.", last - timedelta(days=LONGEST_DAYS)
    by = tuple(dict.fromkeys(name for name in params.getlist("by") if name in GROUPINGS))[:2]
    if "tag" in by and not params.get("tag", "").strip():
        problem, by = "Say which tag to group by.", tuple(name for name in by if name != "tag")
    return Asked(
        day=given.get("day") or DEFAULT_DAY,
        first=first,
        last=last,
        by=by or ("team",),
        tag=params.get("tag", "").strip() if "tag" in by else "",
        shown=next((name for name in SHOWN if name == params.get("show")), "cost"),
        where={name: str(value) for name in DIMENSIONS if (value := params.get(name))},
        free=bool(given.get("from") or given.get("to")),
        problem=problem,
    )


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    link: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    cells: tuple[Cell, ...]
    figures: Figures
    records: str  # address of the records behind it, "" = they can't be listed


@dataclass(frozen=True, slots=True)
class Report:
    asked: Asked
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    total: Figures
    chart: Chart


def build(asked: Asked) -> Report:
    """Add up what is asked for; one answer gives chart and table, so that they can't differ."""
    zone = report_zone()
    timed = [name for name in asked.by if name in TIMES]
    step = timed[0] if timed else bucket(asked.first, asked.last)
    with_time = len(asked.by) == 1 and not timed
    found = answer(asked.question((*asked.by, step) if with_time else asked.by, zone=zone))
    table = merged(found, len(asked.by)) if with_time else found.groups
    headings = tuple(asked.tag if name == "tag" else name for name in asked.by)
    rows = [
        Row(
            tuple(cell(asked, found, index, value, linked=number < ROWS) for index, value in enumerate(group)),
            with_tokens(figures),
            records_link(asked, group) if number < ROWS else "",
        )
        for number, (group, figures) in enumerate(sorted(table.items(), key=lambda item: order(asked, item)))
    ]
    chart = draw(asked, found, rows=rows, step=step if timed or with_time else "")
    return Report(asked, headings, tuple(rows), with_tokens(found.total()), chart)


def merged(found: Answer, kept: int) -> dict[Group, Figures]:
    """The groups without what comes after the first `kept` dimensions."""
    groups: dict[Group, Figures] = {}
    for group, figures in found.groups.items():
        into = groups.setdefault(group[:kept], dict.fromkeys(figures, 0))
        for name, value in figures.items():
            into[name] += value
    return groups


def with_tokens(figures: Figures) -> Figures:
    """With all tokens, and all cache writes, together; reasoning is a part of the output and not added again."""
    written = sum(figures[name] for name in WRITTEN)
    return {**figures, "tokens": sum(figures[name] for name in TOKENS), "cache_written_tokens": written}


def order(asked: Asked, item: tuple[Group, Figures]) -> tuple[Any, ...]:
    """Times as they pass, the rest by what it cost, the dearest first."""
    group, figures = item
    times = tuple(value for name, value in zip(asked.by, group, strict=True) if name in TIMES)
    return (*times, -figures["cost_nanos"], -figures["calls"], str(group))


def cell(asked: Asked, found: Answer, index: int, value: Any, *, linked: bool) -> Cell:
    dimension = asked.by[index]
    text = time_name(dimension, value) if dimension in TIMES else found.name(asked.dimensions([dimension])[0], value)
    if not linked or dimension == "tag":
        return Cell(text)
    narrowed = time_params(dimension, value) if dimension in TIMES else {dimension: value or "none"}
    return Cell(text, f"?{asked.query(**narrowed)}")


def time_name(dimension: str, value: date) -> str:
    if dimension == "month":
        return f"{value:%B %Y}"
    return f"week of {value}" if dimension == "week" else str(value)


def time_params(dimension: str, value: date) -> dict[str, Any]:
    """The address of a time of the table: a day, a week, a month."""
    last = {
        "day": value,
        "week": value + timedelta(days=6),
        "month": (value + timedelta(days=31)).replace(day=1) - DAY,
    }[dimension]
    return {"day": None, "from": value, "to": last}


def records_link(asked: Asked, group: Group) -> str:
    """The records behind a row; a tag can't be filtered there."""
    params: dict[str, Any] = {"day": None, "from": asked.first, "to": asked.last, **asked.where}
    for name, value in zip(asked.by, group, strict=True):
        if name == "tag":
            return ""
        params |= time_params(name, value) if name in TIMES else {name: value or "none"}
    address = urlencode([(name, value) for name, value in params.items() if value])
    return f"{reverse('admin:relay_usagerecord_changelist')}?{address}"


def bucket(first: date, last: date) -> str:
    """The step of a chart that shows this time in at most some sixty bars."""
    days = (last - first).days + 1
    return "day" if days <= 62 else "week" if days <= 430 else "month"


def buckets(step: str, first: date, last: date) -> list[date]:
    """Every step of the time, those without usage too."""
    found: list[date] = []
    day = first
    while day <= last:
        start = {"day": day, "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}[step]
        if not found or found[-1] != start:
            found.append(start)
        day += DAY
    return found


def draw(asked: Asked, found: Answer, *, rows: Sequence[Row], step: str) -> Chart:
    """Stacked bars: over time where there is one, else over the first dimension's greatest groups."""
    title, measure = SHOWN[asked.shown]
    names = found.question.by
    across = names.index(step) if step else 0
    stacked = next((index for index in range(len(names)) if index != across), None)
    points = [(group, with_tokens(figures)[measure]) for group, figures in found.groups.items()]
    steps: list[Any] = list(buckets(step, asked.first, asked.last)) if step else ranked(points, across)[: 2 * STACKED]
    stacks = ranked(points, stacked) if stacked is not None else [None]
    colours = coloured([str(value) for value in stacks])
    amounts: dict[tuple[Any, int], float] = {}
    for group, amount in points:
        colour = colours[str(group[stacked])] if stacked is not None else 1
        amounts[group[across], colour] = amounts.get((group[across], colour), 0) + amount
    series = []
    for value in stacks[:STACKED] if stacked is not None else [None]:
        colour = colours[str(value)]
        name = title if stacked is None else label(found, names[stacked], value)
        series.append(Series(name, tuple(amounts.get((at, colour), 0) for at in steps), colour))
    if len(stacks) > STACKED:
        rest = tuple(amounts.get((at, LEFT_OVER), 0) for at in steps)
        series.append(Series(f"{len(stacks) - STACKED} others", rest, LEFT_OVER))
    said = (lambda amount: usd_short(round(amount))) if asked.shown == "cost" else (lambda amount: short(round(amount)))
    labels = [label(found, names[across], at) for at in steps]
    links = [f"?{asked.query(**time_params(step, at))}" for at in steps] if step else []
    return bars(f"{title} by {' and '.join(asked.by)}", labels, series, said=said, links=links)


def ranked(points: Sequence[tuple[Group, float]], index: int) -> list[Any]:
    """The values of one dimension, the greatest first."""
    sums: dict[Any, float] = {}
    for group, amount in points:
        sums[group[index]] = sums.get(group[index], 0) + amount
    return sorted(sums, key=lambda value: (-sums[value], str(value)))


def label(found: Answer, dimension: str, value: Any) -> str:
    if dimension in TIMES:
        return f"{value:%b %Y}" if dimension == "month" else f"{value:%d %b}"
    return found.name(dimension, value)


def presets(asked: Asked) -> list[tuple[str, str, bool]]:
    """Address, name and whether it is the chosen one, for each preset."""
    link = Asked(asked.day, asked.first, asked.last, asked.by, asked.tag, asked.shown, asked.where)
    return [(f"?{link.query(day=name)}", PRESETS[name], not asked.free and asked.day == name) for name in OFFERED]
