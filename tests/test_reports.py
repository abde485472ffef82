"""Reports equal the records to the last nano-dollar, wherever the roll-ups stand."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from apikeys.models import Team
from relay.corrections import correct
from relay.models import BillingPeriod, RollUpMark, UsageRecord
from relay.reports import Question, answer, calls_today, marked, report_zone
from relay.rollup import mark, roll_up
from relay.spans import midnight
from relay.sums import MEASURES, figures_of
from tests.admin_cases import make_record

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 3, 31, 14, 20, tzinfo=UTC)
START = datetime(2026, 3, 27, tzinfo=UTC)
TEAMS = [(1, "Search"), (2, "Support"), (None, "")]
MODELS = ["claude-sonnet-5-5", "claude-opus-5-5"]
Key = Callable[[UsageRecord], tuple[Any, ...]]


def make_days(number: int = 80) -> list[UsageRecord]:
    """Calls of five days around a change of clocks, of every sort."""
    chance = random.Random(7)
    records = []
    for _ in range(number):
        team_id, team_name = chance.choice(TEAMS)
        model = chance.choice(MODELS)
        records.append(
            make_record(
                START + timedelta(seconds=chance.randrange(int((NOW - START).total_seconds()))),
                team_id=team_id,
                team_name=team_name,
                key_id=chance.choice([1, 2, None]),
                response_model=model,
                status=chance.choice(["ok", "ok", "ok", "refused", "upstream_error", "client_disconnected"]),
                usage_source=chance.choice(["provider", "provider", "estimated", "none"]),
                unpriced=chance.random() < 0.1,
                input_tokens=chance.choice([None, 0, 1000]),
                cost_nanos=chance.randrange(10**9),
                tags=chance.choice([{}, {"project": "a"}, {"project": "b", "job": "x"}]),
            )
        )
    return records


def expected(records: list[UsageRecord], key: Key) -> dict[tuple[Any, ...], dict[str, int]]:
    """The sums, added up here one record at a time."""
    groups: dict[tuple[Any, ...], dict[str, int]] = {}
    for record in records:
        into = groups.setdefault(key(record), dict.fromkeys(MEASURES, 0))
        for name, value in figures_of(record).items():
            into[name] += value
    return groups


def local_day(record: UsageRecord) -> date:
    return record.created_at.astimezone(report_zone()).date()


KEYS: dict[tuple[str, ...], Key] = {
    (): lambda record: (),
    ("team",): lambda record: (record.team_id or 0,),
    ("key", "model"): lambda record: (record.key_id or 0, record.response_model),
    ("day",): lambda record: (local_day(record),),
    ("week", "provider"): lambda record: (local_day(record) - timedelta(days=local_day(record).weekday()), "anthropic"),
    ("month", "team"): lambda record: (local_day(record).replace(day=1), record.team_id or 0),
    ("hour",): lambda record: (record.created_at.replace(minute=0, second=0, microsecond=0),),
    ("tag:project",): lambda record: (record.tags.get("project", ""),),
    ("tag:project", "day"): lambda record: (record.tags.get("project", ""), local_day(record)),
    ("tag:project", "account"): lambda record: (record.tags.get("project", ""), record.account_id),
}


def fall_behind() -> None:
    roll_up()
    mark([NOW, START + timedelta(hours=30), START + timedelta(days=2)])


# What the roll-up has got to: nothing, all, or all but some hours.
STATES: dict[str, Callable[[], object]] = {
    "never rolled up": lambda: None,
    "rolled up": roll_up,
    "some hours behind": fall_behind,
    "days behind": lambda: (roll_up(), RollUpMark.objects.create(hour=START, day=START.date())),
}


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kolkata"])
@pytest.mark.parametrize("state", STATES)
def test_sums_equal_the_records(state: str, zone: str) -> None:
    with override_settings(REPORT_TIME_ZONE=zone):
        records = make_days()
        STATES[state]()
        first, last = midnight(date(2026, 3, 28), report_zone()), midnight(date(2026, 4, 1), report_zone())
        inside = [record for record in records if first <= record.created_at < last]
        for by, key in KEYS.items():
            found = answer(Question(first, last, by=by))
            assert found.groups == expected(inside, key), by
            assert found.total() == expected(inside, lambda record: ())[()], by


def test_late_records_count_at_once_though_their_hour_was_rolled_up() -> None:
    make_days(20)
    roll_up()
    late = make_record(START + timedelta(hours=3), cost_nanos=7)
    before = answer(Question(START, NOW)).total()
    assert before["cost_nanos"] == sum(UsageRecord.objects.values_list("cost_nanos", flat=True))
    roll_up()
    assert answer(Question(START, NOW)).total() == before
    assert late.cost_nanos == 7


def test_narrowed_sums_equal_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    records = make_days()
    roll_up()
    mark([NOW])
    wanted = [record for record in records if record.team_id == 1 and record.response_model == MODELS[0]]
    for by in (("day",), ("tag:project",)):
        found = answer(Question(START, NOW, by=by, where={"team_id": 1, "model": MODELS[0]}))
        assert found.groups == expected(wanted, KEYS[by])


@pytest.mark.parametrize("by", [("team",), ("day",), ("tag:project", "day")])
@pytest.mark.parametrize("rolled_up", [True, False])
def test_a_correction_after_the_close_counts_in_the_next_open_period(by: tuple[str, ...], rolled_up: bool) -> None:
    old = make_record(datetime(2026, 2, 10, 12, tzinfo=UTC), cost_nanos=10, tags={"project": "a"}, team_id=1)
    BillingPeriod.objects.create(start=date(2026, 2, 1), end=date(2026, 3, 1), closed_at=NOW, closed_by="ada")
    correct(old.pk, {"cost_nanos": 25}, author="ada", reason="the bill says so", now=NOW)
    if rolled_up:
        roll_up()
    february = answer(Question(datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC), by=by))
    march = answer(Question(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC), by=by))
    assert (february.total()["cost_nanos"], february.total()["calls"]) == (10, 1)
    assert (march.total()["cost_nanos"], march.total()["calls"]) == (15, 0)


@pytest.mark.parametrize("tag", ["2026", "-1", 'a"b', "a\\b", "cost.centre", "a[0]", "$x", "50%", "é"])
def test_a_tag_is_found_by_its_name_whatever_that_looks_like(tag: str) -> None:
    make_record(NOW, tags={"project": "a", tag: "b"})
    assert list(answer(Question(START, NOW + timedelta(hours=1), by=(f"tag:{tag}",))).groups) == [("b",)]


def test_groups_are_called_as_their_rows_are_today() -> None:
    team = Team.objects.create(name="Discovery")
    make_record(NOW, team_id=team.pk, team_name="Search")
    make_record(NOW, team_id=team.pk + 1, team_name="Gone")
    make_record(NOW, team_id=None, team_name="")
    found = answer(Question(START, NOW + timedelta(hours=1), by=("team",)))
    names = sorted(found.name("team", group[0]) for group in found.groups)
    assert names == ["Discovery", "Gone", "no team"]


def test_calls_today_begin_at_midnight_of_the_report() -> None:
    with override_settings(REPORT_TIME_ZONE="Europe/Berlin"):
        make_record(datetime(2026, 3, 30, 21, 59, tzinfo=UTC), account_id=5)
        make_record(datetime(2026, 3, 30, 22, 1, tzinfo=UTC), account_id=5)
        make_record(NOW, account_id=6, status="refused")
        make_record(NOW, account_id=7)
        assert calls_today("account", [5, 6], now=NOW) == {5: 1, 6: 0}


def test_a_clean_month_reads_no_records() -> None:
    make_days(30)
    roll_up()
    with CaptureQueriesContext(
        connection,
    ) as queries:
        answer(Question(START, datetime(2026, 4, 1, tzinfo=UTC), by=("team",)))
    assert [query["sql"] for query in queries if "relay_usagerecord" in query["sql"]] == []


def test_hours_whose_records_are_gone_keep_their_roll_ups() -> None:
    from relay.models import RetentionFloor

    make_record(START, cost_nanos=5)
    roll_up()
    UsageRecord.objects.all().delete()
    RetentionFloor.objects.create(before=START + timedelta(hours=10))
    mark([START])
    assert marked() == (frozenset(), frozenset())
    assert answer(Question(START, NOW)).total()["cost_nanos"] == 5
