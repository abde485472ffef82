"""The dashboard's figures, each equal to the list behind it; what needs attention, for whom it concerns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client, override_settings
from django.urls import reverse
from django.utils import timezone

from accounts.models import Account, AccountEvent
from apikeys.keyring import load_keys
from apikeys.models import Limit, Team
from apikeys.rules import counted_one
from relay.attention import account_states, findings
from relay.dashboard import build
from relay.models import Quarantine, RollUpMark
from relay.rollup import roll_up
from tests.admin_cases import answering_relay, make_account, make_key, make_record, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def root() -> User:
    return make_user("root", superuser=True)


@pytest.fixture(autouse=True)
def without_relay() -> Iterator[None]:
    with override_settings(RELAY_INTERNAL_URL="http://127.0.0.1:9"):
        yield


def make_calls(now: datetime) -> None:
    """Two days of calls of several fates, some of them in this hour."""
    for hours in range(0, 40, 2):
        at = now - timedelta(hours=hours)
        make_record(at, cost_nanos=hours + 1, team_id=1 + hours % 3, team_name=f"team {hours % 3}")
        make_record(at, status="upstream_error", usage_source="none", cost_nanos=0, time_to_first_token_ms=None)
        make_record(at, status="refused", usage_source="none", cost_nanos=0, duration_ms=None)


@pytest.mark.parametrize("step", ["hour", "day"])
@pytest.mark.parametrize("rolled_up", [True, False])
def test_each_figure_equals_the_list_behind_it(client: Client, root: User, step: str, rolled_up: bool) -> None:
    client.force_login(root)
    make_calls(timezone.now())
    if rolled_up:
        roll_up()
    page = client.get(reverse("admin:index"), {"by": step})
    totals = reverse("admin:relay_usagerecord_totals")
    for figure in page.context["dashboard"].figures[:2] + page.context["dashboard"].figures[3:4]:
        query = figure.link.partition("?")[2]
        listed = client.get(f"{totals}?{query}").context["sums"]
        shown = {
            "Calls": f"{listed['calls']:,}",
            "Cost, USD": f"$0.{listed['cost_nanos'] or 0:09d}",
            "Error rate": f"{listed['calls']} failed",
        }[figure.name]
        found = {"Calls": figure.value, "Cost, USD": figure.note, "Error rate": figure.note}[figure.name]
        assert found.rstrip("0") == shown.rstrip("0"), figure


@pytest.mark.parametrize("step,slots", [("hour", 24), ("day", 30), ("nonsense", 24)])
def test_charts_have_every_step_and_lead_to_its_records(client: Client, root: User, step: str, slots: int) -> None:
    client.force_login(root)
    now = timezone.now()
    make_calls(now)
    dashboard = build(step, now=now)
    assert [len(chart.slots) for chart in dashboard.charts] == [slots] * 5
    calls = dashboard.charts[0]
    last = client.get(calls.slots[-1].link).context["cl"].result_list
    drawn = sum(series.values[-1] or 0 for series in calls.series)
    assert len(last) == drawn > 0


def test_the_hour_of_the_list_is_the_hour_of_the_bar(client: Client, root: User) -> None:
    client.force_login(root)
    now = datetime.now(UTC)
    record = make_record(now - timedelta(hours=5))
    with override_settings(REPORT_TIME_ZONE="Asia/Kolkata"):
        dashboard = build("hour", now=now)
        slot = next(slot for slot in dashboard.charts[0].slots if slot.bars)
        assert [row.pk for row in client.get(slot.link).context["cl"].result_list] == [record.pk]


def test_the_top_lists_name_the_dearest_first() -> None:
    now = timezone.now()
    for number in range(8):
        make_record(now, key_id=number + 1, key_name=f"key {number}", cost_nanos=number * 10**9)
    tops = dict(build("hour", now=now).tops)
    assert [row.name for row in tops["key"]] == ["key 7", "key 6", "key 5", "key 4", "key 3"]
    assert [row.share for row in tops["key"]][:2] == [100.0, pytest.approx(100 * 6 / 7)]
    assert [row.name for row in tops["team"]] == ["no team"]


def test_without_calls_the_dashboard_is_empty_and_says_so(client: Client, root: User) -> None:
    client.force_login(root)
    page = client.get(reverse("admin:index"))
    assert build("hour", now=timezone.now()).empty
    assert page.text.count("No calls in this time.") >= 5
    assert "Add an account" in page.text


def texts(user: User) -> list[str]:
    return [finding.text for finding in findings(user, now=timezone.now())]


def test_nothing_wrong_needs_no_attention(root: User) -> None:
    with answering_relay({"counters": {"counters": {}}}):
        assert texts(root) == []


def test_what_is_wrong_is_named_worst_first(root: User) -> None:
    now = timezone.now()
    make_record(now, unpriced=True, upstream_model="claude-new")
    make_account("soon", expires_at=now + timedelta(days=3, minutes=1))
    make_key("soon", expires_at=now + timedelta(days=2, minutes=1))
    Quarantine.objects.create(record_id="x", error="x", entry=b"")
    RollUpMark.objects.create(hour=now, at=now - timedelta(hours=5))
    with answering_relay({"counters": {"counters": {}}}):
        found = findings(root, now=now)
    assert [(finding.tone, finding.text) for finding in found] == [
        ("danger", "1 record in quarantine: the database refused what the journal has."),
        ("danger", "Calls without a price in 30 days: claude-new. Add prices; they are repriced."),
        ("warning", "Roll-ups are 5 h behind: is the Celery worker running? Figures here are right, but slow."),
        ("warning", "The account soon expires in 3 d."),
        ("warning", "The key soon expires in 2 d."),
    ]


@pytest.mark.parametrize("spent,tone", [(79, None), (80, "warning"), (100, "danger")])
def test_a_budget_near_its_end_is_named(root: User, spent: int, tone: str | None) -> None:
    team = Team.objects.create(name="Search")
    Limit.objects.create(team=team, metric="cost", amount=100 * 10**9, per="month")
    Limit.objects.create(team=team, metric="requests", amount=1, per="minute")  # a rate comes and goes by itself
    make_key(team=team)
    (rule,) = [rule for key in load_keys().by_id.values() for rule in key.limits if rule.metric == "cost"]
    now = timezone.now()
    name, _ = counted_one(rule).counter(now.timestamp())
    with answering_relay({"counters": {"counters": {name: spent * 10**9}}}):
        found = findings(root, now=now)
    assert [(finding.tone, finding.text) for finding in found] == (
        [(tone, f"The team Search has used ${spent}.00 of $100 per month.")] if tone else []
    )


def test_accounts_that_rest_or_fail_are_named_and_those_that_a_person_switched_off_are_not(root: User) -> None:
    now = timezone.now()
    make_account("off", active=False)
    for name, kind, model, cause in (
        ("tired", "rest", "claude-opus-5-5", "429"),
        ("locked out", "credential", "", "credential"),
    ):
        account: Any = make_account(name)
        until = now + timedelta(minutes=10)
        AccountEvent.objects.create(
            account_id=account.pk, account_name=name, at=now, kind=kind, model=model, cause=cause, until=until
        )
    with answering_relay({"counters": {"counters": {}}}):
        found = findings(root, now=now)
    assert [(finding.tone, finding.text) for finding in found] == [
        ("danger", "The account locked out: credential fault."),
        ("warning", "The account tired: 1 model resting 10 min: 429."),
    ]
    assert [finding.link.split("/")[-3] for finding in found] == [
        str(Account.objects.get(name=name).pk) for name in ("locked out", "tired")
    ]


def test_each_role_is_told_what_concerns_it() -> None:
    now = timezone.now()
    make_record(now, unpriced=True)
    make_account("soon", expires_at=now + timedelta(days=3))
    finance, nobody = make_user("finance"), make_user("nobody")
    finance.groups.add(Group.objects.get(name="finance"))
    assert ["without a price" in text for text in texts(finance)] == [True]
    assert texts(nobody) == []


def test_accounts_that_are_not_ready_come_first() -> None:
    now = timezone.now()
    make_account("ready", priority=1)
    resting: Any = make_account("resting", priority=99)
    AccountEvent.objects.create(
        account_id=resting.pk, account_name="resting", at=now, kind="rest", cause="429", until=now + timedelta(hours=1)
    )
    states = account_states(now=now)
    assert [(state.name, re.sub(r"\d+", "N", state.text)) for state in states] == [
        ("resting", "resting N min: N"),
        ("ready", "ready"),
    ]
