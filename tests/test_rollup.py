"""Roll-ups equal their records and corrections, whoever else works at the same time and whatever the time zone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import available_timezones

import pytest
from django.db import connection
from django.db.models import Sum
from django.test import override_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.call import new_call_id
from relay.corrections import correct
from relay.models import BillingPeriod, RetentionFloor, RollUpMark, UsageCorrection, UsageDay, UsageHour, UsageRecord
from relay.partitions import drop_records
from relay.rollup import RolledUp, day_bounds, days_of, mark, mark_since, roll_up
from relay.sums import CORRECTED, HOUR, MEASURES, hour_of, sums

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def book(at: datetime, *, marked: bool = True, **fields: Any) -> UsageRecord:
    values = {"key_id": 1, "key_name": "k", "status": "ok", "usage_source": "provider", "cost_nanos": 10}
    if marked:
        mark([at])
    return UsageRecord.objects.create(id=UUID(new_call_id(at.timestamp())), created_at=at, **(values | fields))


def restate(record: UsageRecord, *, booked_at: datetime | None = None, **fields: Any) -> None:
    """Change the record's row and book the difference, as relay.corrections does."""
    changes = {name: [getattr(record, name), value] for name, value in fields.items()}
    UsageRecord.objects.filter(pk=record.pk).update(**fields)
    record.refresh_from_db()
    differences = {name: (new or 0) - (old or 0) for name, (old, new) in changes.items() if name in CORRECTED}
    add(record, booked_at=booked_at, changes=changes, **differences)


def add(record: UsageRecord, *, booked_at: datetime | None = None, **fields: Any) -> None:
    at = booked_at or record.created_at
    mark([at, record.created_at])
    UsageCorrection.objects.create(record_id=record.pk, booked_at=at, author="ada", reason="test", **fields)


def hour_rows() -> list[Any]:
    return list(UsageHour.objects.order_by("hour", "key_id", "model").values())


@pytest.mark.django_db
def test_an_hour_adds_up_each_figure_by_its_rules() -> None:
    book(NOON, input_tokens=5, output_tokens=7, duration_ms=30, time_to_first_token_ms=4, response_model="m")
    book(
        NOON + timedelta(minutes=59, seconds=59), status="upstream_error", usage_source="estimated", response_model="m"
    )
    book(NOON, status="interrupted", usage_source="partial", held_nanos=90, input_tokens=1, response_model="m")
    book(NOON, status="client_disconnected", unpriced=True, cost_nanos=0, response_model="m")
    book(NOON, status="refused", usage_source="none", cost_nanos=0, requested_model="m")
    assert roll_up() == RolledUp(hours=1)
    [row] = hour_rows()
    assert {name: row[name] for name in MEASURES} == {
        "calls": 4,
        "errors": 2,
        "refused": 1,
        "estimated_calls": 2,
        "estimated_cost_nanos": 20,
        "unpriced_calls": 1,
        "input_tokens": 6,
        "cache_read_input_tokens": 0,
        "cache_creation_5m_input_tokens": 0,
        "cache_creation_1h_input_tokens": 0,
        "output_tokens": 7,
        "reasoning_tokens": 0,
        "cost_nanos": 30,
        "held_nanos": 90,
        "duration_ms": 30,
        "time_to_first_token_ms": 4,
        "time_to_first_token_calls": 1,
    }
    assert (row["hour"], row["key_id"], row["key_name"], row["team_id"], row["model"]) == (NOON, 1, "k", 0, "m")
    [day] = list[Any](UsageDay.objects.values())
    assert day["day"] == NOON.date() and {name: day[name] for name in MEASURES} == {
        name: row[name] for name in MEASURES
    }
    assert not RollUpMark.objects.exists()


@pytest.mark.django_db
def test_the_model_is_the_one_that_answered_else_sent_else_asked_for() -> None:
    book(NOON, response_model="r", upstream_model="u", requested_model="q")
    book(NOON, upstream_model="u", requested_model="q")
    book(NOON, requested_model="q")
    roll_up()
    assert [row["model"] for row in hour_rows()] == ["q", "r", "u"]


@pytest.mark.django_db
def test_each_team_key_account_provider_and_model_has_its_row() -> None:
    for key, team, account, provider in [(1, 1, 1, "a"), (2, 1, 1, "a"), (1, None, 1, "a"), (1, 1, None, "a")]:
        book(NOON, key_id=key, team_id=team, account_id=account, provider=provider)
    book(NOON, key_id=1, team_id=1, account_id=1, provider="b")
    book(NOON, key_id=1, team_id=1, account_id=1, provider="b")
    roll_up()
    assert sorted(row["calls"] for row in hour_rows()) == [1, 1, 1, 1, 2]


