"""Sums of usage for people: from roll-ups where they are up to date, from records where they are not.

An hour with a roll-up mark has records that its roll-ups don't know yet: it is added up anew. So a report equals the
records at any time, however far the roll-up is behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db.models import Max, Q, QuerySet, Sum

from accounts.models import Account
from apikeys.models import ApiKey, Team
from relay.models import RollUpMark, UsageDay, UsageHour
from relay.partitions import records_begin
from relay.spans import Cover, Piece, cover, hour_runs, midnight, runs
from relay.sums import DIMENSIONS as COLUMNS
from relay.sums import MEASURES, sums
from relay.tag_sums import tag_sums

Figures = dict[str, int]
Group = tuple[Any, ...]  # one value for each dimension of the question
AddUp = Callable[[datetime, datetime], Mapping[Group, Mapping[str, Any]]]

DIMENSIONS: Mapping[str, str] = {
    "team": "team_id",
    "key": "key_id",
    "account": "account_id",
    "provider": "provider",
    "model": "model",
}
NAMED: Mapping[str, Any] = {"team": Team, "key": ApiKey, "account": Account}
NOBODY: Mapping[str, str] = {
    "team": "no team",
    "key": "no key",
    "account": "no account",
    "provider": "no provider",
    "model": "no model",
}
TIMES = ("hour", "day", "week", "month")
TAG = "tag:"


@dataclass(frozen=True, slots=True)
class Question:
    """What to add up: a time, at most two dimensions (`tag:<name>` too), and values that roll-up columns must have."""

    start: datetime
    end: datetime
    by: tuple[str, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """The name of the tag that it is grouped by, "" = none."""
        return next((name.removeprefix(TAG) for name in self.by if name.startswith(TAG)), "")


@dataclass(slots=True)
class Answer:
    """Figures by group, and what the groups are called."""

    question: Question
    groups: dict[Group, Figures] = field(default_factory=dict)
    names: dict[tuple[str, Any], str] = field(default_factory=dict)

    def add(self, group: Group, figures: Mapping[str, Any]) -> None:
        into = self.groups.setdefault(group, dict.fromkeys(MEASURES, 0))
        for measure in MEASURES:
            into[measure] += figures[measure] or 0

    def total(self) -> Figures:
        """The sum over all groups."""
        return {measure: sum(figures[measure] for figures in self.groups.values()) for measure in MEASURES}

    def name(self, dimension: str, value: Any) -> str:
        """What a value of a dimension is called; unattributed usage has a name of its own."""
        if dimension.startswith(TAG):
            return value or f"no {dimension.removeprefix(TAG)}"
        if not value:
            return NOBODY[dimension]
        return self.names.get((dimension, value)) or str(value)


def report_zone() -> ZoneInfo:
    """The one time zone of the installation's days, weeks and months."""
    return ZoneInfo(settings.REPORT_TIME_ZONE)


def marked() -> tuple[frozenset[datetime], frozenset[date]]:
    """The hours that changed since they were rolled up, without those whose records are gone, and the days that were
    not added up since their hours were."""
    marks = set(RollUpMark.objects.order_by().values_list("hour", "day").distinct())
    floor = records_begin()
    hours = {hour for hour, day in marks if day is None and (floor is None or hour >= floor)}
    return frozenset(hours), frozenset(day for _, day in marks if day is not None)


def answer(question: Question, *, add: AddUp = sums) -> Answer:
    """Add it up. `add` adds up records of a time; who asks several questions at once may remember what it says."""
    found = Answer(question)
    # Marks first: what is rolled up between two of our queries was marked then, and is read from its records.
    dirty, stale = marked()
    hourly = "hour" in question.by
    if question.tag:
        for values, figures in tag_sums(question.start, question.end, tag=question.tag, zone=report_zone()):
            if matches(values, question.where):
                found.add(group_of(question.by, values, day=values["day"], hour=None), figures)
                note_names(found, values)
    else:
        add_up(
            found,
            cover(question.start, question.end, dirty=dirty, stale=stale, zone=report_zone(), hourly=hourly),
            add=add,
        )
    current_names(found)
    return found


