"""The made-up month: plausible, exactly booked, and gone without a trace when it is removed."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone

from accounts.models import Account, AccountEvent
from accounts.snapshot import load_accounts
from apikeys.models import ApiKey, Limit, Team
from relay.demo import seed
from relay.demo_calls import MODELS, Caller, Upstream, calls
from relay.models import RollUpMark, UsageDay, UsageHour, UsageRecord
from relay.prices import load_prices
from relay.pricing import PriceBook
from relay.reconcile import reconcile
from relay.rollup import roll_up
from tests.admin_cases import make_record

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CALLERS = [Caller(1, "one", 1, "Team", 2.0), Caller(2, "two", None, "", 1.0)]
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
def test_no_real_call_can_go_to_a_demo_account() -> None:
    seed(days=1, per_day=10, now=timezone.now())
    assert {tuple(account.model_map) for account in load_accounts()} == {("demo-only",)}