@pytest.mark.django_db
def test_a_late_record_restates_its_hour_and_day_and_no_other() -> None:
    book(NOON)
    book(NOON + HOUR)
    roll_up()
    UsageHour.objects.filter(hour=NOON + HOUR).update(calls=77)
    book(NOON + timedelta(minutes=5), cost_nanos=5)
    assert roll_up() == RolledUp(hours=1)
    assert [(row["hour"], row["calls"], row["cost_nanos"]) for row in hour_rows()] == [
        (NOON, 2, 15),
        (NOON + HOUR, 77, 10),
    ]


FIGURES = ("calls", "cost_nanos", "output_tokens", "held_nanos", "unpriced_calls", "estimated_cost_nanos", "errors")


def figures() -> dict[datetime, tuple[int, ...]]:
    """The hours' figures; fails where the days' are not the same in all."""
    rows = UsageHour.objects.values("hour").annotate(**{f"sum_{name}": Sum(name) for name in FIGURES})
    hours = {row["hour"]: tuple(row[f"sum_{name}"] for name in FIGURES) for row in list[Any](rows)}
    totals = tuple(sum(column) for column in zip(*hours.values(), strict=True))
    assert tuple(UsageDay.objects.aggregate(**{n: Sum(n) for n in FIGURES}).values()) == totals
    return hours


@pytest.mark.django_db
def test_a_correction_booked_in_the_records_hour_is_the_record_as_it_is_now() -> None:
    record = book(NOON, held_nanos=90, output_tokens=4, unpriced=True, status="interrupted", usage_source="partial")
    roll_up()
    assert figures() == {NOON: (1, 10, 4, 90, 1, 10, 1)}
    restate(record, cost_nanos=25, output_tokens=9, held_nanos=0, unpriced=False)
    restate(record, cost_nanos=24, status="ok")
    roll_up()
    assert figures() == {NOON: (1, 24, 9, 0, 0, 24, 0)}


@pytest.mark.django_db
def test_a_correction_booked_later_counts_there_and_leaves_the_records_hour_as_it_was() -> None:
    later = NOON + 3 * HOUR
    record = book(NOON, held_nanos=90, output_tokens=4, unpriced=True, status="interrupted", usage_source="partial")
    restate(record, cost_nanos=11)
    restate(record, booked_at=later, cost_nanos=5, output_tokens=None, held_nanos=0, unpriced=False)
    restate(record, booked_at=later, cost_nanos=6, status="ok")
    restate(record, booked_at=later + HOUR, cost_nanos=8)
    roll_up()
    assert figures() == {
        NOON: (1, 11, 4, 90, 1, 11, 1),
        later: (0, -5, -4, 0, 0, 0, 0),
        later + HOUR: (0, 2, 0, 0, 0, 0, 0),
    }
    assert {row["key_name"] for row in hour_rows()} == {"k"}


@pytest.mark.django_db
def test_a_correction_that_changed_no_field_is_added_where_it_is_booked() -> None:
    record = book(NOON)
    add(record, cost_nanos=-3)
    add(record, booked_at=NOON + HOUR, cost_nanos=-2)
    roll_up()
    assert figures() == {NOON: (1, 7, 0, 0, 0, 0, 0), NOON + HOUR: (0, -2, 0, 0, 0, 0, 0)}


@pytest.mark.django_db
def test_what_the_corrections_page_books_comes_out_as_it_says() -> None:
    record = book(NOON, output_tokens=4)
    correct(record.pk, {"cost_nanos": 70}, author="ada", reason="test")
    roll_up()
    assert figures() == {NOON: (1, 70, 4, 0, 0, 0, 0)}
    BillingPeriod.objects.create(start=date(2026, 11, 1), end=date(2026, 12, 1), closed_at=NOON, closed_by="ada")
    correct(record.pk, {"cost_nanos": 50}, author="ada", reason="test", now=NOON)
    roll_up()
    assert figures() == {NOON: (1, 70, 4, 0, 0, 0, 0), datetime(2026, 12, 1, tzinfo=UTC): (0, -20, 0, 0, 0, 0, 0)}


