"""The made-up month: plausible, exactly booked, and gone without a trace when it is removed."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import Account, AccountEvent
from accounts.snapshot import load_accounts
from apikeys.models import ApiKey, Limit, Team
from relay import demo, demo_month
from relay.demo import seed
from relay.demo_calls import MODELS, Caller, Upstream, calls
from relay.entries import Entry
from relay.models import BillingPeriod, RollUpMark, UsageDay, UsageHour, UsageRecord
from relay.prices import load_prices
from relay.pricing import PriceBook
from relay.reconcile import reconcile
from relay.reports import report_zone
from relay.rollup import roll_up
from relay.rows import Books
from tests.admin_cases import make_record, make_user

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CALLERS = [Caller(1, "one", 1, "Team", 2.0), Caller(2, "two", None, "", 1.0)]
LABEL = re.compile(r">\s*Demo\s*<")
UPSTREAMS = [Upstream(1, "a", "anthropic"), Upstream(2, "b", "anthropic"), Upstream(3, "c", "openai")]


def test_the_same_seed_makes_the_same_calls() -> None:
    def made() -> list[tuple[float, str, int | None]]:
        found = calls(days=3, per_day=50, now=NOW, callers=CALLERS, upstreams=UPSTREAMS, prices=PriceBook(), seed=1)
        return [(call.created_at, call.requested_model, call.output_tokens) for call in found]

    first = made()
    assert first == made()
    assert 50 < len(first) < 200
    assert first == sorted(first, key=lambda call: call[0])


@pytest.mark.django_db
def test_nearly_all_its_models_have_a_price() -> None:
    prices = load_prices()
    assert [model.name for model in MODELS if prices.find(model.provider, model.name) is None] == [
        "claude-demo-unreleased"
    ]


@pytest.mark.django_db(transaction=True)
def test_the_month_is_booked_rolled_up_and_reconciled() -> None:
    seeded = seed(days=3, per_day=60, now=timezone.now())
    assert seeded.records == UsageRecord.objects.count() > 50
    assert reconcile(now=timezone.now()).ok
    assert RollUpMark.objects.count() == 0
    statuses = Counter(UsageRecord.objects.values_list("status", flat=True))
    assert statuses["ok"] > 0.8 * seeded.records
    assert all(record.tags["demo"] == "1" for record in UsageRecord.objects.all())


@pytest.mark.django_db(transaction=True)
def test_removing_it_leaves_what_others_made(capsys: pytest.CaptureFixture[str]) -> None:
    own = make_record(timezone.now() - timedelta(hours=1), tags={})
    roll_up()
    call_command("seed_demo", "--days", "2", "--per-day", "40")
    with pytest.raises(CommandError, match="already"):
        call_command("seed_demo", "--days", "2")
    call_command("seed_demo", "--remove")
    assert list(UsageRecord.objects.values_list("pk", flat=True)) == [own.pk]
    left = [model.objects.count() for model in (ApiKey, Team, Account, AccountEvent, Limit)]
    assert left == [0, 0, 0, 0, 0]
    assert (UsageHour.objects.count(), UsageDay.objects.count()) == (1, 1)
    assert reconcile(now=timezone.now()).ok
    assert "Removed" in capsys.readouterr().out


@pytest.mark.django_db(transaction=True)
def test_removing_it_leaves_a_key_of_somebody_who_uses_the_same_tag() -> None:
    digest = b"d" * 32
    key = ApiKey.objects.create(name="sales-demo", public_id="p1", digest=digest, tags={"demo": "1"})
    own = make_record(timezone.now() - timedelta(hours=1), key_id=key.pk, tags={"demo": "1"})
    assert not demo.exists()
    seed(days=1, per_day=20, now=timezone.now())
    assert demo.remove() > 0
    assert [record.pk for record in UsageRecord.objects.all()] == [own.pk]
    assert [row.pk for row in ApiKey.objects.all()] == [key.pk]


@pytest.mark.django_db(transaction=True)
def test_removed_while_its_last_records_are_written_it_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Books):
        def add(self, entries: Sequence[Entry]) -> int:
            demo.remove()
            return super().add(entries)

    monkeypatch.setattr(demo, "Books", Late)
    with pytest.raises(CommandError, match="Somebody has removed"):
        call_command("seed_demo", "--days", "1", "--per-day", "40")
    left = [model.objects.count() for model in (UsageRecord, ApiKey, Team, Account, Limit)]
    assert left == [0, 0, 0, 0, 0]
    assert reconcile(now=timezone.now()).ok


@pytest.mark.django_db(transaction=True)
def test_of_two_that_begin_at_once_the_second_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    call_command("seed_demo", "--days", "1", "--per-day", "10")
    seen = iter((False, True))  # nothing was there when it looked
    monkeypatch.setattr(demo, "exists", lambda: next(seen))
    with pytest.raises(CommandError, match="There is demo data already"):
        call_command("seed_demo", "--days", "1", "--per-day", "10")


@pytest.mark.django_db(transaction=True)
def test_no_real_call_can_go_to_a_demo_account() -> None:
    seed(days=1, per_day=10, now=timezone.now())
    assert {tuple(account.model_map) for account in load_accounts()} == {("demo-only",)}


@pytest.mark.django_db(transaction=True)
def test_what_was_made_up_is_nobodys_usage(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(*arguments: str) -> list[tuple[str, str]]:
        capsys.readouterr()
        call_command("usage", "--json", *arguments)
        return [(record["key"], record["origin"]) for record in json.loads(capsys.readouterr().out)]

    seed(days=1, per_day=40, now=timezone.now())
    make_record(timezone.now(), key_id=999_999, key_name="own", origin="client")
    assert listed() == [("own", "client")]
    assert {origin for _, origin in listed("--demo")} == {"client", "demo"}
    assert set(listed("--key", "demo-search-api")) == {("demo-search-api", "demo")}


@pytest.mark.django_db(transaction=True)
def test_its_limits_are_made_last_so_that_their_counters_are_right() -> None:
    def seen() -> bool:
        limits.append(Limit.objects.count())
        return True

    limits: list[int] = []
    seed(days=2, per_day=60, now=timezone.now(), chunk=20, go_on=seen)
    assert len(limits) > 3 and set(limits) == {0}
    assert Limit.objects.count() == ApiKey.objects.count() == 5


@pytest.mark.django_db(transaction=True)
def test_it_shows_a_key_that_expires_and_a_budget_near_its_end() -> None:
    seed(days=3, per_day=200, now=timezone.now())
    assert [key.name for key in ApiKey.objects.exclude(expires_at=None)] == ["demo-notebooks"]
    month = timezone.now().astimezone(report_zone()).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    used = UsageRecord.objects.filter(key_name="demo-search-ci", created_at__gte=month)
    spent = sum(used.values_list("cost_nanos", flat=True))
    amount = Limit.objects.get(key__name="demo-search-ci").amount
    assert spent * 100 // 88 < amount <= spent * 100 // 88 + 10**8


@pytest.fixture
def folder(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of its own; pauses take no time, and the test's process stays as urgent as it is."""
    settings.RELAY_DATA_DIR = tmp_path
    monkeypatch.setattr(demo_month, "GENTLE_SECONDS", 0.0)
    monkeypatch.setattr(demo_month, "DAYS", 2)
    monkeypatch.setattr(demo_month, "PER_DAY", 60)
    monkeypatch.setattr(os, "nice", lambda increment: 0)
    return tmp_path