def add_up(found: Answer, parts: Cover, *, add: AddUp) -> None:
    days = Q()
    for first, last in runs(parts.days):
        days |= Q(day__gte=first, day__lte=last)
    if parts.days:
        add_rolled_up(found, UsageDay.objects.filter(days), moment="day")
    hours = Q()
    for begin, end in hour_runs(parts.hours):
        hours |= Q(hour__gte=begin, hour__lte=end)
    if parts.hours:
        add_rolled_up(found, UsageHour.objects.filter(hours), moment="hour")
    for piece in parts.records:
        add_records(found, piece, add=add)


def add_rolled_up(found: Answer, rows: QuerySet[Any], *, moment: str) -> None:
    """Add the rows of one roll-up table, added up by the database."""
    question = found.question
    columns = [DIMENSIONS[name] for name in question.by if name in DIMENSIONS]
    timed = [moment] if any(name in TIMES for name in question.by) else []
    names = {f"last_{name}": Max(f"{name}_name") for name in question.by if name in NAMED}
    figures = {f"sum_{measure}": Sum(measure) for measure in MEASURES}
    grouped = rows.filter(**question.where).order_by().values(*columns, *timed).annotate(**names, **figures)
    for row in grouped if columns or timed else [rows.filter(**question.where).aggregate(**figures)]:
        day = row.get("day") or (row["hour"].astimezone(report_zone()).date() if "hour" in row else None)
        group = group_of(question.by, row, day=day, hour=row.get("hour"))
        found.add(group, {measure: row[f"sum_{measure}"] for measure in MEASURES})
        note_names(found, {**row, **{f"{name}_name": row[f"last_{name}"] for name in question.by if name in NAMED}})


def add_records(found: Answer, piece: Piece, *, add: AddUp) -> None:
    """Add what no roll-up knows yet, by the roll-up's own sums."""
    question = found.question
    hour = piece.start.replace(minute=0, second=0, microsecond=0)
    for values, figures in add(piece.start, piece.end).items():
        row = dict(zip(COLUMNS, values, strict=True))
        if matches(row, question.where):
            found.add(group_of(question.by, row, day=piece.day, hour=hour), figures)
            note_names(found, {**row, **figures})


def matches(row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    return all(row[column] == value for column, value in where.items())


def group_of(by: Sequence[str], row: Mapping[str, Any], *, day: date | None, hour: datetime | None) -> Group:
    """The row's group; weeks begin on Monday and, like months, are named by their first day."""
    return tuple(value_of(name, row, day=day, hour=hour) for name in by)


def value_of(name: str, row: Mapping[str, Any], *, day: date | None, hour: datetime | None) -> Any:
    if name in DIMENSIONS:
        return row[DIMENSIONS[name]]
    if name.startswith(TAG):
        return row["tag"]
    if name == "hour":
        return hour
    if day is None:
        raise ValueError("a sum without a day can't be grouped by time")
    return {"day": day, "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}[name]


def note_names(found: Answer, row: Mapping[str, Any]) -> None:
    """Keep what the records call their team, key and account; `current_names` goes before it."""
    for name in NAMED:
        if name in found.question.by and row.get(f"{name}_name"):
            found.names[name, row[DIMENSIONS[name]]] = row[f"{name}_name"]


def current_names(found: Answer) -> None:
    """What still has a row is called as it is called today."""
    for index, dimension in enumerate(found.question.by):
        if dimension in NAMED:
            ids = {group[index] for group in found.groups}
            for pk, name in NAMED[dimension].objects.filter(pk__in=ids).values_list("pk", "name"):
                found.names[dimension, pk] = name


def calls_today(dimension: str, ids: Iterable[int], *, now: datetime) -> dict[int, int]:
    """Return how many calls each of these keys or accounts has had since midnight in the report's time zone."""
    start = midnight(now.astimezone(report_zone()).date(), report_zone())
    found = answer(Question(start, now + timedelta(hours=1), by=(dimension,)))
    wanted = set(ids)
    return {pk: figures["calls"] for (pk,), figures in found.groups.items() if pk in wanted}


__all__ = ["Answer", "Figures", "Group", "Question", "answer", "calls_today", "marked", "report_zone"]
