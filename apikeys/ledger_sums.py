"""What the ledger says that limits have used: sums of usage records, in bulk, by owner and model."""

from __future__ import annotations

import math
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from django.apps import apps
from django.conf import settings
from django.db.models import BigIntegerField, BooleanField, Count, ExpressionWrapper, F, Func, Q, QuerySet, Sum, Value
from django.db.models.functions import Coalesce

from apikeys.periods import Period
from apikeys.rules import Counted
from relay.call import PLAIN_METERS

OWNER_COLUMNS = {"key": "key_id", "team": "team_id", "account": "account_id"}
# What counts as a token: everything that the vendor meters in tokens.
TOKEN_COLUMNS = (*PLAIN_METERS, "extra_tokens")
MANY = 500  # owners; for more, one query reads all of them


class Used(NamedTuple):
    """What a limit's calls used. `ended` and `calls`: the same, and their number, without calls whose process died."""

    amount: int
    ended: int = 0
    calls: int = 0


def ledger_sums(limits: Sequence[Counted], *, at: float, cut: float) -> dict[str, Used]:
    """Return what each limit (by `Counted.limit`) had used in its period that holds `at`.

    Counts the calls that ended before `cut` (both in Unix seconds): those that end later settle into the counters
    themselves. One query for all limits of one kind of owner that have the same period.
    """
    groups: dict[tuple[str, Period], list[Counted]] = defaultdict(list)
    for limit in limits:
        if limit.metric != "concurrency":
            groups[limit.rule.scope, limit.period(at)].append(limit)
    found: dict[str, Used] = {}
    for (scope, (start, end)), members in groups.items():
        owners = {limit.rule.owner_id for limit in members}
        rows = usage_by_owner(scope, owners, start=start, end=end, cut=cut)
        for limit in members:
            mine = [row for row in rows.get(limit.rule.owner_id, ()) if limit.matches(row.model)]
            found[limit.limit] = Used(
                amount=sum(row.used[limit.metric] for row in mine),
                ended=sum(row.used[limit.metric] for row in mine if not row.died),
                calls=sum(row.used["requests"] for row in mine if not row.died),
            )
    return found


class Row(NamedTuple):
    """What one owner's calls of one model used, by metric; `died` = no end of theirs is known."""

    model: str
    died: bool
    used: Mapping[str, int]


def usage_by_owner(scope: str, owners: set[int], *, start: float, end: float, cut: float) -> Mapping[int, list[Row]]:
    """The calls of a period that ended before `cut`, by owner."""
    column = OWNER_COLUMNS[scope]
    records = ended_before(cut, within(start, min(end, cut + 1))).exclude(**{column: None}).exclude(status="refused")
    if len(owners) <= MANY:
        records = records.filter(**{f"{column}__in": owners})
    first, *others = (Coalesce(Sum(name), Value(0)) for name in TOKEN_COLUMNS)
    tokens = sum(others, first)
    rows = (
        records.order_by()
        .annotate(died=ExpressionWrapper(Q(duration_ms=None), output_field=BooleanField()))
        .values_list(column, "requested_model", "died")
        .annotate(calls=Count("pk"), tokens=tokens, cost=Sum(F("cost_nanos") + F("held_nanos")))
    )
    found: dict[int, list[Row]] = defaultdict(list)
    for owner, model, died, calls, token_count, amount in rows:
        used = {"requests": calls, "tokens": int(token_count), "cost": int(amount)}
        found[owner].append(Row(model, bool(died), used))
    return found


def within(start: float, end: float) -> QuerySet[Any]:
    """The usage records whose calls began in [start, end), bounded by id: the table is partitioned by it."""
    # By name: apikeys knows nothing of relay but what every app may import.
    records: QuerySet[Any] = apps.get_model("relay", "UsageRecord").objects.all()
    return records.filter(pk__gte=first_id(start), pk__lt=first_id(end))


def first_id(at: float) -> uuid.UUID:
    """The smallest UUIDv7 of a moment."""
    return uuid.UUID(int=max(0, int(at * 1000)) << 80)


def ended_before(cut: float, records: QuerySet[Any]) -> QuerySet[Any]:
    """Leave out calls that ended at `cut` or later. Only recent ones can have, so only those are computed."""
    longest = settings.RELAY_TOTAL_TIMEOUT + settings.RELAY_DRAIN_SECONDS
    # Wrapped: as a plain integer, Django would take the comparison for one that is always true.
    ended = ExpressionWrapper(
        Milliseconds("created_at") + Coalesce(F("duration_ms"), Value(0)), output_field=BigIntegerField()
    )
    ended_in_time = Q(pk__lt=first_id(cut - longest)) | Q(ended_ms__lt=math.ceil(cut * 1000))
    known: QuerySet[Any] = records.alias(ended_ms=ended).filter(ended_in_time)
    return known


class Milliseconds(Func):
    """A moment as whole Unix milliseconds: Django's own arithmetic knows no duration of so many milliseconds."""

    output_field = BigIntegerField()
    template = "floor(extract(epoch FROM %(expressions)s) * 1000)::bigint"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        text = "%(expressions)s"
        template = f"(strftime('%%%%s', {text}) * 1000 + CAST(substr({text} || '.000', 21, 3) AS INTEGER))"
        return self.as_sql(compiler, connection, template=template, **context)
