"""The check command: quiet when all is right, exact about what is not."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from relay.corrections import correct
from relay.models import (
    BillingPeriod,
    Quarantine,
    RetentionFloor,
    RollUpMark,
    UsageCorrection,
    UsageDay,
    UsageHour,
    UsageRecord,
)
from relay.partitions import drop_records
from relay.reconcile import Report, lines, reconcile
from relay.reports import Question, answer
from relay.rollup import mark, roll_up
from relay.sums import HOUR
from tests.journals import a_dead_folder, a_journal, a_record, write
from tests.test_rollup import NOON, add, book, restate

NOW = NOON + timedelta(hours=5)


def report(**arguments: Any) -> Report:
    given: dict[str, Any] = {"now": NOW, "journals": Path("/nonexistent")}
    return reconcile(**(given | arguments))


def found(checked: Report) -> list[tuple[str, str, str, int, int]]:
    return [(item.table, item.period, item.figure, item.records, item.rolled_up) for item in checked.differences]


@pytest.mark.django_db
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns"])
def test_it_is_ok_after_a_roll_up_whatever_was_booked_and_corrected(zone: str) -> None:
    with override_settings(REPORT_TIME_ZONE=zone):
        records = [book(NOON + number * timedelta(minutes=25), key_id=number % 3) for number in range(20)]
        restate(records[3], cost_nanos=99)
        restate(records[4], booked_at=NOON + 2 * HOUR, cost_nanos=1)
        restate(records[5], booked_at=NOON + timedelta(days=9), cost_nanos=3)
        add(records[6], booked_at=NOON + timedelta(days=2), cost_nanos=-7)
        roll_up()
        checked = report()
    assert checked.differences == [] and checked.ok, "\n".join(lines(checked))
    total = 20 * 10 - 10 - 10 - 10 + 99 + 1 + 3 - 7
    assert (checked.records, checked.cost_nanos, checked.rolled_up_cost_nanos) == (20, total, total)


@pytest.mark.django_db
def test_an_empty_installation_is_ok() -> None:
    assert report().ok


@pytest.mark.django_db
def test_one_nano_dollar_is_found_and_named_in_hour_day_and_total() -> None:
    book(NOON)
    roll_up()
    UsageHour.objects.update(cost_nanos=11)
    checked = report()
    assert found(checked) == [
        ("hour", "2026-11-22T12:00:00+00:00", "cost_nanos", 10, 11),
        ("total", "2026-11-22T12:00:00+00:00/2026-11-22T13:00:00+00:00", "cost_nanos", 10, 11),
    ]
    assert checked.differences[0].group == {"team_id": 0, "key_id": 1, "account_id": 0, "provider": "", "model": ""}
    UsageHour.objects.update(cost_nanos=10)
    UsageDay.objects.update(calls=2)
    assert found(report()) == [("day", "2026-11-22", "calls", 1, 2)]


@pytest.mark.django_db
def test_rows_too_many_and_rows_missing_are_found() -> None:
    book(NOON)
    book(NOON + HOUR)
    roll_up()
    UsageHour.objects.filter(hour=NOON).delete()
    UsageHour.objects.create(hour=NOON + 2 * HOUR, key_id=7, calls=1)
    UsageDay.objects.create(day=NOON.date() + timedelta(days=3), calls=1)
    assert {(table, period[:13], figure) for table, period, figure, _, _ in found(report())} == {
        ("hour", "2026-11-22T12", "calls"),
        ("hour", "2026-11-22T12", "cost_nanos"),
        ("hour", "2026-11-22T14", "calls"),
        ("day", "2026-11-25", "calls"),
        ("total", "2026-11-22T12", "cost_nanos"),
    }


@pytest.mark.django_db
def test_a_record_changed_behind_the_back_of_the_roll_up_is_found() -> None:
    book(NOON)
    roll_up()
    UsageRecord.objects.update(cost_nanos=4)
    assert ("hour", "2026-11-22T12:00:00+00:00", "cost_nanos", 4, 10) in found(report())


@pytest.mark.django_db
def test_a_marked_hour_is_pending_and_too_old_a_mark_is_a_fault() -> None:
    book(NOON)
    RollUpMark.objects.update(at=NOW - timedelta(minutes=9))
    checked = report()
    assert checked.ok and checked.pending == ["2026-11-22T12:00:00+00:00", "2026-11-22"] and checked.waiting_marks == 1
    RollUpMark.objects.update(at=NOW - timedelta(minutes=11))
    assert report().reasons == ["hours wait to be rolled up for 660 s: does the worker run?"]


@pytest.mark.django_db
def test_quarantine_is_counted_until_it_is_resolved() -> None:
    row = Quarantine.objects.create(record_id="x", error="e", entry=b"{}")
    assert report().reasons == ["1 records are in quarantine"]
    row.resolved_at = NOW
    row.save()
    assert report().ok


@pytest.mark.django_db(transaction=True)
def test_what_waits_in_journals_is_counted(tmp_path: Path) -> None:
    a_dead_folder(tmp_path, ("open", a_record()), ("end", a_record()))
    with a_journal(tmp_path) as journal:
        write(journal, ("end", a_record()), ("end", a_record()), ("open", a_record()))
        checked = report(journals=tmp_path, now=datetime.now(UTC) + timedelta(minutes=11))
    assert checked.waiting_entries == 3
    assert 660 <= checked.oldest_entry_seconds < 700
    assert [reason for reason in checked.reasons if "journal entries wait" in reason]


@pytest.mark.django_db
def test_hours_whose_records_were_dropped_are_not_compared() -> None:
    UsageHour.objects.create(hour=NOON - HOUR, calls=5)
    UsageDay.objects.create(day=NOON.date(), calls=6)
    book(NOON)
    roll_up()
    UsageDay.objects.update(calls=6)
    RetentionFloor.objects.create(before=NOON)
    assert report().ok


@pytest.mark.django_db
def test_a_correction_counts_for_its_team_and_tag_after_its_record_was_dropped() -> None:
    record = book(datetime(2026, 9, 20, 13, tzinfo=UTC), team_id=7, team_name="Search", tags={"project": "x"})
    BillingPeriod.objects.create(start=date(2026, 9, 1), end=date(2026, 10, 1), closed_at=NOON, closed_by="ada")
    correct(record.pk, {"cost_nanos": 25}, author="ada", reason="the bill says so", now=NOON)
    roll_up()
    drop_records(date(2026, 10, 1))
    assert not UsageRecord.objects.exists() and report().ok
    mark([NOON])
    roll_up()
    assert list(UsageHour.objects.filter(hour=NOON).values_list("team_id", "team_name", "cost_nanos")) == [
        (7, "Search", 15)
    ]
    assert list(answer(Question(NOON, NOW, by=("tag:project",))).groups) == [("x",)]


@pytest.mark.django_db
def test_since_leaves_out_what_was_before() -> None:
    book(NOON)
    book(NOON + timedelta(days=2))
    roll_up()
    UsageHour.objects.filter(hour=NOON).update(calls=5)
    assert not report().ok
    assert report(since=NOON + timedelta(days=1)).ok


def run(command: str, *arguments: str) -> tuple[int, Any]:
    out = StringIO()
    try:
        call_command(command, *arguments, "--json", stdout=out)
    except SystemExit as end:
        return int(str(end.code)), json.loads(out.getvalue())
    return 0, json.loads(out.getvalue())


@pytest.mark.parametrize(
    "words", [("reconcile", "--since", "0001-01-01T00:00:00+23:00"), ("rollup", "--since", "9999-12-31T23:59:59-10:00")]
)
def test_a_time_too_far_off_is_refused_by_the_options_name(words: tuple[str, ...]) -> None:
    with pytest.raises(CommandError, match=r"--since .* is too far off: choose a time from 1970 to 8999"):
        call_command(*words)


@pytest.mark.django_db
def test_the_commands_say_so_in_json_and_by_their_exit() -> None:
    book(datetime.now(UTC), marked=False)
    assert run("rollup") == (0, {"hours": 0, "failed": []})
    code, answer = run("reconcile")
    assert (code, answer["ok"], len(answer["differences"])) == (1, False, 5)
    assert run("rollup", "--since", (datetime.now(UTC) - HOUR).isoformat())[1]["hours"] == 1
    code, answer = run("reconcile")
    assert (code, answer["ok"], answer["differences"], answer["records"]) == (0, True, [], 1)
    UsageCorrection.objects.create(record_id=UsageRecord.objects.get().pk, booked_at=NOON, author="a", reason="r")
    call_command("reconcile", stdout=(out := StringIO()))
    assert out.getvalue().endswith("OK\n")
