"""Account events: written by a thread of its own, kept while the database is away, and rests restored from them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core import mail
from django.db import OperationalError
from django.db.models.query import QuerySet

from accounts import events, health
from accounts.events import EventWriter, restore_rests
from accounts.models import Account as AccountRow
from accounts.models import AccountEvent
from relay.state.base import Rest
from relay.state.memory import MemoryStore
from tests.account_cases import MODEL, NOW, account, forget
from tests.harness import wait_for

A, B = account("a"), account("b")


@pytest.fixture(autouse=True)
def writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[EventWriter]:
    """A writer of the test's own, without a thread: the test flushes."""
    forget()
    own = EventWriter(retry=0.01)
    monkeypatch.setattr(events, "EVENTS", own)
    yield own
    own.stop()


def note(rest: Rest, *, now: float = NOW, of: Any = A) -> None:
    events.rested(of, rest, now=now)


def restored(*, now: float) -> dict[tuple[int, str], Rest]:
    store = MemoryStore()
    async_to_sync(restore_rests)(store, now=now)
    return dict(async_to_sync(store.rests)(now=now))


@pytest.mark.django_db
def test_a_rest_leaves_an_event_with_its_cause_and_end(writer: EventWriter) -> None:
    note(Rest(A.id, MODEL, NOW + 300, "429", http_status=429))
    assert writer.flush() == 1
    row = AccountEvent.objects.get()
    assert (row.account_name, row.kind, row.model, row.cause, row.http_status) == ("a", "rest", MODEL, "429", 429)
    assert row.until is not None and row.until.timestamp() == NOW + 300


@pytest.mark.django_db
def test_a_thousand_calls_that_fail_together_are_one_event(writer: EventWriter) -> None:
    for position in range(1000):
        note(Rest(A.id, MODEL, NOW + 300, "529"), now=NOW + position / 1000)
    assert writer.flush() == 1


@pytest.mark.django_db
def test_rests_survive_a_restart_as_they_were(writer: EventWriter) -> None:
    named = Rest(A.id, MODEL, NOW + 90, "429", named=True, http_status=429)
    wide = Rest(B.id, "", NOW + 1800, "credential", http_status=401)
    note(named)
    note(wide, of=B)
    note(Rest(A.id, "over-by-now", NOW + 5, "503"))
    writer.flush()
    assert restored(now=NOW + 10) == {(A.id, MODEL): named, (B.id, ""): wide}


@pytest.mark.django_db
def test_what_has_recovered_does_not_rest_again_after_a_restart(writer: EventWriter) -> None:
    note(Rest(A.id, MODEL, NOW + 600, "529"))
    events.recovered(A.id, "a", MODEL, cause="a call succeeded", now=NOW + 1)
    note(Rest(B.id, "one", NOW + 600, "529"), of=B)
    note(Rest(B.id, "two", NOW + 600, "529"), of=B)
    async_to_sync(health.wake)(MemoryStore(), B.id, "b", now=NOW + 2)
    writer.flush()
    assert restored(now=NOW + 10) == {}


@pytest.mark.django_db
def test_recovery_does_not_touch_the_human_switch(writer: EventWriter) -> None:
    row = AccountRow.objects.create(name="off", kind="claude_console", active=False)
    store = MemoryStore()
    async_to_sync(store.rest)(Rest(row.pk, "", NOW - 1, "credential"), now=NOW - 60)
    health.expect_recovery(row.pk, [""])
    async_to_sync(health.succeeded)(store, account("off", id=row.pk, active=False), MODEL, now=NOW)
    assert writer.flush() == 1 and async_to_sync(store.rests)(now=NOW) == {}
    row.refresh_from_db()
    assert row.active is False


@pytest.mark.django_db(transaction=True)
def test_events_wait_while_the_database_is_away(writer: EventWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    away = threading.Event()
    away.set()
    asked = threading.Event()
    working = QuerySet.bulk_create

    def bulk_create(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.set()
        if away.is_set():
            raise OperationalError("the database is away")
        return working(self, *args, **kwargs)

    monkeypatch.setattr(QuerySet, "bulk_create", bulk_create)
    writer.start()
    note(Rest(A.id, MODEL, NOW + 300, "529"))
    assert asked.wait(10)
    note(Rest(B.id, MODEL, NOW + 300, "529"), of=B)
    away.clear()
    wait_for(lambda: AccountEvent.objects.count() == 2, seconds=10, what="both events")
    assert writer.lost == 0


@pytest.mark.django_db
def test_a_model_name_that_no_database_takes_is_cleaned(writer: EventWriter) -> None:
    note(Rest(A.id, "bad\x00\ud800" + "x" * 500, NOW + 300, "529"))
    assert writer.flush() == 1
    assert AccountEvent.objects.get().model == ("bad?" + "x" * 500)[:200]


def test_a_full_queue_loses_the_oldest_and_counts_it() -> None:
    writer = EventWriter(kept=2)
    for name in ("one", "two", "three"):
        writer.note(AccountEvent(account_id=1, account_name=name, at=events.moment(NOW), kind="rest"))
    assert writer.lost == 1 and [event.account_name for event in writer._next_batch()] == ["two", "three"]


def test_admins_get_one_mail_about_a_rejected_credential(settings: Any) -> None:
    settings.ADMINS = [("Ada", "ada@example.com")]
    rest = Rest(A.id, "", NOW + 1800, "credential", http_status=401)
    note(rest)
    note(rest, now=NOW + 60)
    wait_for(lambda: mail.outbox, seconds=5, what="the mail")
    assert [item.subject for item in mail.outbox] == ["[Baton] Account a was rejected"]
    assert "HTTP status 401" in str(mail.outbox[0].body)
