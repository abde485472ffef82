"""Billing periods, quarantine and corrections in the admin."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import msgspec
import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from relay.call import Record, new_call_id
from relay.entries import Opening
from relay.models import BillingPeriod, Quarantine, RollUpMark, UsageRecord
from relay.quarantine import retry
from tests.admin_cases import errors_of, form_values, make_user

PERIODS, QUARANTINE = "admin:relay_billingperiod_changelist", "admin:relay_quarantine_changelist"


@pytest.fixture
def staff(client: Client, db: None) -> Client:
    client.force_login(make_user("root", superuser=True))
    return client


def act(staff: Client, url: str, action: str, *rows: Any) -> Any:
    return staff.post(reverse(url), {"action": action, "_selected_action": [row.pk for row in rows]}, follow=True)


def test_a_period_is_closed_with_its_author_and_opened_again(staff: Client) -> None:
    period = BillingPeriod.objects.create(start=date(2026, 1, 1), end=date(2026, 2, 1))
    assert "January 2026 is closed" in act(staff, PERIODS, "close", period).text
    period.refresh_from_db()
    assert (period.closed_by, period.closed_at is None) == ("root", False)
    change = reverse("admin:relay_billingperiod_change", args=[period.pk])
    assert staff.post(change, {"start": "2026-01-02", "end": "2026-02-01"}).status_code == 403
    act(staff, PERIODS, "reopen", period)
    period.refresh_from_db()
    assert (period.closed_by, period.closed_at) == ("", None)


def test_a_period_that_is_not_over_stays_open(staff: Client) -> None:
    today = timezone.now().date()
    period = BillingPeriod.objects.create(start=today, end=today + timedelta(days=1))
    assert "is not over yet" in act(staff, PERIODS, "close", period).text
    period.refresh_from_db()
    assert period.closed_at is None


@pytest.mark.parametrize(
    "start,end,word",
    [("2026-01-15", "2026-02-15", "don&#x27;t overlap"), ("2026-03-01", "2026-03-01", "after it starts")],
)
def test_periods_do_not_overlap_or_end_before_they_start(staff: Client, start: str, end: str, word: str) -> None:
    BillingPeriod.objects.create(start=date(2026, 1, 1), end=date(2026, 2, 1))
    url = reverse("admin:relay_billingperiod_add")
    answer = staff.post(url, {**form_values(staff.get(url)), "start": start, "end": end})
    assert word.replace("&#x27;", "'") in str(errors_of(answer)).replace("\\'", "'")
    assert BillingPeriod.objects.count() == 1


def entry(**fields: Any) -> tuple[str, bytes]:
    call_id = new_call_id()
    record = Record(id=call_id, created_at=0.0, status="ok", usage_source="none", **fields)
    return call_id, msgspec.json.encode(record)


@pytest.mark.django_db(transaction=True)
def test_an_entry_is_booked_once_its_fault_is_gone() -> None:
    call_id, payload = entry(cost_nanos=7)
    held_id, held = entry()
    opening = msgspec.json.encode(Opening(record=msgspec.json.decode(held, type=Record)))
    for row_id, body in ((call_id, payload), (held_id, opening)):
        row = Quarantine.objects.create(record_id=row_id, error="DataError", entry=body)
        assert retry(row, now=timezone.now()) is True
        row.refresh_from_db()
        assert row.resolved_at is not None
    assert {str(pk) for pk in UsageRecord.objects.values_list("pk", flat=True)} == {call_id, held_id}
    assert RollUpMark.objects.count() >= 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("payload", [b"no json", b"{}", entry(cost_nanos=2**60)[1]])
def test_what_is_refused_again_waits_on(payload: bytes) -> None:
    row = Quarantine.objects.create(record_id=new_call_id(), error="ValueError", entry=payload)
    assert retry(row, now=timezone.now()) is False
    row.refresh_from_db()
    assert row.resolved_at is None
    assert Quarantine.objects.filter(resolved_at=None).count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_list_tries_again_and_says_what_came_of_it(client: Client) -> None:
    client.force_login(make_user("root", superuser=True))
    call_id, payload = entry()
    good = Quarantine.objects.create(record_id=call_id, error="DataError", entry=payload)
    bad = Quarantine.objects.create(record_id="no-id", error="ValueError", entry=b"{}")
    page = act(client, QUARANTINE, "try_again", good, bad).text
    assert "Booked: 1 of 2." in page and "Refused again: 1." in page


def test_an_empty_quarantine_is_good_news(staff: Client) -> None:
    assert "every call is booked" in staff.get(reverse(QUARANTINE)).text
