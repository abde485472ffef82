"""On PostgreSQL the usage table is partitioned by month of its UUIDv7; elsewhere it is one plain table.

Partitions are made ahead; what falls into none (a wrong clock, a journal months late) goes to the default partition and
moves when its month is made. Retention drops whole months of records, never roll-ups.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from django.db import connection as default_connection
from django.db import migrations, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.models import F

from relay.models import RetentionFloor, RollUpMark, UsageRecord

log = logging.getLogger(__name__)
TABLE = "relay_usagerecord"
DEFAULT = f"{TABLE}_default"
AHEAD = 3  # months
PIECE = 2000
# Nobody waits longer for us than this: the locks of a new or dropped partition stop the ledger meanwhile.
LOCK_TIMEOUT = "5s"


class CreatePartitionedModel(migrations.CreateModel):
    """Creates the model's table partitioned by range of its primary key where the database can do that."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if schema_editor.connection.vendor == "postgresql":
            schema_editor.sql_create_table += " PARTITION BY RANGE (id)"
        try:
            super().database_forwards(app_label, schema_editor, from_state, to_state)
        finally:
            schema_editor.__dict__.pop("sql_create_table", None)
        create_default(schema_editor.connection)
        create_partitions(datetime.now(tz=UTC), connection=schema_editor.connection)


def first_id(at: datetime) -> UUID:
    """Return a UUID that is smaller than every UUIDv7 made at or after this time, and larger than all before it."""
    return UUID(int=int(at.timestamp() * 1000) << 80)


def month_start(at: datetime, *, later: int = 0) -> datetime:
    """Return the first moment (UTC) of a month, or of one so many months later."""
    months = at.year * 12 + at.month - 1 + later
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


def partition_name(month: datetime) -> str:
    return f"{TABLE}_{month:%Y_%m}"


def is_partitioned(connection: BaseDatabaseWrapper = default_connection) -> bool:
    if connection.vendor != "postgresql":
        return False
    with connection.cursor() as cursor:
        cursor.execute("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(%s)", [TABLE])
        row = cursor.fetchone()
    return bool(row and row[0])


def partitions(connection: BaseDatabaseWrapper = default_connection) -> dict[str, datetime]:
    """Return the months that have a partition: name -> first moment."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = to_regclass(%s) ORDER BY c.relname",
            [TABLE],
        )
        names = [name for (name,) in cursor.fetchall() if name != DEFAULT]
    return {name: datetime.strptime(name, f"{TABLE}_%Y_%m").replace(tzinfo=UTC) for name in names}


def create_default(connection: BaseDatabaseWrapper = default_connection) -> None:
    if is_partitioned(connection):
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE IF NOT EXISTS {DEFAULT} PARTITION OF {TABLE} DEFAULT")


def create_partitions(
    now: datetime, *, ahead: int = AHEAD, connection: BaseDatabaseWrapper = default_connection
) -> list[str]:
    """Make the partitions of this month and those ahead; return the names of the new ones."""
    if not is_partitioned(connection):
        return []
    there = partitions(connection)
    months = [month_start(now, later=later) for later in range(ahead + 1)]
    wanted = [month for month in months if partition_name(month) not in there]
    for month in wanted:
        _attach(month, connection=connection)
    return [partition_name(month) for month in wanted]


def drop_records(before: date, *, connection: BaseDatabaseWrapper = default_connection) -> int:
    """Drop the records of all months before that of `before`; roll-ups stay. Returns how many records went.

    Does nothing while an hour of these months waits to be rolled up.
    """
    floor = month_start(datetime(before.year, before.month, 1, tzinfo=UTC))
    with _short_locks(connection) as cursor:
        if RollUpMark.objects.filter(hour__lt=floor).exists():
            log.warning("retention: hours before %s wait to be rolled up, nothing is dropped", floor.date())
            return 0
        if records_begin() != floor and UsageRecord.objects.filter(pk__lt=first_id(floor)).exists():
            RetentionFloor.objects.create(before=floor)
        dropped = _drop_partitions(floor, cursor) if is_partitioned(connection) else 0
    # What no partition held: in pieces, so that nobody waits long for the table.
    while ids := list(UsageRecord.objects.filter(pk__lt=first_id(floor)).values_list("pk", flat=True)[:PIECE]):
        dropped += UsageRecord.objects.filter(pk__in=ids)._raw_delete(using=connection.alias)
    if dropped:
        RetentionFloor.objects.filter(before=floor).update(records=F("records") + dropped)
        log.info("retention: %d records before %s dropped", dropped, floor.date())
    return dropped


def records_begin() -> datetime | None:
    """Return the time before which records were dropped, None = none were: roll-ups of then can't be made again."""
    return RetentionFloor.objects.order_by("-before").values_list("before", flat=True).first()


def _attach(month: datetime, *, connection: BaseDatabaseWrapper) -> None:
    """Make one month's partition aside, move in what the default partition has of it, attach it.

    `CREATE TABLE ... PARTITION OF` would lock the whole table and fail on rows in the default partition.
    """
    name = partition_name(month)
    low, high = first_id(month), first_id(month_start(month, later=1))
    with _short_locks(connection) as cursor:
        cursor.execute(f"CREATE TABLE {name} (LIKE {TABLE} INCLUDING ALL)")
        cursor.execute(f"LOCK TABLE {DEFAULT} IN ACCESS EXCLUSIVE MODE")
        cursor.execute(
            f"WITH late AS (DELETE FROM {DEFAULT} WHERE id >= %s AND id < %s RETURNING *) "  # noqa: S608 - our own names
            f"INSERT INTO {name} SELECT * FROM late",
            [low, high],
        )
        cursor.execute(f"ALTER TABLE {TABLE} ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}')")


def _drop_partitions(floor: datetime, cursor: CursorWrapper) -> int:
    dropped = 0
    for name, month in partitions(cursor.db).items():
        if month < floor:
            cursor.execute(f"SELECT count(*) FROM {name}")  # noqa: S608 - our own names
            dropped += cursor.fetchone()[0]
            cursor.execute(f"DROP TABLE {name}")
    return dropped


@contextmanager
def _short_locks(connection: BaseDatabaseWrapper) -> Iterator[CursorWrapper]:
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        yield cursor
