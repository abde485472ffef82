"""Sums by a tag: roll-ups don't know tags, so these read the records themselves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import Func, Max, TextField, Value
from django.db.models.functions import Cast, TruncDate

from relay.models import UsageRecord
from relay.partitions import first_id
from relay.sums import DIMENSIONS, FIGURES, GROUPS, MEASURES, NAMES, group_of, names_of, shifts

Values = dict[str, Any]  # DIMENSIONS, NAMES, "tag" and "day"


class TextOf(Func):
    """The value of a name in a JSON object. Django's own transform takes a number for the place in an array."""

    output_field = TextField()
    template, arg_joiner = "(%(expressions)s)", " ->> "

    def as_sqlite(self, compiler: Any, connection: Any, **more: Any) -> tuple[str, Any]:
        template = "(SELECT value FROM json_each(%(expressions)s LIMIT 1)"
        return self.as_sql(compiler, connection, template=template, arg_joiner=") WHERE key = ", **more)


def tag_sums(start: datetime, end: datetime, *, tag: str, zone: ZoneInfo) -> Iterator[tuple[Values, dict[str, int]]]:
    """Yield what counts from `start` to before `end`, in groups by tag, local day and the roll-ups' dimensions."""
    records = UsageRecord.objects.filter(pk__gte=first_id(start), pk__lt=first_id(end)).order_by()
    rows: Any = (
        records.values(
            of_tag=TextOf("tags", Cast(Value(tag), TextField())),
            of_day=TruncDate("created_at", tzinfo=zone),
            **{f"of_{name}": expression for name, expression in GROUPS.items()},
        )
        .annotate(**{f"last_{name}": Max(name) for name in NAMES})
        .annotate(**{f"sum_{name}": expression for name, expression in FIGURES.items()})
    )
    for row in rows:
        values = {"tag": row["of_tag"] or "", "day": row["of_day"]}
        values |= {name: row[f"of_{name}"] for name in DIMENSIONS} | {name: row[f"last_{name}"] for name in NAMES}
        yield values, {name: int(row[f"sum_{name}"] or 0) for name in MEASURES}
    for shift in shifts(start, end):
        values = {"tag": str(shift.whose.get("tags", {}).get(tag) or ""), "day": shift.at.astimezone(zone).date()}
        values |= dict(zip(DIMENSIONS, group_of(shift.whose), strict=True)) | names_of(shift.whose)
        yield values, {name: shift.figures.get(name, 0) for name in MEASURES}
