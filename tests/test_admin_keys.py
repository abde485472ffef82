"""Keys in the admin: the secret is shown once and kept nowhere; limits in dollars stay exact."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from auditlog.models import LogEntry as AuditEntry
from django.contrib.admin.models import LogEntry
from django.test import Client, override_settings
from django.urls import reverse
from django.utils import timezone

from accounts.models import AccountGroup
from apikeys.keyring import load_keys
from apikeys.models import ApiKey, Binding, Limit, Team
from apikeys.rotation import rotate
from apikeys.rules import counted_one
from relay.standings import Standing
from tests.admin_cases import (
    answering_relay,
    errors_of,
    form_values,
    make_account,
    make_key,
    make_record,
    make_user,
)

pytestmark = pytest.mark.django_db
ADD, LIST = "admin:apikeys_apikey_add", "admin:apikeys_apikey_changelist"
SECRET = re.compile(r"rk_[A-Za-z0-9]+_[A-Za-z0-9]{43}")


@pytest.fixture
def staff(client: Client) -> Iterator[Client]:
    client.force_login(make_user("root", superuser=True))
    with override_settings(RELAY_INTERNAL_URL="http://127.0.0.1:9"):
        yield client


def save(staff: Client, url: str, **changes: Any) -> Any:
    values = {**form_values(staff.get(url)), **changes}
    return staff.post(url, {name: value for name, value in values.items() if value is not None})


def change_url(key: ApiKey) -> str:
    return reverse("admin:apikeys_apikey_change", args=[key.pk])


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def limit(number: int, **fields: str) -> dict[str, Any]:
    given = {"metric": "cost", "amount": "5", "per": "day", "time_zone": "UTC", "model_pattern": "", **fields}
    total = {"limits-TOTAL_FORMS": number + 1}
    return total | {f"limits-{number}-{name}": value for name, value in given.items()}


def test_a_new_key_is_shown_in_the_answer_to_its_form_and_never_again(staff: Client) -> None:
    page = save(staff, reverse(ADD), name="laptop")
    assert page.status_code == 200
    assert "no-store" in page["Cache-Control"]
    (secret,) = set(SECRET.findall(page.text))
    key = ApiKey.objects.get()
    assert bytes(key.digest) == digest_of(secret)
    assert load_keys().by_digest[digest_of(secret)].name == "laptop"
    others = [staff.get(url).text for url in (change_url(key), reverse(LIST), reverse("admin:index"))]
    others += [str(entry.changes) for entry in AuditEntry.objects.all()]
    others += [entry.change_message for entry in LogEntry.objects.all()]
    others += [str(dict(staff.session)), str(staff.cookies)]
    assert AuditEntry.objects.exists() and LogEntry.objects.exists()
    random = secret.rpartition("_")[2]
    assert [text for text in others if random in text or bytes(key.digest).hex() in text] == []


def test_a_key_is_made_with_all_its_fields(staff: Client) -> None:
    team, group = Team.objects.create(name="Search"), AccountGroup.objects.create(name="pool")
    page = save(
        staff,
        reverse(ADD),
        name="laptop",
        team=team.pk,
        families=["claude", "openai"],
        model_patterns="claude-*\n\n gpt-6-sol ",
        tags='{"project": "search"}',
        ip_allow="10.0.0.0/8\n::1",
        **limit(0, amount="0.000000001", strict="on"),
        **{"bindings-TOTAL_FORMS": 1, "bindings-0-group": group.pk},
    )
    assert page.status_code == 200 and SECRET.search(page.text), errors_of(page)
    key = ApiKey.objects.get()
    assert (key.team, key.families, key.model_patterns) == (team, ["claude", "openai"], ["claude-*", "gpt-6-sol"])
    assert (key.tags, key.ip_allow) == ({"project": "search"}, ["10.0.0.0/8", "::1/128"])
    assert (Limit.objects.get().amount, Limit.objects.get().strict, Binding.objects.get().group) == (1, True, group)


@pytest.mark.parametrize(
    "changes,field,word",
    [
        ({"ip_allow": "10.0.0.0/99"}, "ip_allow", "no address"),
        ({"tags": '{"a": 1}'}, "tags", "double quotes"),
        ({"expires_at_0": "9999-12-31", "expires_at_1": "23:59:59"}, "expires_at", "1970 to 8999"),
        ({"name": "a\tb"}, "name", "printable"),
        ({"families": ["mistral"]}, "families", "valid choice"),
        (limit(0, amount="0.0000000001"), "inline.amount", "9 decimal places"),
        (limit(0, metric="requests", amount="1.5"), "inline.amount", "whole number"),
        (limit(0, metric="tokens", amount="9007199254740993"), "inline.amount", "counted"),
        (limit(0, metric="concurrency", per="day"), "inline.per", "no period"),
        (limit(0, per=""), "inline.per", "Choose a period"),
        (limit(0, metric="requests", strict="on"), "inline.strict", "exact"),
        (limit(0, time_zone="Mars/Olympus"), "inline.time_zone", "time zone"),
        ({"bindings-TOTAL_FORMS": 1, "bindings-0-fallback": "on"}, "inline.__all__", "one of the two"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(staff: Client, changes: dict[str, Any], field: str, word: str) -> None:
    page = save(staff, reverse(ADD), **{"name": "laptop", **changes})
    assert word in str(errors_of(page).get(field)), errors_of(page)
    assert not ApiKey.objects.exists()


def test_two_living_keys_share_no_name(staff: Client) -> None:
    make_key("laptop", deleted_at=timezone.now())
    assert SECRET.search(save(staff, reverse(ADD), name="laptop").text)
    assert "exists already" in str(errors_of(save(staff, reverse(ADD), name="laptop")))


def test_dollars_come_back_as_they_were_written(staff: Client) -> None:
    key, _ = make_key()
    Limit.objects.create(key=key, metric="cost", amount=5_250_000_001, per="day")
    Limit.objects.create(key=key, metric="tokens", amount=1_000_000, per="day")
    page = staff.get(change_url(key))
    assert form_values(page)["limits-0-amount"] == Decimal("5.250000001")
    assert form_values(page)["limits-1-amount"] == 1_000_000
    assert save(staff, change_url(key)).status_code == 302
    assert sorted(Limit.objects.values_list("amount", flat=True)) == [1_000_000, 5_250_000_001]


def test_a_rotated_key_has_a_new_secret_and_the_old_one_ends_when_it_was_said(staff: Client) -> None:
    key, old = make_key()
    url = reverse("admin:apikeys_apikey_rotate", args=[key.pk])
    assert "The old key ends" in staff.get(url).text
    page = staff.post(url, {"overlap": "86400"})
    (new,) = set(SECRET.findall(page.text))
    ring = load_keys()
    assert ring.by_digest[digest_of(new)].expires_at is None
    ends = ring.by_digest[digest_of(old)].expires_at
    assert ends is not None and abs(ends - timezone.now().timestamp() - 86400) < 60
    key.refresh_from_db()
    rotate(key, overlap=timedelta(0), now=timezone.now())
    assert digest_of(new) not in load_keys().by_digest
    assert staff.post(url, {"overlap": "5"}).status_code == 200  # no such choice: the form again
    assert staff.get(reverse("admin:apikeys_apikey_rotate", args=[key.pk + 1])).status_code == 404


def test_keys_are_disabled_enabled_deleted_and_restored(staff: Client) -> None:
    key, secret = make_key()
    for name, active in (("disable", False), ("enable", True)):
        staff.post(reverse(LIST), {"action": name, "_selected_action": [key.pk]})
        assert load_keys().by_digest[digest_of(secret)].active is active
    staff.post(reverse("admin:apikeys_apikey_delete", args=[key.pk]), {"post": "yes"})
    assert load_keys().by_digest == {}
    assert staff.get(reverse("admin:apikeys_apikey_rotate", args=[key.pk])).status_code == 404
    staff.post(f"{reverse(LIST)}?deleted=yes", {"action": "restore", "_selected_action": [key.pk]})
    assert list(load_keys().by_digest) == [digest_of(secret)]


def test_limits_are_shown_as_the_relay_counts_them(staff: Client) -> None:
    team = Team.objects.create(name="Search")
    key, _ = make_key(team=team)
    own = Limit.objects.create(key=key, metric="cost", amount=4 * 10**9, per="day")
    Limit.objects.create(team=team, metric="requests", amount=100, per="hour")
    rule = next(rule for rule in load_keys().by_id[key.pk].limits if rule.id == own.pk)
    name, _ = counted_one(rule).counter(timezone.now().timestamp())
    with answering_relay({"counters": {"counters": {name: 3 * 10**9}}}) as asked:
        listed, page = staff.get(reverse(LIST)), staff.get(change_url(key))
    assert len(asked) == 2 and name in asked[0]["names"] and len(asked[0]["names"]) == 2
    assert "$3.00 of $4 per day" in listed.text
    assert "$1.00" in page.text and "(team)" in page.text


@pytest.mark.parametrize(
    "amount,spent,tone,left",
    [(100, 0, "b-bar ", "100"), (100, 80, "b-near", "20"), (100, 130, "b-over", "0"), (0, 0, "b-over", "0")],
)
def test_a_bar_says_how_near_its_end_a_limit_is(amount: int, spent: int, tone: str, left: str) -> None:
    key, _ = make_key()
    Limit.objects.create(key=key, metric="tokens", amount=amount, per="total")
    standing = Standing(load_keys().by_id[key.pk].limits[0], spent, None)
    assert tone in standing.bar
    assert (standing.left, standing.resets, standing.name) == (left, "never", "tokens in total")


def test_without_a_relay_the_pages_stand_and_say_so(staff: Client) -> None:
    key, _ = make_key()
    Limit.objects.create(key=key, metric="cost", amount=1, per="day")
    assert "No relay answers" in staff.get(change_url(key)).text
    assert "The relay does not answer" in staff.get(reverse(LIST)).text


def test_the_list_says_when_a_key_was_last_used(staff: Client) -> None:
    key, _ = make_key()
    assert "never" in staff.get(reverse(LIST)).text
    make_record(timezone.now() - timedelta(minutes=3), key_id=key.pk)
    assert re.search(r"(18\d s|3 min) ago", staff.get(reverse(LIST)).text)


def test_an_accounts_limits_are_its_own(staff: Client) -> None:
    account = make_account()
    url = reverse("admin:accounts_account_change", args=[account.pk])
    answer = save(staff, url, **limit(0, metric="requests", amount="1000"))
    assert answer.status_code == 302, errors_of(answer)
    assert (Limit.objects.get().account, Limit.objects.get().amount) == (account, 1000)


def test_a_team_shows_its_keys(staff: Client) -> None:
    team = Team.objects.create(name="Search")
    make_key("one", team=team)
    make_key("two", team=team, deleted_at=timezone.now())
    page = staff.get(reverse("admin:apikeys_team_changelist")).text
    assert f'/admin/apikeys/apikey/?team__id__exact={team.pk}">1</a>' in page


def test_a_teams_limit_may_be_each_keys_own(staff: Client) -> None:
    team = Team.objects.create(name="Search")
    url = reverse("admin:apikeys_team_change", args=[team.pk])
    answer = save(staff, url, **limit(0, metric="requests", amount="9"), **{"limits-0-each_key": "on"})
    assert answer.status_code == 302, errors_of(answer)
    key, _ = make_key(team=team)
    assert [(rule.scope, rule.owner_id, rule.amount) for rule in load_keys().by_id[key.pk].limits] == [
        ("key", key.pk, 9)
    ]