@pytest.mark.django_db
@settings(max_examples=15)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(-9, 99), st.booleans()), min_size=1, max_size=12
    )
)
def test_whatever_is_corrected_and_wherever_the_sum_is_that_of_the_records(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    for model in (UsageRecord, UsageCorrection, UsageHour, UsageDay, RollUpMark):
        model._default_manager.all().delete()
    records = [book(NOON + number * HOUR / 2, key_id=number) for number in range(4)]
    for number, hours, cost, plain in steps:
        booked_at = hour_of(records[number].created_at) + hours * HOUR
        if plain:
            add(records[number], booked_at=booked_at, cost_nanos=cost)
        else:
            restate(records[number], booked_at=booked_at, cost_nanos=cost)
    roll_up()
    added = sum(cost for _, _, cost, plain in steps if plain)
    for number in range(4):
        rows = UsageHour.objects.filter(key_id=number)
        mine = sum(cost for key, _, cost, plain in steps if plain and key == number)
        assert rows.aggregate(cost=Sum("cost_nanos"))["cost"] == records[number].cost_nanos + mine
    assert sum(record.cost_nanos for record in records) + added == sum(row[1] for row in figures().values())


@pytest.mark.django_db
def test_a_correction_of_a_record_that_is_gone_counts_without_a_name() -> None:
    record = book(NOON)
    add(record, cost_nanos=3)
    UsageRecord.objects.all().delete()
    roll_up()
    assert [(row["key_id"], row["calls"], row["cost_nanos"]) for row in hour_rows()] == [(0, 0, 3)]


@pytest.mark.django_db
def test_an_hour_whose_records_were_dropped_keeps_its_roll_up() -> None:
    book(NOON)
    roll_up()
    UsageRecord.objects.all().delete()
    RetentionFloor.objects.create(before=NOON + HOUR)
    mark([NOON])
    assert roll_up() == RolledUp()
    assert [row["calls"] for row in hour_rows()] == [1]
    assert not RollUpMark.objects.exists() and UsageDay.objects.get().calls == 1


@pytest.mark.django_db
@pytest.mark.parametrize(("zone", "cost"), [("America/New_York", 17), ("Asia/Kolkata", 20)])
def test_a_day_across_the_retention_floor_follows_corrections_where_it_has_whole_hours(zone: str, cost: int) -> None:
    floor = datetime(2026, 10, 1, tzinfo=UTC)
    with override_settings(REPORT_TIME_ZONE=zone):
        book(floor - HOUR)
        record = book(floor + HOUR)
        roll_up()
        drop_records(floor.date())
        restate(record, cost_nanos=7)
        roll_up()
    assert [row["cost_nanos"] for row in hour_rows()] == [10, 7]
    assert [row.cost_nanos for row in UsageDay.objects.all()] == [cost]
    assert not RollUpMark.objects.exists()


@pytest.mark.django_db
def test_an_hour_whose_sum_fits_no_column_stops_no_other_and_keeps_its_marks() -> None:
    for _ in range(3):
        book(NOON, cost_nanos=2**62)
    book(NOON - HOUR)
    if connection.vendor == "postgresql":
        assert roll_up() == RolledUp(hours=1, failed=(NOON,))
        assert set(RollUpMark.objects.values_list("hour", flat=True)) == {NOON}
        assert [row["hour"] for row in hour_rows()] == [NOON - HOUR]


@pytest.mark.django_db
def test_since_rolls_up_hours_that_nobody_marked() -> None:
    book(NOON, marked=False)
    UsageHour.objects.create(hour=NOON + HOUR, calls=9)
    mark_since(NOON, until=NOON + 2 * HOUR)
    assert roll_up() == RolledUp(hours=3)
    assert [(row["hour"], row["calls"]) for row in hour_rows()] == [(NOON, 1)]


@pytest.mark.django_db
@pytest.mark.parametrize(("filled", "first"), [(True, NOON - HOUR), (False, NOON)])
def test_since_long_ago_marks_no_hour_before_the_first_that_has_anything(filled: bool, first: datetime) -> None:
    if filled:
        book(NOON, marked=False)
        UsageCorrection.objects.create(record_id=UUID(int=1), booked_at=NOON - HOUR, author="ada", reason="test")
    mark_since(datetime(1970, 1, 1, tzinfo=UTC), until=NOON)
    assert RollUpMark.objects.order_by("hour").values_list("hour", flat=True).first() == first
    assert RollUpMark.objects.count() == (NOON - first) // HOUR + 1


ZONES = sorted(available_timezones() - {"Factory", "localtime"})
INSTANTS = st.datetimes(datetime(1975, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))


@given(at=INSTANTS, zone=st.sampled_from(ZONES))
def test_every_moment_lies_in_one_day_and_days_follow_without_a_gap(at: datetime, zone: str) -> None:
    with override_settings(REPORT_TIME_ZONE=zone):
        days = days_of(hour_of(at))
        holding = [day for day in days if day_bounds(day)[0] <= at < day_bounds(day)[1]]
        assert len(holding) == 1
        start, end = day_bounds(holding[0])
        assert day_bounds(holding[0] - timedelta(days=1))[1] == start
        assert day_bounds(holding[0] + timedelta(days=1))[0] == end


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("UTC", {date(2026, 11, 22): 4}),
        ("Europe/Berlin", {date(2026, 11, 22): 3, date(2026, 11, 23): 1}),
        ("Asia/Kolkata", {date(2026, 11, 22): 2, date(2026, 11, 23): 2}),
        ("Asia/Kathmandu", {date(2026, 11, 22): 1, date(2026, 11, 23): 3}),
        ("America/St_Johns", {date(2026, 11, 22): 4}),
    ],
)
def test_days_are_exact_where_the_zone_is_half_an_hour_off(zone: str, expected: dict[date, int]) -> None:
    for minute in (18 * 60 + 5, 18 * 60 + 20, 18 * 60 + 35, 23 * 60 + 59):
        book(datetime(2026, 11, 22, tzinfo=UTC) + timedelta(minutes=minute))
    with override_settings(REPORT_TIME_ZONE=zone):
        roll_up()
    assert dict(UsageDay.objects.values_list("day", "calls")) == expected


