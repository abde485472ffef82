"""Keys from the command line: what they say is what is saved, and what is wrong is refused by name."""

from __future__ import annotations

import hashlib
import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from accounts.models import Account, AccountGroup
from apikeys.models import ApiKey, Binding, Limit, Team

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> Any:
    out = io.StringIO()
    call_command(*arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def test_it_shows_the_key_once_and_stores_its_digest() -> None:
    shown = run("create_key", "ci")
    row = ApiKey.objects.get()
    assert shown == {"id": row.pk, "name": "ci", "key": shown["key"]}
    assert shown["key"].startswith(f"rk_{row.public_id}_")
    assert bytes(row.digest) == hashlib.sha256(shown["key"].encode()).digest()
    assert (row.families, row.model_patterns, row.team, row.expires_at, row.active) == ([], [], None, None, True)


def test_every_option_is_saved() -> None:
    account = Account.objects.create(name="main", kind="claude_console")
    group = AccountGroup.objects.create(name="spare")
    run(
        *("create_key", "ci", "--provider", "claude", "--limit", "cost 5 per day strict", "--limit", "concurrency 4"),
        *("--bind", "main", "--bind", "spare:fallback", "--model", "claude-*,o*", "gpt-*", "--team", "research"),
        *("--tag", "job=nightly", "--tag", "url=a=b", "--expires", "2027-01-31T18:00:00+01:00", "--ip", "10.0.0.0/8"),
    )
    row = ApiKey.objects.get()
    assert row.families == ["claude"]
    assert list(row.limits.order_by("pk").values_list("metric", "amount", "per", "strict")) == [
        ("cost", 5_000_000_000, "day", True),
        ("concurrency", 4, "", False),
    ]
    assert list(row.bindings.order_by("pk").values_list("account", "group", "fallback")) == [
        (account.pk, None, False),
        (None, group.pk, True),
    ]
    assert row.model_patterns == ["claude-*", "o*", "gpt-*"]
    assert row.team == Team.objects.get(name="research")
    assert row.tags == {"job": "nightly", "url": "a=b"}
    assert row.expires_at == datetime(2027, 1, 31, 17, tzinfo=UTC)
    assert row.ip_allow == ["10.0.0.0/8"]


@pytest.mark.parametrize(
    "options, said",
    [
        (["--provider", "bedrock"], "provider 'bedrock' is unknown"),
        (["--limit", "cost 5 per fortnight"], "'fortnight' is no period"),
        (["--bind", "nowhere"], "No account or group is named 'nowhere'"),
        (["--bind", "gone"], "No account or group is named 'gone'"),
        (["--bind", "both"], "'both' is an account and a group"),
        (["--tag", "nightly"], "tag 'nightly' is not NAME=VALUE"),
        (["--tag", "a=1", "--tag", "a=2"], "tag 'a' is given twice"),
        (["--model", ""], "model has an empty word"),
        (["--bind", ""], "bind has an empty word"),
        (["--expires", "tomorrow"], "'tomorrow' is no ISO 8601 time"),
        (["--expires", "9999-12-31 23:59:59"], "expires .* is too far off: choose a time from 1970 to 8999"),
        (["--expires", "0001-01-01"], "is too far off"),
        (["--ip", "10.0.0.0/40"], "ip '10.0.0.0/40'"),
        (["--team", "closed"], "team 'closed' was deleted"),
        (["--team", "x" * 101], "1 to 100 printable characters"),
        (["--team", "   "], "team '   ': 1 to 100 printable characters, no spaces around them"),
    ],
)
def test_it_refuses_by_name_and_saves_nothing(options: list[str], said: str) -> None:
    now = datetime.now(UTC)
    Account.objects.create(name="gone", kind="claude_console", deleted_at=now)
    Account.objects.create(name="both", kind="claude_console")
    AccountGroup.objects.create(name="both")
    Team.objects.create(name="closed", deleted_at=now)
    with pytest.raises(CommandError, match=said):
        run("create_key", "ci", "--limit", "concurrency 4", "--team", "new", *options)
    assert not ApiKey.objects.exists()
    assert not Limit.objects.exists()
    assert not Team.objects.filter(name="new").exists()


@pytest.mark.parametrize("name", ["   ", " lead", "a\nb", ""])
def test_a_name_that_nobody_finds_again_is_refused(name: str) -> None:
    with pytest.raises(CommandError, match="1 to 100 printable characters, no spaces around them"):
        run("create_key", name)


def test_a_name_is_taken_until_its_key_is_deleted() -> None:
    run("create_key", "ci")
    with pytest.raises(CommandError, match="A key named 'ci' exists already"):
        run("create_key", "ci")
    ApiKey.objects.update(deleted_at=datetime.now(UTC))
    run("create_key", "ci")
    assert ApiKey.objects.filter(name="ci").count() == 2


def test_set_key_changes_what_is_named_and_nothing_else() -> None:
    run("create_key", "ci", "--model", "claude-*", "--tag", "a=1")
    changed = run(
        *("set_key", "ci", "active=false", "name=nightly", "provider=claude,gemini", "tag=", "team=research"),
        *("expires=2027-01-31", "ip=10.0.0.1"),
    )
    row = ApiKey.objects.get()
    assert changed["changed"] == ["active", "name", "provider", "tag", "team", "expires", "ip"]
    assert (row.name, row.active, row.families, row.tags) == ("nightly", False, ["claude", "gemini"], {})
    assert (row.model_patterns, row.ip_allow) == (["claude-*"], ["10.0.0.1/32"])
    assert row.expires_at == datetime(2027, 1, 31, tzinfo=UTC)
    assert row.team is not None
    run("set_key", "nightly", "expires=", "team=")
    row = ApiKey.objects.get()
    assert (row.expires_at, row.team) == (None, None)


def test_a_limit_of_which_the_amount_changes_keeps_its_row_and_so_its_count() -> None:
    run("create_key", "ci", "--limit", "cost 5 per day", "--limit", "concurrency 4")
    cost = Limit.objects.get(metric="cost")
    run("set_key", "ci", "limit=cost 9 per day strict", "limit=requests 3 per minute")
    assert list(Limit.objects.order_by("pk").values_list("metric", "amount", "strict")) == [
        ("cost", 9_000_000_000, True),
        ("requests", 3, False),
    ]
    assert Limit.objects.get(metric="cost").pk == cost.pk
    run("set_key", "ci", "limit=")
    assert not Limit.objects.exists()


def test_bindings_are_replaced() -> None:
    for name in ("one", "two"):
        Account.objects.create(name=name, kind="claude_console")
    run("create_key", "ci", "--bind", "one")
    run("set_key", "ci", "bind=two:fallback")
    assert list(Binding.objects.values_list("account__name", "fallback")) == [("two", True)]
    run("set_key", "ci", "bind=")
    assert not Binding.objects.exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["nobody", "active=false"], "No key is named 'nobody'"),
        (["ci", "active"], "'active' is not FIELD=VALUE"),
        (["ci", "colour=red"], "'colour' is no field of a key"),
        (["ci", "active=perhaps"], "'perhaps' is neither true nor false"),
        (["ci", "name="], "name '': 1 to 100 printable"),
        (["ci", "active=true", "active=false"], "active is given twice"),
        (["ci", "name=taken"], "A key named 'taken' exists already"),
        (["ci", "active=false", "limit=cost x per day"], "'x' is not US dollars"),
    ],
)
def test_set_key_refuses_by_name_and_saves_nothing(words: list[str], said: str) -> None:
    run("create_key", "ci", "--limit", "concurrency 4")
    run("create_key", "taken")
    with pytest.raises(CommandError, match=said):
        run("set_key", *words)
    assert ApiKey.objects.get(name="ci").active
    assert Limit.objects.count() == 1
