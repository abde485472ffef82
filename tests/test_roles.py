"""The roles that each migration renews, and what each of them may open: every URL of the admin, walked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, Permission
from django.core.management.sql import emit_post_migrate_signal
from django.test import Client, override_settings
from django.urls import NoReverseMatch, URLPattern, URLResolver, reverse
from django.utils import timezone

from accounts.models import Account
from relay.roles import ROLES
from tests.admin_cases import make_everything, make_user

pytestmark = pytest.mark.django_db
# What finance may open, by the names of the URLs; all else is forbidden.
FINANCE = {
    "index",
    "usage_report",
    "live",
    "relay_usagerecord_changelist",
    "relay_usagerecord_change",
    "relay_usagerecord_totals",
    "relay_usagecorrection_changelist",
    "relay_usagecorrection_change",
    "relay_price_changelist",
    "relay_price_change",
    "relay_price_export",
    "relay_billingperiod_changelist",
    "relay_billingperiod_change",
    "apikeys_team_changelist",
    "apikeys_team_change",
}
OPERATOR = FINANCE | {
    "explain",
    "accounts_account_add",
    "accounts_account_change",
    "accounts_account_changelist",
    "accounts_account_delete",
    "accounts_accountevent_change",
    "accounts_accountevent_changelist",
    "accounts_accountgroup_add",
    "accounts_accountgroup_change",
    "accounts_accountgroup_changelist",
    "accounts_accountgroup_delete",
    "apikeys_apikey_add",
    "apikeys_apikey_change",
    "apikeys_apikey_changelist",
    "apikeys_apikey_delete",
    "apikeys_apikey_rotate",
    "apikeys_team_add",
    "apikeys_team_delete",
    "auditlog_logentry_changelist",
    "auditlog_logentry_change",
    "django_celery_beat_periodictask_changelist",
    "django_celery_beat_periodictask_change",
    "end_rest",
    "relay_quarantine_change",
    "relay_quarantine_changelist",
    "remove_demo",
    "test_account",
}
# For everyone who may sign in, and pages that only lead to others.
COMMON = {
    "login",
    "logout",
    "password_change",
    "password_change_done",
    "autocomplete",
    "jsi18n",
    "view_on_site",
    "app_list",
    "search",
}


@pytest.fixture(autouse=True)
def without_relay() -> Iterator[None]:
    with override_settings(RELAY_INTERNAL_URL="http://127.0.0.1:9"):
        yield


def names(patterns: list[Any]) -> Iterator[str]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from names(pattern.url_patterns)
        elif isinstance(pattern, URLPattern) and pattern.name:
            yield pattern.name


def key_of(name: str) -> Any:
    """The first row of the model that the URL is about, None if there is none; actions are about an account."""
    for model in admin.site._registry:
        if name.startswith(f"{model._meta.app_label}_{model._meta.model_name}_"):
            row = model._default_manager.order_by("pk").first()
            return row.pk if row else None
    return Account.objects.order_by("pk").values_list("pk", flat=True).first()


def address(name: str) -> str | None:
    """The URL, with the first row where it needs one; None where there is none."""
    try:
        return reverse(f"admin:{name}")
    except NoReverseMatch:
        key = key_of(name)
        return reverse(f"admin:{name}", args=[key]) if key else None


def seen(client: Client) -> set[str]:
    found = set()
    for name in sorted(set(names(admin.site.urls[0])) - COMMON):
        url = address(name)
        if url is None:
            continue
        status = client.get(url).status_code
        status = client.post(url).status_code if status == 405 else status
        assert status in {200, 302, 403}, f"{name} ({url}): {status}"
        if status != 403:
            found.add(name)
    # Who may see a row may see its history.
    return found - {f"{name.removesuffix('_change')}_history" for name in found if name.endswith("_change")}


@pytest.fixture
def sign_in(client: Client) -> Any:
    def as_role(role: str) -> Client:
        make_everything(timezone.now())
        user = make_user(role)
        user.groups.add(Group.objects.get(name=role))
        client.force_login(user)
        return client

    return as_role


def test_finance_opens_its_pages_and_no_others(sign_in: Any) -> None:
    assert seen(sign_in("finance")) == FINANCE


def test_an_operator_opens_its_pages_and_no_others(sign_in: Any) -> None:
    assert seen(sign_in("operator")) == OPERATOR


def test_an_admin_opens_more_than_an_operator(sign_in: Any) -> None:
    assert seen(sign_in("admin")) > OPERATOR | {"auth_user_changelist", "auth_group_add", "relay_price_import"}


def test_without_a_role_nothing_but_the_empty_index_opens(client: Client) -> None:
    make_everything(timezone.now())
    client.force_login(make_user("nobody"))
    assert seen(client) == {"index"}


def test_without_staff_everything_leads_to_the_login(client: Client) -> None:
    user = make_user("guest")
    user.is_staff = False
    user.save()
    client.force_login(user)
    for name in sorted(set(names(admin.site.urls[0])) - COMMON):
        if url := address(name):
            answer = client.get(url)
            assert (answer.status_code, "login" in answer.headers.get("location", "")) == (302, True), name


@pytest.mark.parametrize("role", ["operator", "finance"])
@pytest.mark.parametrize("name", ["relay_usagerecord_change", "relay_price_change", "relay_billingperiod_change"])
def test_read_only_roles_change_no_money(sign_in: Any, role: str, name: str) -> None:
    client = sign_in(role)
    url = address(name)
    assert url is not None
    page = client.get(url)
    assert 'name="_save"' not in page.text
    assert client.post(url, {"reason": "I want to"}).status_code == 403


def test_a_migration_renews_the_roles_and_leaves_other_groups_alone() -> None:
    Group.objects.get(name="finance").permissions.clear()
    own = Group.objects.create(name="auditors")
    own.permissions.add(Permission.objects.get(codename="view_logentry", content_type__app_label="auditlog"))
    emit_post_migrate_signal(verbosity=0, interactive=False, db="default")
    assert Group.objects.get(name="finance").permissions.count() == sum(
        len(tuple(x)) for x in ROLES["finance"].values()
    )
    assert own.permissions.count() == 1
    assert not Group.objects.get(name="finance").permissions.filter(codename__contains="account").exists()
