"""Rows that tests leave in the shared database, and how they go again."""

from __future__ import annotations

from dataclasses import dataclass

from django.apps import apps
from django.db import connection, models, transaction


@dataclass(frozen=True, slots=True)
class Table:
    """One table; `last` is the highest key of the rows that migrations made, None = it was empty."""

    name: str
    key: str
    last: int | None

    @property
    def new_rows(self) -> str:
        quote = connection.ops.quote_name
        where = "" if self.last is None else f" WHERE {quote(self.key)} > {self.last}"
        return f"FROM {quote(self.name)}{where}"


class Rows:
    """Knows the rows that were there when it was made, and deletes all that came later."""

    def __init__(self) -> None:
        self.tables = [table for model in apps.get_models(include_auto_created=True) if (table := look_at(model))]

    def delete_new(self) -> None:
        """Empty every table down to what the migrations put there."""
        with connection.cursor() as cursor:
            questions = (f"SELECT {n}, EXISTS(SELECT 1 {table.new_rows})" for n, table in enumerate(self.tables))
            cursor.execute(" UNION ALL ".join(questions))
            changed = [self.tables[number] for number, found in cursor.fetchall() if found]
        # Django makes every foreign key DEFERRABLE INITIALLY DEFERRED: inside a transaction, order does not matter.
        with transaction.atomic(), connection.cursor() as cursor:
            for table in changed:
                cursor.execute(f"DELETE {table.new_rows}")


def look_at(model: type[models.Model]) -> Table | None:
    """The model's table as it is now; None where rows with keys that don't count upwards are kept for good."""
    options = model._meta
    if options.proxy or not options.managed or options.pk is None or options.pk.column is None:
        return None
    keys = model._base_manager.order_by("-pk").values_list("pk", flat=True)
    last = keys.first()
    if last is not None and not isinstance(last, int):
        return None
    return Table(options.db_table, options.pk.column, last)