@pytest.mark.django_db
@settings(max_examples=15)
@given(
    minutes=st.lists(
        st.tuples(st.integers(0, 72 * 60), st.integers(0, 3), st.integers(-5, 99)), min_size=1, max_size=25
    ),
    zone=st.sampled_from(["UTC", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe"]),
)
def test_days_and_hours_equal_the_records(minutes: list[tuple[int, int, int]], zone: str) -> None:
    for model in (UsageRecord, UsageHour, UsageDay, RollUpMark):
        model._default_manager.all().delete()
    start = datetime(2026, 10, 31, tzinfo=UTC)
    for minute, key, cost in minutes:
        book(start + timedelta(minutes=minute), key_id=key, cost_nanos=cost)
    with override_settings(REPORT_TIME_ZONE=zone):
        roll_up()
        for row in UsageDay.objects.all():
            group = (row.team_id, row.key_id, row.account_id, row.provider, row.model)
            assert sums(*day_bounds(row.day))[group]["cost_nanos"] == row.cost_nanos
    total = sum(cost for _, _, cost in minutes)
    for table in (UsageHour, UsageDay):
        assert table._default_manager.aggregate(cost=Sum("cost_nanos"), calls=Sum("calls")) == {
            "cost": total,
            "calls": len(minutes),
        }


def in_threads(*works: Callable[[], None]) -> None:
    """Run these at once, each with a connection of its own; fails when one fails."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


@pytest.mark.django_db(transaction=True)
def test_no_mark_is_lost_while_records_arrive_and_three_workers_roll_up() -> None:
    done = threading.Event()

    def write() -> None:
        from django.db import transaction

        for number in range(150):
            with transaction.atomic():
                book(NOON + (number % 3) * HOUR, key_id=number % 2)
        done.set()

    def work() -> None:
        while not done.is_set():
            roll_up()

    in_threads(write, work, work, work)
    roll_up()
    assert not RollUpMark.objects.exists()
    for table in (UsageHour, UsageDay):
        assert table._default_manager.aggregate(cost=Sum("cost_nanos"), calls=Sum("calls")) == {
            "cost": 1500,
            "calls": 150,
        }


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_read_marks_too_early_steps_back() -> None:
    """What the other rolled up is newer: writing the older sums over it would lose a record without a mark."""
    from relay import rollup

    book(NOON)
    [early] = RollUpMark.objects.values_list("pk", flat=True)
    roll_up()
    book(NOON, marked=False)
    assert rollup._roll_up_hour(NOON, [early]) is False
    assert [row["calls"] for row in hour_rows()] == [1]


@pytest.mark.django_db
def test_a_day_whose_hour_alone_was_written_is_still_marked() -> None:
    """A worker may die between the two."""
    from relay import rollup

    book(NOON)
    [mark_id] = RollUpMark.objects.values_list("pk", flat=True)
    assert rollup._roll_up_hour(NOON, [mark_id]) is True
    assert list(RollUpMark.objects.values_list("hour", "day")) == [(NOON, NOON.date())]
    assert not UsageDay.objects.exists()
    assert roll_up() == RolledUp(hours=0)
    assert (UsageDay.objects.get().calls, RollUpMark.objects.count()) == (1, 0)
