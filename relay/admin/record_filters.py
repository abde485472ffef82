"""Filters of the usage records: a time that always bounds the query, and names instead of foreign keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.contrib.filters.admin import DropdownFilter

from accounts.models import Account
from apikeys.models import ApiKey, Team
from relay.call import CallStatus, UsageSource
from relay.models import UsageDay, UsageRecord
from relay.partitions import first_id
from relay.reports import report_zone
from relay.sums import ERRORS, ESTIMATES, MODEL
from relay.time_choice import PRESETS, chosen, preset

DEFAULT = "7d"
OFFERED = ("24h", "today", "yesterday", "7d", "30d", "month", "last-month", "all")


class DayFilter(admin.ListFilter):
    """Always in force, so that no look at the list reads the whole table."""

    title = "time"
    template = "baton/day_filter.html"
    parameters = ("day", "from", "to")

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        given = {name: params.pop(name, [""])[-1] for name in self.parameters}
        self.used_parameters = {name: value for name, value in given.items() if value}
        now, zone = timezone.now(), report_zone()
        try:
            self.span = chosen(given, default=DEFAULT, now=now, zone=zone)
        except ValueError:
            self.span, self.used_parameters = preset(DEFAULT, now=now, zone=zone), {}

    def has_output(self) -> bool:
        return True

    def expected_parameters(self) -> list[str | None]:
        return list(self.parameters)

    def choices(self, changelist: Any) -> Iterator[Any]:
        used = self.used_parameters
        free = "from" in used or "to" in used
        for value in OFFERED:
            yield {
                "selected": not free and used.get("day", DEFAULT) == value,
                "query_string": changelist.get_query_string({"day": value}, ["from", "to"]),
                "display": PRESETS[value],
            }
        yield {"from": used.get("from", ""), "to": used.get("to", ""), "day": used.get("day", ""), "free": True}

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        """Bounds the primary key, which is what the table is ordered and partitioned by."""
        if self.span.start:
            queryset = queryset.filter(id__gte=first_id(self.span.start))
        return queryset.filter(id__lt=first_id(self.span.end)) if self.span.end else queryset


class RowFilter(DropdownFilter):
    """The rows of another table, deleted ones too: their records stay."""

    rows: Any
    column: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        found = [(str(pk), name) for pk, name in self.rows.order_by("name").values_list("pk", "name")]
        return [*found, ("none", "None")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        value = self.value()
        if not value:
            return queryset
        return queryset.filter(**{self.column: int(value) if value.isdecimal() else None})


class TeamFilter(RowFilter):
    title, parameter_name, column = "team", "team", "team_id"
    rows = Team.objects.all()


class KeyFilter(RowFilter):
    title, parameter_name, column = "key", "key", "key_id"
    rows = ApiKey.objects.all()


class AccountFilter(RowFilter):
    title, parameter_name, column = "account", "account", "account_id"
    rows = Account.objects.all()


class ColumnFilter(DropdownFilter):
    """Values of a column that the daily roll-ups know."""

    column: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        since = timezone.now().date() - timedelta(days=92)
        known = UsageDay.objects.filter(day__gte=since).order_by(self.column).values_list(self.column, flat=True)
        names = list(known.distinct()[:500])
        chosen = request.GET.get(self.parameter_name or "")
        return [(name, name) for name in dict.fromkeys([*names, *([chosen] if chosen else [])]) if name]

    def name(self) -> str:
        """What the column has: reports lead here with "none" for records without a value."""
        return "" if self.value() == "none" else self.value() or ""

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        return queryset.filter(**{self.column: self.name()}) if self.value() else queryset


class ProviderFilter(ColumnFilter):
    title, parameter_name, column = "provider", "provider", "provider"


class ModelFilter(ColumnFilter):
    title, parameter_name, column = "model", "model", "model"

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        """The model as roll-ups and reports have it: the one that answered, else was sent, else was asked for."""
        return queryset.alias(of_model=MODEL).filter(of_model=self.name()) if self.value() else queryset


class StatusFilter(DropdownFilter):
    title, parameter_name = "status", "status"
    several: ClassVar[Mapping[str, Q]] = {
        "called": ~Q(status=CallStatus.REFUSED.value),
        "failed": Q(status__in=ERRORS),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        each = [(status.value, status.value.replace("_", " ")) for status in CallStatus]
        return [*each, ("called", "all but refused"), ("failed", "upstream error or interrupted")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        value = self.value()
        return queryset.filter(self.several.get(value, Q(status=value))) if value else queryset


class FiguresFilter(DropdownFilter):
    title, parameter_name = "figures", "figures"
    several: ClassVar[Mapping[str, Q]] = {
        "unpriced": Q(unpriced=True),
        "estimates": Q(usage_source__in=ESTIMATES),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        each = [(source.value, f"usage: {source.value}") for source in UsageSource]
        return [("unpriced", "unpriced"), ("estimates", "usage: estimated or partial"), *each]

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        value = self.value()
        return queryset.filter(self.several.get(value, Q(usage_source=value))) if value else queryset
