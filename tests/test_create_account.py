"""`manage.py create_account`: what scripts get, and what is refused by name."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from accounts.credentials import decrypt, decrypt_text
from accounts.models import Account, AccountGroup

pytestmark = pytest.mark.django_db

KEY = ("--credential", "api_key=sk-ant-canary")


def create(*words: str) -> dict[str, Any]:
    out = StringIO()
    call_command("create_account", *words, "--json", stdout=out)
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


def refused(*words: str) -> str:
    with pytest.raises(CommandError) as caught:
        create(*words)
    assert not Account.objects.exists() and not AccountGroup.objects.exists()
    assert "canary" not in str(caught.value) and caught.value.returncode != 0
    return str(caught.value)


def test_it_prints_one_json_document() -> None:
    document = create("claude_console", "one", *KEY)
    assert document == {"id": Account.objects.get().pk, "name": "one", "kind": "claude_console"}


def test_without_json_it_says_so_to_a_person() -> None:
    out = StringIO()
    call_command("create_account", "claude_console", "one", *KEY, stdout=out)
    assert out.getvalue() == "Account one added.\n"


def test_every_field_of_the_contract_is_saved() -> None:
    create(
        "claude_official", "one", "--base-url", "https://upstream.test/x",
        "--credential", "access_token=tok", "refresh_token=ref",
        "--priority", "7", "--model-map", '{"a": "b"}', "--set", "weight=3", "slots=4", "proxy=socks5://u:p@proxy.test:1080",
        "--set", "on_disconnect=drain", "active=false", "groups=red, blue", "provider=acme", "token_url=https://t.test/",
        'cooldowns={"529": 0}', "expires_at=2027-01-31T18:00:00Z", "description=for tests",
    )  # fmt: skip
    row = Account.objects.get()
    assert (row.base_url, row.priority, row.weight, row.slots) == ("https://upstream.test/x", 7, 3, 4)
    assert (row.model_map, row.on_disconnect, row.active, row.provider) == ({"a": "b"}, "drain", False, "acme")
    assert (row.settings, row.cooldowns) == ({"token_url": "https://t.test/"}, {"529": 0})
    assert decrypt(row.credential) == {"access_token": "tok", "refresh_token": "ref"}
    assert decrypt_text(row.proxy) == "socks5://u:p@proxy.test:1080"
    assert sorted(group.name for group in row.groups.all()) == ["blue", "red"]
    assert str(row.expires_at) == "2027-01-31 18:00:00+00:00" and row.description == "for tests"


def test_defaults_are_the_models() -> None:
    create("claude_console", "one", *KEY)
    row = Account.objects.get()
    assert (row.priority, row.weight, row.slots, row.active, row.on_disconnect) == (50, 1, 0, True, "abort")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nonsense", "one"), "kind: 'nonsense' is unknown; choose of claude_official,"),
        (("claude_console", ""), "name: 1 to 100 printable characters"),
        (("claude_console", "one", *KEY, "--set", "colour=red"), "colour: claude_console has no such field; there are"),
        (("claude_console", "one", *KEY, "--set", "region=eu"), "region: claude_console has no such field"),
        (("claude_console", "one", "--credential", "password=canary"), "there are api_key"),
        (("claude_console", "one"), "credential: credential is missing"),
        (("claude_console", "one", "--credential", "canary"), "a field: write FIELD=VALUE"),
        (("claude_console", "one", "--credential", "api_key=canary\nx: y"), "it holds a character that no key has"),
        (("claude_console", "one", *KEY, "--base-url", "ftp://x"), "'ftp://x' is not a URL with http or https"),
        (("claude_console", "one", *KEY, "--base-url", "https://"), "base_url"),
        (("claude_console", "one", *KEY, "--base-url", "https://u:canary@x"), "belong into the credential"),
        (("claude_console", "one", *KEY, "--base-url", "https://x/?a=b"), "no query and no fragment"),
        (("claude_console", "one", *KEY, "--base-url", "https://x:99999"), "base_url"),
        (("claude_console", "one", *KEY, "--set", "proxy=ftp://u:canary@x"), "needs a URL with http, https or socks5"),
        (("claude_console", "one", *KEY, "--priority", "0"), "priority: 0 is not between 1 and 100"),
        (("claude_console", "one", *KEY, "--priority", "high"), "priority: 'high' is no whole number"),
        (("claude_console", "one", *KEY, "--priority", "1", "--set", "priority=2"), "priority: it is given twice"),
        (("claude_console", "one", *KEY, "--set", "weight=0"), "weight: 0 is not between 1 and"),
        (("claude_console", "one", *KEY, "--set", "slots=-1"), "slots: -1 is not between 0 and"),
        (("claude_console", "one", *KEY, "--set", "active=maybe"), "active: 'maybe' is neither true nor false"),
        (("claude_console", "one", *KEY, "--set", "on_disconnect=stay"), "'stay' is none of abort, drain"),
        (("claude_console", "one", *KEY, "--model-map", "{"), "model_map: this is no JSON"),
        (("claude_console", "one", *KEY, "--model-map", "[]"), "model_map: this is no JSON object"),
        (("claude_console", "one", *KEY, "--model-map", '{"a": 1}'), "model_map: 'a' leads to no name"),
        (("claude_console", "one", *KEY, "--set", 'cooldowns={"teapot": 1}'), "'teapot' is no cause; there are 429,"),
        (("claude_console", "one", *KEY, "--set", 'cooldowns={"429": -1}'), "cooldowns: 429 is not between 0 and"),
        (("claude_console", "one", *KEY, "--set", "expires_at=soon"), "'soon' is no ISO 8601 time"),
        (("claude_console", "one", *KEY, "--set", "groups=" + "x" * 101, "weight=0"), "groups: "),
        (("ccr", "one", *KEY), "base_url: base_url is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name_and_nothing_is_saved(words: tuple[str, ...], said: str) -> None:
    assert said in refused(*words)


def test_every_wrong_field_is_named_at_once() -> None:
    said = refused("claude_console", "one", *KEY, "--set", "weight=0", "slots=-1")
    assert "weight" in said and "slots" in said


def test_a_name_is_taken_once_even_by_a_deleted_account() -> None:
    create("claude_console", "one", *KEY)
    with pytest.raises(CommandError, match=r"an account named 'one' exists already$"):
        create("claude_console", "one", *KEY)
    Account.objects.update(deleted_at="2026-01-01T00:00:00Z")
    with pytest.raises(CommandError, match=r"exists already \(deleted; restore it\)"):
        create("claude_console", "one", *KEY)