@pytest.mark.django_db(transaction=True)
def test_the_first_start_fills_the_pages_once_and_begins_anew_where_it_was_cut_off(folder: Path) -> None:
    def cut_off() -> bool:
        raise KeyboardInterrupt

    demo_month.want()
    with pytest.raises(KeyboardInterrupt):
        seed(days=2, per_day=60, now=timezone.now(), go_on=cut_off)
    with pytest.raises(CommandError, match="is writing the demo month"):
        call_command("seed_demo", "--days", "2")
    call_command("seed_demo", "--first-start")
    records, whole = UsageRecord.objects.count(), reconcile(now=timezone.now()).ok
    call_command("seed_demo", "--first-start")
    assert (records > 50, whole, UsageRecord.objects.count(), demo_month.wanted()) == (True, True, records, False)
    assert Team.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_removed_while_it_is_written_it_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove_it(seconds: float) -> None:
        if UsageRecord.objects.exists():
            demo_month.take_away()

    demo_month.want()
    monkeypatch.setattr(demo_month, "time", SimpleNamespace(sleep=remove_it))
    assert demo_month.fill() is None
    left = [model.objects.count() for model in (UsageRecord, ApiKey, Team, Account, Limit)]
    assert (left, demo_month.wanted()) == ([0, 0, 0, 0, 0], False)


