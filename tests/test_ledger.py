"""The ledger ships what the journal has synced to a real database: exactly once, in order, whatever that does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from relay.call import Attempt, Line, Record, new_call_id
from relay.entries import Entry
from relay.ledger import Ledger
from relay.models import Quarantine, RollUpMark, UsageRecord
from relay.rows import Books
from relay.segments import load_cursor
from tests.journals import a_journal, a_ledger, a_record, eventually, write

pytestmark = pytest.mark.django_db(transaction=True)


def booked() -> set[str]:
    return {str(pk) for pk in UsageRecord.objects.values_list("pk", flat=True)}


def test_a_record_arrives_with_every_field(tmp_path: Path) -> None:
    record = a_record(
        key_id=1,
        key_name="k",
        team_id=2,
        team_name="t",
        account_id=3,
        account_name="a",
        provider="anthropic",
        dialect="anthropic",
        endpoint="messages",
        requested_model="m",
        upstream_model="u",
        response_model="r",
        stream=True,
        http_status=200,
        input_tokens=0,
        output_tokens=5,
        unpriced=True,
        price_version="v",
        lines=[Line("output_tokens", 5, "m", rate=None, cost=0)],
        duration_ms=7,
        attempts=[Attempt("a", 529, "overloaded", 3)],
        candidates=[{"account": "a", "taken": True, "reason": "first"}],
        flags=["f"],
        provider_usage='{"output_tokens": 5}',
        tags={"job": "x"},
    )
    with a_journal(tmp_path) as journal, a_ledger(journal):
        write(journal, ("open", record), ("end", record))
        eventually(UsageRecord.objects.exists)
        eventually(lambda: journal.waiting == 0)
        assert journal.oldest_age == 0.0
    row = UsageRecord.objects.get()
    plain = {"id", "created_at", "lines", "attempts"}
    for name in set(Record.__struct_fields__) - plain:
        assert getattr(row, name) == getattr(record, name), name
    assert str(row.id) == record.id
    assert abs(row.created_at.timestamp() - record.created_at) < 0.002
    assert row.lines == [{"meter": "output_tokens", "quantity": 5, "model": "m"}]
    assert row.attempts == [{"account": "a", "status": 529, "error": "overloaded", "duration_ms": 3}]
    assert RollUpMark.objects.get().hour == row.created_at.replace(minute=0, second=0, microsecond=0)


def test_each_column_of_a_usage_record_is_a_field_of_the_record() -> None:
    assert {field.attname for field in UsageRecord._meta.concrete_fields} == {"extra_tokens"} | set(
        Record.__struct_fields__
    )


def test_a_record_is_there_half_a_second_after_its_end(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal, a_ledger(journal, interval=0.15):
        write(journal, ("end", a_record()))
        start = time.monotonic()
        eventually(UsageRecord.objects.exists)
        assert time.monotonic() - start < 5  # generous: this machine is shared; bench/journal.py measures


def test_how_far_it_came_is_saved_once_a_second_and_for_what_came_last_too(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:
        ledger = Ledger(journal, interval=60, on_recovered=lambda record, holds: None)
        saved = []
        for now in (100.0, 100.5, 100.9, 101.0, 102.0):
            if now < 101.0:
                write(journal, ("end", a_record()))
            ledger._round(now=now)
            saved.append(load_cursor(journal.folder).shipped == journal.synced)
        assert saved == [True, False, False, True, True]


def test_what_comes_during_a_round_waits_for_the_next(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:

        class Busy(Books):
            """While one batch is being booked, the next call ends."""

            def add(self, entries: Sequence[Entry]) -> int:
                booked = super().add(entries)
                write(journal, ("end", a_record()))
                return booked

        ledger = Ledger(journal, interval=60, on_recovered=lambda record, holds: None)
        ledger._books = Busy()
        write(journal, ("end", a_record()), ("end", a_record()))
        ledger._round(now=0.0)
        assert (journal.shipped, journal.waiting) == (2, 1)
        ledger._round(now=0.0)
        assert (journal.shipped, journal.waiting) == (3, 1)
        ledger._books.close()


def test_what_comes_twice_is_booked_once(tmp_path: Path) -> None:
    record, other = a_record(), a_record()
    with a_journal(tmp_path) as journal, a_ledger(journal):
        write(journal, ("end", record), ("end", record), ("end", other))
        write(journal, ("end", record))
        eventually(lambda: journal.waiting == 0)
    assert booked() == {record.id, other.id}


def test_many_segments_arrive_whole(tmp_path: Path) -> None:
    records = [a_record(error=f"e{n}", user_agent="u" * (n % 50)) for n in range(700)]
    with a_journal(tmp_path, segment_bytes=8192) as journal, a_ledger(journal):
        for start in range(0, 700, 100):
            write(journal, *[("end", record) for record in records[start : start + 100]])
        eventually(lambda: journal.waiting == 0)
        eventually(lambda: load_cursor(journal.folder).shipped == journal.synced)
    assert booked() == {record.id for record in records}


def test_a_batch_marks_each_hour_it_touched(tmp_path: Path) -> None:
    now = time.time()
    times = [now, now, now - 3600, now - 90 * 60]
    with a_journal(tmp_path) as journal, a_ledger(journal):
        write(journal, *[("end", a_record(id=new_call_id(at), created_at=at)) for at in times])
        eventually(lambda: journal.waiting == 0)
    hours = set(RollUpMark.objects.values_list("hour", flat=True))
    assert hours == {row.created_at.replace(minute=0, second=0, microsecond=0) for row in UsageRecord.objects.all()}
    assert max(hours) - min(hours) >= timedelta(hours=1)


POISON = {
    "a number beyond 64 bits": {"input_tokens": 10**30},
    "a number no sum can hold": {"cost_nanos": 2**60},
    "a status that is no small number": {"http_status": 70_000},
    "a negative status": {"http_status": -1},
    "an id that is no UUID": {"id": "nonsense"},
    "an id without a time": {"id": "00000000-0000-4000-8000-000000000000"},
    "an id after the year 9999": {"id": "ffffffff-ffff-7000-8000-000000000000"},
    "a field that is missing": {"status": None},
    "a text for a number": {"duration_ms": "soon"},
}


@pytest.mark.parametrize("fields", POISON.values(), ids=POISON.keys())
def test_a_poisoned_row_goes_to_quarantine_alone(tmp_path: Path, fields: dict[str, object]) -> None:
    good = [a_record() for _ in range(20)]
    bad = a_record(**fields)
    with a_journal(tmp_path) as journal, a_ledger(journal):
        write(journal, *[("end", record) for record in [*good[:7], bad, *good[7:]]])
        eventually(lambda: journal.waiting == 0)
    assert booked() == {record.id for record in good}
    row = Quarantine.objects.get()
    assert row.record_id == bad.id[:36]
    assert bytes(row.entry).startswith(b"{") and row.resolved_at is None and row.error


TEXTS = {
    "NUL": "a\x00b",
    "a lone surrogate": "a\ud800b",
    "too long": "x" * 5000,
    "too long in bytes": "\U0001f600" * 5000,
    "a quote and a percent sign": "'; DROP TABLE x; -- %s %(a)s \\",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_any_text_is_cut_and_cleaned_and_loses_no_record(tmp_path: Path, text: str) -> None:
    names = ["key_name", "requested_model", "error", "provider_usage", "session", "user_agent", "response_id", "status"]
    record = a_record(**dict.fromkeys(names, text), tags={text: text}, flags=[text])
    with a_journal(tmp_path) as journal, a_ledger(journal):
        write(journal, ("end", record))
        eventually(lambda: journal.waiting == 0)
    row = UsageRecord.objects.get()
    assert not Quarantine.objects.exists()
    assert row.key_name == text.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")[:100]
    assert row.flags == [text.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")]
