"""Accounts as the relay holds them: every row is there, and one that can't be used says why."""

from __future__ import annotations

from typing import Any, cast

import pytest
from django.utils import timezone

from accounts.account_rows import create
from accounts.models import Account as AccountRow
from accounts.snapshot import ACCOUNTS, load_accounts, readable
from apikeys.models import Limit
from relay.call import Account, LimitRule
from relay.state.snapshot import table_versions

pytestmark = pytest.mark.django_db

NO_KEY = "None of the keys in RELAY_SECRET_KEYS decrypts it"


def loaded() -> dict[str, Account]:
    return {item.name: item for item in load_accounts()}


def test_a_row_comes_through_whole() -> None:
    words = [
        "base_url=http://x.test", "credential.api_key=sk-ant-x", "proxy=http://u:p@proxy.test:1", "priority=3",
        "weight=2", "slots=4", 'model_map={"a":"b"}', "groups=red,blue", "on_disconnect=drain", 'cooldowns={"529": 5}',
        "expires_at=2027-01-01T00:00:00Z", "active=false", "provider=acme",
    ]  # fmt: skip
    row = create("claude_console", "one", words)
    assert loaded()["one"] == Account(
        id=row.pk,
        name="one",
        kind="claude_console",
        base_url="http://x.test",
        provider="acme",
        credential={"api_key": "sk-ant-x"},
        settings={},
        priority=3,
        weight=2,
        slots=4,
        proxy="http://u:p@proxy.test:1",
        model_map={"a": "b"},
        groups=frozenset(group.pk for group in row.groups.all()),
        active=False,
        expires_at=1_798_761_600.0,
        on_disconnect="drain",
        cooldowns={"529": 5.0},
    )


def test_the_secret_is_in_no_repr() -> None:
    create("claude_console", "one", ["credential.api_key=canary", "proxy=http://u:canary@proxy.test:1"])
    assert "canary" not in repr(loaded())


def test_the_kind_owns_the_price_unless_the_account_names_another() -> None:
    create("claude_console", "one", ["credential.api_key=k"])
    assert loaded()["one"].provider == "anthropic"


def test_a_credential_that_cannot_be_decrypted_marks_its_account_and_loses_no_other(settings: Any) -> None:
    create("claude_console", "one", ["credential.api_key=k", "proxy=http://proxy.test:1"])
    settings.RELAY_SECRET_KEYS = ["another"]
    create("claude_console", "two", ["credential.api_key=k"])
    accounts = loaded()
    assert accounts["two"].fault == "" and accounts["two"].credential == {"api_key": "k"}
    assert accounts["one"].credential == {} and accounts["one"].proxy == ""
    assert accounts["one"].fault == (f"credential can't be decrypted: {NO_KEY}; proxy can't be decrypted: {NO_KEY}")


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ({"kind": "vanished"}, "this Baton has no kind 'vanished'"),
        ({"settings": []}, "settings is no JSON object"),
        ({"model_map": "x"}, "model_map is no JSON object"),
        ({"cooldowns": {"529": "long"}}, "cooldowns holds something that is no number of seconds"),
        ({"cooldowns": []}, "cooldowns is no JSON object"),
        ({"credential": b"garbage"}, f"credential can't be decrypted: {NO_KEY}"),
    ],
)  # fmt: skip
def test_a_bad_row_says_what_is_wrong_and_loses_no_other(broken: dict[str, Any], fault: str) -> None:
    create("claude_console", "good", ["credential.api_key=k"])
    AccountRow.objects.create(**{"name": "bad", "kind": "claude_console", **broken})
    accounts = loaded()
    assert (accounts["bad"].fault, accounts["good"].fault) == (fault, "")


def test_a_row_that_nobody_foresaw_loses_no_other() -> None:
    create("claude_console", "good", ["credential.api_key=k"])
    row = AccountRow(id=99, name="bad", kind="claude_console", weight=cast(int, "heavy"))
    assert readable(row).fault == "this row can't be read (TypeError)"


def test_a_deleted_account_is_not_there() -> None:
    row = create("claude_console", "one", ["credential.api_key=k"])
    AccountRow.objects.filter(pk=row.pk).update(deleted_at=timezone.now())
    assert loaded() == {}


def test_limits_of_accounts_come_along_and_calls_at_a_time_are_slots() -> None:
    row = create("claude_console", "one", ["credential.api_key=k", "slots=9"])
    daily = Limit.objects.create(account=row, metric="cost", amount=5, per="day", time_zone="Asia/Shanghai")
    Limit.objects.create(account=row, metric="concurrency", amount=4)
    found = loaded()["one"]
    assert found.slots == 4
    assert found.limits == (LimitRule(daily.pk, "account", row.pk, "cost", 5, "day", time_zone="Asia/Shanghai"),)


@pytest.mark.parametrize("change", ["row", "group", "limit", "bulk"])
def test_any_change_is_seen_by_its_version(change: str) -> None:
    row = create("claude_console", "one", ["credential.api_key=k", "groups=red"])
    ACCOUNTS.refresh(table_versions())
    assert not ACCOUNTS.refresh(table_versions())
    changes: dict[str, Any] = {
        "row": lambda: row.save(),
        "group": lambda: row.groups.clear(),
        "limit": lambda: Limit.objects.create(account=row, metric="requests", amount=1, per="day"),
        "bulk": lambda: AccountRow.objects.update(priority=9),
    }
    changes[change]()
    assert ACCOUNTS.refresh(table_versions())


def test_a_thousand_accounts_are_three_queries(django_assert_num_queries: Any) -> None:
    AccountRow.objects.bulk_create([AccountRow(name=f"a{number}", kind="claude_console") for number in range(1000)])
    with django_assert_num_queries(3):
        assert len(load_accounts()) == 1000