@pytest.mark.django_db(transaction=True)
def test_every_page_says_that_there_is_demo_data_and_one_button_removes_it(client: Client, folder: Path) -> None:
    client.force_login(make_user("root", superuser=True))
    pages = [reverse("admin:index"), reverse("admin:usage_report")]
    assert [("demo-notice" in client.get(page).text, bool(LABEL.search(client.get(page).text))) for page in pages] == [
        (False, False),
        (False, False),
    ]
    seed(days=1, per_day=20, now=timezone.now())
    assert [("demo-notice" in client.get(page).text, bool(LABEL.search(client.get(page).text))) for page in pages] == [
        (True, True),
        (True, True),
    ]
    assert LABEL.search(client.get(reverse("admin:relay_usagerecord_changelist")).text)
    exported = client.get(reverse("admin:usage_report"), {"format": "csv"})
    assert "-with-demo-data.csv" in exported["Content-Disposition"]
    assert "Removed:" in client.post(reverse("admin:remove_demo"), follow=True).text
    assert (UsageRecord.objects.count(), demo.exists()) == (0, False)


@pytest.mark.django_db(transaction=True)
def test_only_who_may_delete_keys_and_accounts_may_remove_it(client: Client) -> None:
    seed(days=1, per_day=20, now=timezone.now())
    reader = make_user("fin")
    reader.user_permissions.set(Permission.objects.filter(codename__in=["view_usagerecord", "view_usageday"]))
    client.force_login(reader)
    assert client.post(reverse("admin:remove_demo")).status_code == 403
    page = client.get(reverse("admin:index")).text
    assert ("demo-notice" in page, "Remove demo data" in page) == (True, False)
    assert demo.exists()


@pytest.mark.django_db(transaction=True)
def test_a_month_with_demo_records_is_not_closed(client: Client) -> None:
    client.force_login(make_user("root", superuser=True))
    seed(days=1, per_day=20, now=datetime(2026, 10, 20, 12, tzinfo=UTC))
    october = BillingPeriod.objects.create(start=date(2026, 10, 1), end=date(2026, 11, 1))
    september = BillingPeriod.objects.create(start=date(2026, 9, 1), end=date(2026, 10, 1))
    form = {"action": "close", "_selected_action": [october.pk, september.pk]}
    said = client.post(reverse("admin:relay_billingperiod_changelist"), form, follow=True).text
    assert "October 2026 holds made-up demo records" in said and "September 2026 is closed" in said
    october.refresh_from_db()
    assert october.closed_at is None


@pytest.mark.django_db(transaction=True)
def test_no_demo_record_goes_into_a_closed_month() -> None:
    start = (timezone.now() - timedelta(days=20)).date()
    BillingPeriod.objects.create(start=start, end=start + timedelta(days=10), closed_at=timezone.now())
    with pytest.raises(CommandError, match="closed billing period"):
        call_command("seed_demo", days=15, per_day=5)
    assert not UsageRecord.objects.exists() and not ApiKey.objects.exists()
    call_command("seed_demo", days=5, per_day=5)
    assert UsageRecord.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_name_that_somebody_else_has_is_not_called_demo_data() -> None:
    Account.objects.create(name="Demo OpenAI", kind="openai")
    with pytest.raises(CommandError, match=r"has a name of the demo's\. Rename it first"):
        call_command("seed_demo", "--days", "1", "--per-day", "10")
    assert not ApiKey.objects.exists()
