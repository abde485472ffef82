"""`manage.py set_account` and `rotate_credentials`: one field changes, every other stays as it was."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from accounts import account_rows
from accounts.credentials import decrypt, decrypt_text, encrypt, encrypt_text
from accounts.models import Account, AccountEvent, AccountToken

pytestmark = pytest.mark.django_db


@pytest.fixture
def row() -> Account:
    words = ["credential.api_key=sk-ant-one", "priority=7", "groups=red", "proxy=http://u:p@proxy.test:1", "slots=2"]
    return account_rows.create("claude_console", "one", words)


def change(*words: str) -> dict[str, Any]:
    out = StringIO()
    call_command("set_account", "one", *words, "--json", stdout=out)
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


def test_only_the_named_fields_change(row: Account) -> None:
    before = (bytes(row.credential), bytes(row.proxy), row.priority)
    assert change("slots=5", "weight=2") == {"id": row.pk, "name": "one", "changed": ["slots", "weight"]}
    row.refresh_from_db()
    assert (row.slots, row.weight, row.priority) == (5, 2, 7)
    assert (decrypt(row.credential), decrypt_text(row.proxy)) == ({"api_key": "sk-ant-one"}, "http://u:p@proxy.test:1")
    assert before[2] == row.priority and [group.name for group in row.groups.all()] == ["red"]


def test_a_credential_is_replaced_and_an_empty_value_empties_a_field(row: Account) -> None:
    change("credential.api_key=sk-ant-two", "proxy=", "groups=")
    row.refresh_from_db()
    assert (decrypt(row.credential), bytes(row.proxy), row.groups.count()) == ({"api_key": "sk-ant-two"}, b"", 0)


def test_the_human_switch_leaves_an_event(row: Account) -> None:
    change("active=false")
    change("active=false")
    change("active=true")
    assert [(event.kind, event.cause) for event in AccountEvent.objects.order_by("pk")] == [
        ("switched", "off, by hand"),
        ("switched", "on, by hand"),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("colour=red",), "colour: claude_console has no such field; there are name,"),
        (("slots=9", "weight=no"), "weight: 'no' is no whole number"),
        (("credential.api_key=",), "credential: credential is missing"),
        (("kind=ccr",), "kind: claude_console has no such field"),
        (("expires_at=9999-12-31T23:59:59",), "is too far off: choose a time from 1970 to 8999"),
        (("name=",), "name: 1 to 100 printable characters"),
    ],
)
def test_a_wrong_word_changes_nothing(row: Account, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError) as caught:
        change(*words)
    assert said in str(caught.value)
    stored = Account.objects.get()
    assert (stored.slots, stored.weight, decrypt(stored.credential)) == (2, 1, {"api_key": "sk-ant-one"})


def test_an_account_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="no account is named 'one'"):
        change("slots=1")


def test_a_credential_that_cannot_be_decrypted_is_kept_until_it_is_replaced(row: Account, settings: Any) -> None:
    settings.RELAY_SECRET_KEYS = ["another"]
    change("slots=9")
    row.refresh_from_db()
    kept = bytes(row.credential)
    settings.RELAY_SECRET_KEYS = ["another", "baton-insecure-default-secret-for-loopback-only"]
    assert decrypt(kept) == {"api_key": "sk-ant-one"}
    settings.RELAY_SECRET_KEYS = ["another"]
    change("credential.api_key=sk-ant-two")
    row.refresh_from_db()
    assert decrypt(row.credential) == {"api_key": "sk-ant-two"}


def rotated(*words: str) -> dict[str, Any]:
    out = StringIO()
    call_command("rotate_credentials", "--json", *words, stdout=out)
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


def test_rotation_puts_everything_under_the_newest_key(settings: Any) -> None:
    settings.RELAY_SECRET_KEYS = ["old"]
    row = Account.objects.create(
        name="one", kind="claude_console", credential=encrypt({"api_key": "k"}), proxy=encrypt_text("http://p.test")
    )
    settings.RELAY_SECRET_KEYS = ["new", "old"]
    with pytest.raises(CommandError, match="2 need an older key"):
        rotated("--check")
    assert rotated() == {"rotated": 2, "current": 0, "unreadable": []}
    settings.RELAY_SECRET_KEYS = ["new"]
    row.refresh_from_db()
    assert (decrypt(row.credential), decrypt_text(row.proxy)) == ({"api_key": "k"}, "http://p.test")
    assert rotated() == {"rotated": 0, "current": 2, "unreadable": []}


def test_rotation_takes_access_tokens_along(settings: Any) -> None:
    settings.RELAY_SECRET_KEYS = ["old"]
    row = Account.objects.create(name="one", kind="claude_official", credential=encrypt({"refresh_token": "r"}))
    secret = {"access_token": "a", "refresh_token": "r2"}
    token = AccountToken.objects.create(account=row, secret=encrypt(secret), version=1)
    settings.RELAY_SECRET_KEYS = ["new", "old"]
    assert rotated() == {"rotated": 2, "current": 0, "unreadable": []}
    settings.RELAY_SECRET_KEYS = ["new"]
    token.refresh_from_db()
    assert decrypt(token.secret) == secret


def test_rotation_names_the_account_of_a_token_that_no_key_decrypts(settings: Any) -> None:
    settings.RELAY_SECRET_KEYS = ["lost"]
    row = Account.objects.create(name="one", kind="claude_official")
    AccountToken.objects.create(account=row, secret=encrypt({"access_token": "a"}), version=1)
    settings.RELAY_SECRET_KEYS = ["new"]
    with pytest.raises(CommandError, match="one: token: secret can't be decrypted"):
        rotated()


def test_rotation_names_what_no_key_decrypts_and_rotates_the_rest(settings: Any) -> None:
    settings.RELAY_SECRET_KEYS = ["lost"]
    Account.objects.create(name="gone", kind="claude_console", credential=encrypt({"api_key": "k"}))
    settings.RELAY_SECRET_KEYS = ["old"]
    row = Account.objects.create(name="one", kind="claude_console", credential=encrypt({"api_key": "k"}))
    settings.RELAY_SECRET_KEYS = ["new", "old"]
    with pytest.raises(CommandError, match="gone: credential can't be decrypted"):
        rotated()
    settings.RELAY_SECRET_KEYS = ["new"]
    row.refresh_from_db()
    assert decrypt(row.credential) == {"api_key": "k"}


def test_rotation_counts_only_what_is_stored() -> None:
    account_rows.create("claude_console", "one", ["credential.api_key=k"])
    assert rotated() == {"rotated": 0, "current": 1, "unreadable": []}
