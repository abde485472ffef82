"""What needs a person: each finding says what is wrong, and leads to where it can be put right."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.urls import reverse

from accounts.admin import TONES, fault_of, state_text
from accounts.models import Account
from accounts.status import Status, statuses
from apikeys.keyring import load_rules
from apikeys.models import ApiKey, Team
from relay import internal
from relay.models import Quarantine, RollUpMark, UsageRecord
from relay.partitions import first_id
from relay.standings import Standing, standings
from relay_site.display import count, time_left

SOON = timedelta(days=14)
NEAR = 0.8
UNPRICED_DAYS = 30
BEHIND = timedelta(minutes=30)
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    tone: str  # as in relay_site.display.TONES
    text: str
    link: str = ""


@dataclass(frozen=True, slots=True)
class AccountState:
    name: str
    kind: str
    text: str
    tone: str
    cause: str
    link: str


def page(name: str, *args: Any) -> str:
    return reverse(f"admin:{name}", args=args)


def findings(user: Any, *, now: datetime) -> list[Finding]:
    """Return what the user may see and should know, the worst first."""
    found: list[Finding] = []
    if user.has_perm("relay.view_quarantine"):
        found += quarantined()
    if user.has_perm("relay.view_usagerecord"):
        found += unpriced(now=now) + behind(now=now)
    if user.has_perm("accounts.view_account"):
        found += unready(now=now) + expiring_accounts(now=now)
    if user.has_perm("apikeys.view_apikey"):
        found += expiring_keys(now=now) + spent(now=now)
    return sorted(found, key=lambda finding: ("danger", "warning", "info").index(finding.tone))


def quarantined() -> list[Finding]:
    waiting = Quarantine.objects.filter(resolved_at=None).count()
    if not waiting:
        return []
    text = f"{plural(waiting, 'record')} in quarantine: the database refused what the journal has."
    return [Finding("danger", text, f"{page('relay_quarantine_changelist')}?resolved_at__isempty=1")]


def unpriced(*, now: datetime) -> list[Finding]:
    since = first_id(now - timedelta(days=UNPRICED_DAYS))
    models = (
        UsageRecord.objects.filter(unpriced=True, id__gte=since).order_by().values_list("upstream_model", flat=True)
    )
    names = sorted(set(models[:5000]))
    if not names:
        return []
    text = f"Calls without a price in {UNPRICED_DAYS} days: {', '.join(names[:SHOWN])}. Add prices; they are repriced."
    return [Finding("danger", text, f"{page('relay_usagerecord_changelist')}?figures=unpriced&day=30d")]


def behind(*, now: datetime) -> list[Finding]:
    oldest = RollUpMark.objects.order_by("at").first()
    if oldest is None or oldest.at > now - BEHIND:
        return []
    left = time_left((now - oldest.at).total_seconds())
    return [
        Finding(
            "warning", f"Roll-ups are {left} behind: is the Celery worker running? Figures here are right, but slow."
        )
    ]


def expiring_accounts(*, now: datetime) -> list[Finding]:
    ending = Account.objects.alive().filter(active=True, expires_at__gt=now, expires_at__lt=now + SOON)
    return [
        Finding(
            "warning",
            f"The account {account.name} expires in {time_left((account.expires_at - now).total_seconds())}.",
            page("accounts_account_change", account.pk),
        )
        for account in ending.order_by("expires_at")[:SHOWN]
    ]


def expiring_keys(*, now: datetime) -> list[Finding]:
    ending = ApiKey.objects.alive().filter(active=True, expires_at__gt=now, expires_at__lt=now + SOON)
    return [
        Finding(
            "warning",
            f"The key {key.name} expires in {time_left((key.expires_at - now).total_seconds())}.",
            page("apikeys_apikey_change", key.pk),
        )
        for key in ending.order_by("expires_at")[:SHOWN]
    ]


def spent(*, now: datetime) -> list[Finding]:
    """Budgets near their end; rates come and go by themselves."""
    rules = load_rules()
    budgets = [
        rule
        for found in (*rules.of_keys.values(), *rules.of_teams.values())
        for rule in found
        if rule.metric in {"cost", "tokens"} and rule.per in {"day", "week", "month", "total"}
    ]
    try:
        near = [found for found in standings(budgets, now=now.timestamp()) if found.share >= NEAR]
    except internal.RelayUnreachable as error:
        return [Finding("danger", str(error))]
    near.sort(key=lambda found: -found.share)
    names = owner_names(near[:SHOWN])
    return [
        Finding(
            "danger" if found.share >= 1 else "warning",
            f"{names[found.rule.scope, found.rule.owner_id]} has used {found.glance}.",
            page(f"apikeys_{'team' if found.of_team else 'apikey'}_change", found.rule.owner_id),
        )
        for found in near[:SHOWN]
    ]


def owner_names(found: list[Standing]) -> dict[tuple[str, int], str]:
    keys = [one.rule.owner_id for one in found if not one.of_team]
    teams = [one.rule.owner_id for one in found if one.of_team]
    names = {
        ("key", pk): f"The key {name}" for pk, name in ApiKey.objects.filter(pk__in=keys).values_list("pk", "name")
    }
    return names | {
        ("team", pk): f"The team {name}" for pk, name in Team.objects.filter(pk__in=teams).values_list("pk", "name")
    }


def unready(*, now: datetime) -> list[Finding]:
    """Accounts that take no calls, or not all, though no person has switched them off."""
    rows, found = looked_at(now)
    waiting = [row for row in rows if TONES.get(found[row.pk].state) in {"warning", "danger"}]
    return [
        Finding(
            TONES[found[row.pk].state],
            f"The account {row.name}: {state_text(found[row.pk], now=now)}.",
            page("accounts_account_change", row.pk),
        )
        for row in waiting[:SHOWN]
    ]


def account_states(*, now: datetime, most: int = 12) -> list[AccountState]:
    """Return the accounts and how they do, those that are not ready first."""
    rows, found = looked_at(now)
    return [
        AccountState(
            row.name,
            row.get_kind_display(),
            state_text(found[row.pk], now=now),
            TONES.get(found[row.pk].state, "neutral"),
            found[row.pk].cause,
            page("accounts_account_change", row.pk),
        )
        for row in rows[:most]
    ]


def looked_at(now: datetime) -> tuple[list[Account], dict[int, Status]]:
    """The accounts, those that are not ready first, and the status of each."""
    rows = list(Account.objects.alive().prefetch_related("groups", "limits"))
    found = statuses(rows, faults={row.pk: fault_of(row) for row in rows}, now=now)
    rows.sort(key=lambda row: (found[row.pk].state == "ready", found[row.pk].state == "off", row.priority, row.name))
    return rows, found


def plural(number: int, noun: str) -> str:
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"
