"""Accounts in the admin: secrets go in and never come out, the state is seen, the buttons do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from auditlog.models import LogEntry as AuditEntry
from django.contrib.admin.models import LogEntry
from django.core import mail
from django.test import Client, override_settings
from django.urls import reverse
from django.utils import timezone
from django.views.debug import SafeExceptionReporterFilter

from accounts.credentials import decrypt, decrypt_text
from accounts.models import Account, AccountEvent, AccountGroup
from relay.call import new_call_id
from tests.admin_cases import CREDENTIAL, PROXY, answering_relay, errors_of, form_values, make_account, make_user

pytestmark = pytest.mark.django_db
LIST = "admin:accounts_account_changelist"
CANARIES = (CREDENTIAL, "canary-password")


@pytest.fixture
def staff(client: Client) -> Iterator[Client]:
    client.force_login(make_user("root", superuser=True))
    with override_settings(RELAY_INTERNAL_URL="http://127.0.0.1:9"):
        yield client


def change_url(account: Account) -> str:
    return reverse("admin:accounts_account_change", args=[account.pk])


def save(staff: Client, url: str, **changes: Any) -> Any:
    """Send the form as it is shown, with these changes; None takes a field out."""
    values = {**form_values(staff.get(url)), **changes}
    return staff.post(url, {name: value for name, value in values.items() if value is not None})


NEW = {
    "name": "main",
    "kind": "claude_console",
    "base_url": "https://upstream.test",
    "credential_api_key": CREDENTIAL,
    "proxy_url": PROXY,
    "model_map": '{"claude-sonnet-5": "my-sonnet"}',
    "rest_429": "5",
}


def test_an_account_is_made_with_all_its_fields(staff: Client) -> None:
    group = AccountGroup.objects.create(name="pool")
    answer = save(staff, reverse("admin:accounts_account_add"), **NEW, groups=[group.pk])
    assert answer.status_code == 302, errors_of(answer)
    account = Account.objects.get()
    assert decrypt(account.credential) == {"api_key": CREDENTIAL}
    assert decrypt_text(account.proxy) == PROXY
    assert (account.model_map, account.cooldowns) == ({"claude-sonnet-5": "my-sonnet"}, {"429": 5.0})
    assert list(account.groups.all()) == [group]


def test_secrets_never_come_out(staff: Client) -> None:
    save(staff, reverse("admin:accounts_account_add"), **NEW)
    account = Account.objects.get()
    refused = save(staff, reverse("admin:accounts_account_add"), **NEW)  # the name is taken: the form is shown again
    pages = [
        refused,
        staff.get(change_url(account)),
        staff.get(reverse(LIST)),
        staff.get(reverse("admin:accounts_account_history", args=[account.pk])),
        staff.get(reverse("admin:auditlog_logentry_changelist")),
        staff.get(reverse("admin:index")),
    ]
    assert [page.status_code for page in pages] == [200] * len(pages)
    assert "exists already" in str(errors_of(refused))
    kept = [page.text for page in pages]
    kept += [str(entry.changes) + entry.object_repr for entry in AuditEntry.objects.all()]
    kept += [entry.change_message + entry.object_repr for entry in LogEntry.objects.all()]
    kept += [str(dict(staff.session))]
    assert AuditEntry.objects.exists() and LogEntry.objects.exists()
    assert [text for text in kept for canary in CANARIES if canary in text] == []


def test_a_fault_of_ours_tells_no_secret_and_mails_nobody(
    staff: Client, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.ADMINS = [("ops", "ops@baton.test")]
    monkeypatch.setattr("accounts.forms.validate_account", lambda *_, **__: 1 / 0)
    staff.raise_request_exception = False
    answer = save(staff, reverse("admin:accounts_account_add"), **NEW)
    told = str(SafeExceptionReporterFilter().get_post_parameters(answer.wsgi_request))
    assert (answer.status_code, mail.outbox) == (500, [])
    assert "credential_api_key" in told and not [canary for canary in CANARIES if canary in told]


def test_an_empty_field_keeps_what_is_stored(staff: Client) -> None:
    account = make_account()
    answer = save(staff, change_url(account), description="mine")
    assert answer.status_code == 302, errors_of(answer)
    account.refresh_from_db()
    assert (account.description, decrypt(account.credential)) == ("mine", {"api_key": CREDENTIAL})
    assert decrypt_text(account.proxy) == PROXY


@pytest.mark.parametrize(
    "changes, asked",
    [
        ({"base_url": "https://other.test"}, ["credential_api_key"]),
        ({"base_url": "http://upstream.test:443"}, ["credential_api_key"]),
        ({"base_url": ""}, ["credential_api_key"]),
        ({"setting_token_url": "https://other.test/token"}, ["credential_api_key"]),
        ({"proxy_url": "socks5://other.test:1080"}, ["credential_api_key"]),
        ({"base_url": "https://other.test", "credential_access_token": "a-new-one"}, ["credential_api_key"]),
        ({"base_url": "https://other.test", "credential_api_key": "sk-new"}, []),
        ({"base_url": "https://upstream.test:443/v1"}, []),
        ({"setting_token_url": "https://upstream.test/token"}, []),
        ({"proxy_url": PROXY}, []),
        ({"proxy_url-remove": "1"}, []),
    ],
)
def test_a_stored_secret_goes_to_no_other_address(staff: Client, changes: dict[str, str], asked: list[str]) -> None:
    account = make_account(kind="claude_official")
    answer = save(staff, change_url(account), **changes)
    assert (list(errors_of(answer)) if answer.status_code == 200 else []) == asked
    account.refresh_from_db()
    assert not asked or account.base_url == "https://upstream.test"


def test_a_secret_that_nobody_can_read_goes_to_no_other_address_either(staff: Client) -> None:
    account = make_account(credential=b"encrypted with a lost key")
    answer = save(staff, change_url(account), base_url="https://other.test")
    assert "another address" in str(errors_of(answer)["credential_api_key"])


def test_a_typed_secret_replaces_the_stored_one_and_a_box_removes_it(staff: Client) -> None:
    account = make_account(kind="claude_official")
    changes = {"credential_access_token": "new-token", "credential_api_key-remove": "1", "proxy_url-remove": "1"}
    answer = save(staff, change_url(account), **changes)
    assert answer.status_code == 302, errors_of(answer)
    account.refresh_from_db()
    assert decrypt(account.credential) == {"access_token": "new-token"}
    assert bytes(account.proxy) == b""


def test_a_secret_that_can_not_be_decrypted_is_told_and_kept(staff: Client) -> None:
    account = make_account(credential=b"encrypted with a lost key")
    listed = staff.get(reverse(LIST))
    assert "credential fault" in listed.text
    assert save(staff, change_url(account), description="mine").status_code == 302
    account.refresh_from_db()
    assert (account.description, bytes(account.credential)) == ("mine", b"encrypted with a lost key")


@pytest.mark.parametrize(
    "changes,field,word",
    [
        ({"base_url": "ftp://upstream.test"}, "base_url", "http"),
        ({"proxy_url": "smb://canary-password@x"}, "proxy_url", "socks5"),
        ({"model_map": '{"a": 1}'}, "model_map", "double quotes"),
        ({"model_map": '{"a": "b",\n}'}, "model_map", "line 2"),
        ({"model_map": "[]"}, "model_map", "object"),
        ({"model_map": "[" * 200_000}, "model_map", "nested"),
        ({"kind": "azure_openai", "setting_deployment_map": "[" * 200_000}, "setting_deployment_map", "JSON"),
        ({"credential_api_key": "sk-ünï"}, "credential_api_key", "character"),
        ({"credential_api_key": ""}, "credential_api_key", "missing"),
        ({"rest_429": "-1"}, "rest_429", "greater"),
        ({"priority": "0"}, "priority", "1"),
        ({"expires_at_0": "0001-01-01", "expires_at_1": "00:00:00"}, "expires_at", "1970 to 8999"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(staff: Client, changes: dict[str, str], field: str, word: str) -> None:
    answer = save(staff, reverse("admin:accounts_account_add"), **{**NEW, **changes})
    assert answer.status_code == 200
    assert word in str(errors_of(answer)[field])
    assert "canary-password" not in answer.text
    assert not Account.objects.exists()


def test_the_kind_of_an_account_is_fixed(staff: Client) -> None:
    account = make_account()
    save(staff, change_url(account), kind="ccr")
    account.refresh_from_db()
    assert account.kind == "claude_console"


def test_the_form_shows_each_kind_its_own_fields(staff: Client) -> None:
    page = staff.get(reverse("admin:accounts_account_add")).text
    assert 'x-show="[&quot;claude_official&quot;].includes(kind)"' in page
    assert 'type="password" name="credential_api_key"' in page


def test_the_human_switch_leaves_an_event(staff: Client) -> None:
    account = make_account()
    save(staff, change_url(account), active=None)
    account.refresh_from_db()
    assert account.active is False
    assert AccountEvent.objects.get().cause == "off, by hand"


def test_the_list_shows_state_last_event_and_calls(staff: Client) -> None:
    account = make_account(slots=3)
    at = timezone.now()
    AccountEvent.objects.create(
        account_id=account.pk, account_name="main", at=at, kind="rest", cause="529", until=at + timedelta(hours=1)
    )
    page = staff.get(reverse(LIST)).text
    assert "resting" in page and ": 529" in page
    assert f"/admin/relay/usagerecord/?account={account.pk}&amp;day=today" in page


RESULT = {"ok": True, "status": 200, "model": "claude-x", "duration_ms": 812, "message": "", "record": None}


@pytest.mark.parametrize(
    "result,words",
    [
        ({}, ["main answered with claude-x in 812 ms."]),
        ({"record": new_call_id()}, ["main answered", "The call&#x27;s record"]),
        ({"ok": False, "status": 401, "message": "<b>bad key</b>"}, ["can&#x27;t be used (401): &lt;b&gt;bad key"]),
    ],
)
def test_test_connection_calls_the_relay_and_says_how_it_went(
    staff: Client, result: dict[str, Any], words: list[str]
) -> None:
    account = make_account()
    with answering_relay({"test_connection": {**RESULT, **result}}) as asked:
        page = staff.post(reverse("admin:test_account", args=[account.pk]), follow=True)
    assert [(question["question"], question["account_id"]) for question in asked] == [("test_connection", account.pk)]
    assert [word for word in words if word not in page.text.replace("'", "&#x27;").replace("&#39;", "&#x27;")] == []


def test_without_a_relay_the_page_says_what_to_do(staff: Client) -> None:
    account = make_account()
    for name in ("test_account", "end_rest"):
        page = staff.post(reverse(f"admin:{name}", args=[account.pk]), follow=True)
        assert "No relay answers" in page.text
        assert staff.get(reverse(f"admin:{name}", args=[account.pk])).status_code == 405


def test_rests_end_from_the_page_and_from_the_list(staff: Client) -> None:
    first, second = make_account("first"), make_account("second")
    with answering_relay({"clear_rest": {}, "counters": {"counters": {}}}) as asked:
        staff.post(reverse("admin:end_rest", args=[first.pk]))
        staff.post(reverse(LIST), {"action": "end_rests", "_selected_action": [first.pk, second.pk]})
    ended = [question["account_id"] for question in asked if question["question"] == "clear_rest"]
    assert ended == [first.pk, first.pk, second.pk]


def test_a_deleted_account_is_hidden_kept_and_restored(staff: Client) -> None:
    account = make_account()
    url = reverse("admin:accounts_account_delete", args=[account.pk])
    assert "can be restored" in staff.get(url).text
    staff.post(url, {"post": "yes"})
    account.refresh_from_db()
    assert account.deleted_at is not None
    assert account not in staff.get(reverse(LIST)).context["cl"].result_list
    assert "Restore" in staff.get(change_url(account)).text
    deleted = f"{reverse(LIST)}?deleted=yes"
    assert account in staff.get(deleted).context["cl"].result_list
    staff.post(deleted, {"action": "restore", "_selected_action": [account.pk]})
    account.refresh_from_db()
    assert account.deleted_at is None


def test_several_accounts_are_deleted_at_once(staff: Client) -> None:
    rows = [make_account("one"), make_account("two")]
    data = {"action": "delete_selected", "_selected_action": [row.pk for row in rows]}
    assert "can be restored" in staff.post(reverse(LIST), data).text
    staff.post(reverse(LIST), {**data, "post": "yes"})
    assert Account.objects.exclude(deleted_at=None).count() == 2
