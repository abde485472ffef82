"""The usage table by months: what lies where, what moves, what retention takes and what it must leave."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from relay.call import new_call_id
from relay.models import RetentionFloor, RollUpMark, UsageHour, UsageRecord
from relay.partitions import (
    create_partitions,
    drop_records,
    first_id,
    month_start,
    partition_name,
    partitions,
    records_begin,
)

TIMES = st.datetimes(datetime(1970, 1, 2), datetime(2900, 1, 1), timezones=st.just(UTC))
postgresql = pytest.mark.skipif("connection.vendor != 'postgresql'", reason="one plain table elsewhere")


def row(at: datetime) -> UsageRecord:
    return UsageRecord.objects.create(
        id=UUID(new_call_id(at.timestamp())), created_at=at, status="ok", usage_source="provider"
    )


def table_of(record: UsageRecord) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text FROM relay_usagerecord WHERE id = %s", [record.pk])
        return str(cursor.fetchone()[0])


@given(TIMES)
def test_an_id_lies_between_the_bounds_of_its_month_and_no_other(at: datetime) -> None:
    month = month_start(at)
    call_id = UUID(new_call_id(at.timestamp()))
    assert first_id(month) < call_id < first_id(month_start(month, later=1))
    assert month_start(month, later=1) > at >= month


@pytest.mark.parametrize(
    ("at", "later", "expected"),
    [
        (datetime(2026, 12, 31, 23, 59, tzinfo=UTC), 0, datetime(2026, 12, 1, tzinfo=UTC)),
        (datetime(2026, 12, 31, 23, 59, tzinfo=UTC), 1, datetime(2027, 1, 1, tzinfo=UTC)),
        (datetime(2026, 3, 1, tzinfo=UTC), -3, datetime(2025, 12, 1, tzinfo=UTC)),
    ],
)
def test_months_roll_over_the_year(at: datetime, later: int, expected: datetime) -> None:
    assert month_start(at, later=later) == expected


@postgresql
@pytest.mark.django_db
def test_migrations_make_this_month_and_those_ahead() -> None:
    now = datetime.now(tz=UTC)
    assert list(partitions())[:4] == [partition_name(month_start(now, later=later)) for later in range(4)]
    assert create_partitions(now) == []
    assert table_of(row(now)) == partition_name(now)


@postgresql
@pytest.mark.django_db
def test_a_new_partition_takes_its_rows_from_the_default_one_and_has_all_indexes() -> None:
    at = month_start(datetime.now(tz=UTC), later=30) + timedelta(days=3)
    early, late = row(at - timedelta(days=40)), row(at)
    assert (table_of(early), table_of(late)) == ("relay_usagerecord_default", "relay_usagerecord_default")
    assert create_partitions(at, ahead=0) == [partition_name(at)]
    assert (table_of(early), table_of(late)) == ("relay_usagerecord_default", partition_name(at))
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhrelid "
            "WHERE x.indrelid = to_regclass(%s)",
            [partition_name(at)],
        )
        assert cursor.fetchone()[0] == len(UsageRecord._meta.indexes) + 1


@postgresql
@pytest.mark.django_db
def test_a_query_that_bounds_the_id_reads_one_partition() -> None:
    now = datetime.now(tz=UTC)
    query = UsageRecord.objects.filter(pk__gte=first_id(now), pk__lt=first_id(now + timedelta(minutes=1)))
    plan = query.order_by().explain()
    tables = {name for name in [*partitions(), "relay_usagerecord_default"] if f"on {name} " in plan}
    assert partition_name(now) in tables and len(tables) <= 2, plan


def an_hour(at: datetime) -> UsageHour:
    return UsageHour.objects.create(hour=at.replace(minute=0, second=0, microsecond=0), calls=1, cost_nanos=5)


@pytest.mark.django_db
def test_retention_drops_whole_months_and_never_roll_ups() -> None:
    now = datetime(2026, 11, 20, tzinfo=UTC)
    times = [datetime(2026, 8, 31, 23, 59, tzinfo=UTC), datetime(2026, 9, 1, tzinfo=UTC), now]
    create_partitions(times[0], ahead=0)
    for at in times:
        row(at)
        an_hour(at)
    assert drop_records(date(2026, 9, 15)) == 1
    assert sorted(UsageRecord.objects.values_list("created_at", flat=True)) == times[1:]
    assert UsageHour.objects.count() == 3
    assert records_begin() == datetime(2026, 9, 1, tzinfo=UTC)
    assert (drop_records(date(2026, 9, 15)), RetentionFloor.objects.count()) == (0, 1)
    if connection.vendor == "postgresql":
        assert partition_name(times[0]) not in partitions()


@pytest.mark.django_db
def test_retention_waits_for_hours_that_are_not_rolled_up() -> None:
    at = datetime(2026, 8, 31, 23, 59, tzinfo=UTC)
    row(at)
    RollUpMark.objects.create(hour=at.replace(minute=0))
    assert (drop_records(date(2026, 9, 1)), UsageRecord.objects.count()) == (0, 1)
    RollUpMark.objects.all().delete()
    assert (drop_records(date(2026, 9, 1)), UsageRecord.objects.count()) == (1, 0)
