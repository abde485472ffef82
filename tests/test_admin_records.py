"""Usage records in the admin: fast to list, exact in their totals, corrected with a reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import Account
from apikeys.models import ApiKey, Team
from relay.admin.records import id_bounds
from relay.models import BillingPeriod, UsageCorrection, UsageRecord
from tests.admin_cases import errors_of, form_values, make_account, make_key, make_record, make_user

pytestmark = pytest.mark.django_db
LIST, TOTALS = "admin:relay_usagerecord_changelist", "admin:relay_usagerecord_totals"


@pytest.fixture
def staff(client: Client) -> Iterator[Client]:
    client.force_login(make_user("root", superuser=True))
    with override_settings(RELAY_INTERNAL_URL="http://127.0.0.1:9"):
        yield client


def listed(staff: Client, **query: str) -> list[UUID]:
    return [record.pk for record in staff.get(reverse(LIST), query).context["cl"].result_list]


def change_url(record: UsageRecord) -> str:
    return reverse("admin:relay_usagerecord_change", args=[record.pk])


def save(staff: Client, record: UsageRecord, **changes: Any) -> Any:
    return staff.post(change_url(record), {**form_values(staff.get(change_url(record))), **changes})


def test_the_list_counts_nothing_and_reads_no_heavy_column(staff: Client) -> None:
    for hours in range(3):
        make_record(timezone.now() - timedelta(hours=hours))
    with CaptureQueriesContext(connection) as queries:
        assert len(listed(staff)) == 3
    asked = [query["sql"] for query in queries if 'FROM "relay_usagerecord"' in query["sql"]]
    assert [sql for sql in asked if "COUNT(" in sql] == []
    assert [sql for sql in asked if '"provider_usage"' in sql or '"lines"' in sql] == []
    assert all('"relay_usagerecord"."id" >= ' in sql for sql in asked)


@pytest.mark.parametrize(
    "query,fields",
    [
        ({"day": "24h"}, {}),
        ({"team": "3"}, {"team_id": 3}),
        ({"team": "none"}, {"team_id": None}),
        ({"key": "5"}, {"key_id": 5}),
        ({"account": "6"}, {"account_id": 6}),
        ({"provider": "openai"}, {"provider": "openai"}),
        ({"model": "claude-x"}, {"response_model": "claude-x"}),
        ({"model": "claude-y"}, {"response_model": "", "upstream_model": "claude-y"}),
        ({"status": "refused"}, {"status": "refused"}),
        ({"status": "failed"}, {"status": "interrupted"}),
        ({"figures": "unpriced"}, {"unpriced": True}),
        ({"figures": "estimates"}, {"usage_source": "partial"}),
        ({"figures": "none"}, {"usage_source": "none"}),
    ],
)
def test_a_filter_finds_its_records_and_no_others(staff: Client, query: dict[str, str], fields: dict[str, Any]) -> None:
    now = timezone.now()
    make_record(now - timedelta(days=2), team_id=1, key_id=1, account_id=1)
    wanted = make_record(now, **{"team_id": 1, **fields})
    assert listed(staff, **query) == [wanted.pk]


def test_all_but_refused_are_calls(staff: Client) -> None:
    called = make_record(timezone.now())
    make_record(timezone.now(), status="refused")
    assert listed(staff, status="called") == [called.pk]


def test_the_time_is_always_bounded_and_nonsense_means_the_usual(staff: Client) -> None:
    recent = make_record(timezone.now() - timedelta(days=1))
    old = make_record(timezone.now() - timedelta(days=40))
    assert listed(staff) == listed(staff, day="nonsense") == [recent.pk]
    assert listed(staff, day="9999-12-31T23") == listed(staff, day="0001-01-01T00") == [recent.pk]
    assert listed(staff, day="all") == [recent.pk, old.pk]
    day = f"{old.created_at:%Y-%m-%d}"
    assert listed(staff, day=day) == listed(staff, **{"from": day, "to": day}) == [old.pk]
    assert listed(staff, day=f"{old.created_at:%Y-%m-%dT%H}") == [old.pk]


def test_a_call_is_found_by_any_of_its_ids_whatever_the_time(staff: Client) -> None:
    make_record(timezone.now())
    ids = {"response_id": "msg_1", "upstream_request_id": "req_1", "session": "s-1"}
    old = make_record(timezone.now() - timedelta(days=400), **ids)
    for term in (str(old.pk), old.pk.hex, str(old.pk)[:11], f" {old.pk} ", "msg_1", "req_1", "s-1"):
        assert listed(staff, q=term) == [old.pk], term
    assert listed(staff, q="msg_2") == listed(staff, q="0" * 12) == []


@pytest.mark.parametrize("term", ["", "abc", "xyzxyzxyz", "0" * 33, "claude-sonnet"])
def test_what_is_no_call_id_is_searched_otherwise(term: str) -> None:
    assert id_bounds(term) is None


def test_totals_are_exact_and_follow_the_filter(staff: Client) -> None:
    now = timezone.now()
    make_record(now, team_id=1, cost_nanos=1, input_tokens=10)
    make_record(now, team_id=1, cost_nanos=10**15, input_tokens=5, status="upstream_error")
    make_record(now, team_id=2, cost_nanos=7, input_tokens=1000)
    text = " ".join(re.sub(r"<[^>]*>", " ", staff.get(reverse(TOTALS), {"team": "1"}).text).split())
    time, _, sums = text.partition(" Calls ")
    assert re.fullmatch(r"Time, UTC \d{4}-\d\d-\d\d 00:00 to \d{4}-\d\d-\d\d 00:00", time)
    assert sums.startswith("2 Not ok 1 Cost, USD $1,000,000.000000001 Input 15 Output 400")
    assert "at most 93 days" in staff.get(reverse(TOTALS), {"day": "all"}).text


def test_a_record_is_readable_to_its_last_line(staff: Client) -> None:
    record = make_record(
        timezone.now(),
        provider_usage='{"input_tokens":1000,"weird":[1.10]}',
        candidates=[
            {"account": "main", "taken": True, "reason": "affinity"},
            {"account": "b", "taken": False, "reason": "rests 5 s"},
        ],
        attempts=[{"account": "b", "status": 529, "error": "529", "duration_ms": 90}],
        lines=[{"meter": "web_searches", "quantity": 3, "model": "m", "rate": None}],
    )
    page = staff.get(change_url(record)).text
    for text in ("affinity", "rests 5 s", "529", "90 ms", "web searches", "no price", "1.10", "project=search"):
        assert text in page, text


def test_a_change_with_a_reason_becomes_a_correction(staff: Client) -> None:
    record = make_record(timezone.now())
    answer = save(staff, record, output_tokens="300", reason="the provider's bill")
    assert answer.status_code == 302, errors_of(answer)
    record.refresh_from_db()
    correction = UsageCorrection.objects.get()
    assert (record.output_tokens, correction.output_tokens) == (300, 100)
    assert (correction.author, correction.reason) == ("root", "the provider's bill")
    page = staff.get(change_url(record)).text
    assert "output tokens: 200 -> 300" in page
    assert "the provider&#x27;s bill" in page


def test_a_typed_cost_goes_before_the_prices(staff: Client) -> None:
    record = make_record(timezone.now())
    save(staff, record, cost_nanos="0.123456789", reason="agreed")
    record.refresh_from_db()
    assert record.cost_nanos == 123_456_789


def test_usage_is_given_to_its_owner(staff: Client) -> None:
    record = make_record(timezone.now(), key_id=10**6, account_id=10**6)
    team, (key, _), account = Team.objects.create(name="Search"), make_key("new"), make_account("other")
    save(staff, record, team=team.pk, key=key.pk, account=account.pk, reason="wrong key")
    record.refresh_from_db()
    assert (record.team_name, record.key_name, record.account_name) == ("Search", "new", "other")
    assert (Team.objects.get().pk, ApiKey.objects.get().pk, Account.objects.get().pk) == (
        record.team_id,
        record.key_id,
        record.account_id,
    )


@pytest.mark.parametrize(
    "changes,word",
    [
        ({"output_tokens": "300", "reason": ""}, "required"),
        ({"reason": "nothing changed"}, "Nothing"),
        ({"output_tokens": "-1", "reason": "x"}, "0 or more"),
        ({"reasoning_tokens": "201", "reason": "x"}, "part of output_tokens"),
    ],
)
def test_what_can_not_be_corrected_is_said_and_nothing_is_saved(
    staff: Client, changes: dict[str, str], word: str
) -> None:
    record = make_record(timezone.now())
    answer = save(staff, record, **changes)
    assert answer.status_code == 200
    assert word in str(errors_of(answer))
    assert not UsageCorrection.objects.exists()


def test_a_closed_period_holds_its_attribution_fast(staff: Client) -> None:
    now = timezone.now()
    record = make_record(now - timedelta(days=1))
    day = (now - timedelta(days=1)).date()
    BillingPeriod.objects.create(start=day, end=day + timedelta(days=1), closed_at=now, closed_by="ada")
    team = Team.objects.create(name="Search")
    assert "period is closed" in str(errors_of(save(staff, record, team=team.pk, reason="x")))
    save(staff, record, input_tokens="1", reason="x")
    assert UsageCorrection.objects.get().booked_at > record.created_at
