"""Rows in memory: any change is noticed, a database that is away is not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import OperationalError, connection

from accounts.credentials import encrypt_text
from accounts.models import Account, AccountGroup
from accounts.triggers import TABLES, watch
from apikeys.authentication import KEYS
from apikeys.keyring import KeyRing, load_keys
from apikeys.models import ApiKey, Binding, DigestSuffix, Limit, Team
from relay.models import Price
from relay.state import snapshot
from relay.state.snapshot import Snapshot, SnapshotPoller, chunked, table_versions

AT = datetime(2026, 6, 1, tzinfo=UTC)


def make_key(number: int = 1, **fields: Any) -> ApiKey:
    return ApiKey.objects.create(name=f"key {number}", public_id=f"p{number}", digest=bytes([number]) * 32, **fields)


def group_account() -> None:
    Account.objects.create(name="a", kind="ccr").groups.add(AccountGroup.objects.create(name="g"))


CHANGES: list[tuple[str, Callable[[], object]]] = [
    ("accounts_account", lambda: Account.objects.create(name="a", kind="ccr")),
    ("accounts_accountgroup", lambda: AccountGroup.objects.create(name="g")),
    ("accounts_account_groups", group_account),
    ("apikeys_apikey", make_key),
    ("apikeys_digestsuffix", lambda: DigestSuffix.objects.create(name="s", suffix=b"")),
    ("apikeys_team", lambda: Team.objects.create(name="t")),
    ("apikeys_limit", lambda: Limit.objects.create(key=make_key(), metric="requests", amount=1, per="day")),
    ("apikeys_binding", lambda: Binding.objects.create(key=make_key(), group=AccountGroup.objects.create(name="g"))),
    ("relay_price", lambda: Price.objects.create(provider="p", model="m", meter="x", rate=1, valid_from=AT)),
]


def raised(table: str, change: Callable[[], object]) -> bool:
    before = table_versions()[table]
    change()
    return table_versions()[table] != before


def sql(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.django_db
@pytest.mark.parametrize("table, insert", CHANGES, ids=[table for table, _ in CHANGES])
def test_every_change_of_a_watched_table_raises_its_version(table: str, insert: Callable[[], object]) -> None:
    assert raised(table, insert)
    assert raised(table, lambda: sql(f'UPDATE "{table}" SET id = id'))
    assert raised(table, lambda: sql(f'DELETE FROM "{table}"'))


@pytest.mark.django_db
def test_bulk_changes_raise_the_version() -> None:
    keys = [ApiKey(name="n", public_id=str(number), digest=bytes([number])) for number in range(20)]
    assert raised("apikeys_apikey", lambda: ApiKey.objects.bulk_create(keys))
    assert raised("apikeys_apikey", lambda: ApiKey.objects.update(active=False))
    assert raised("apikeys_apikey", lambda: ApiKey.objects.all().delete())


@pytest.mark.django_db
def test_a_change_of_one_table_leaves_the_others_alone() -> None:
    before = table_versions()
    Team.objects.create(name="t")
    assert {table for table, version in table_versions().items() if before[table] != version} == {"apikeys_team"}


@pytest.mark.django_db
def test_noting_when_a_key_was_used_makes_no_relay_load_anything() -> None:
    make_key()
    assert not raised("apikeys_apikey", lambda: ApiKey.objects.update(last_used_at=AT))


@pytest.mark.django_db
def test_a_version_that_was_lost_never_comes_back_as_an_old_one() -> None:
    Team.objects.create(name="t")
    before = table_versions()["apikeys_team"]
    sql("DELETE FROM accounts_tableversion")
    Team.objects.create(name="u")
    assert table_versions()["apikeys_team"] > before


@pytest.mark.django_db
def test_triggers_that_a_table_change_dropped_are_made_again_after_the_migration() -> None:
    make_key()
    watch(connection, TABLES)
    watch(connection, TABLES)
    assert raised("apikeys_apikey", lambda: ApiKey.objects.update(name="n"))


def counting(values: list[int]) -> Callable[[], int]:
    return lambda: values.append(0) or len(values)  # type: ignore[func-returns-value]


def test_a_snapshot_is_loaded_again_only_when_its_tables_changed() -> None:
    snap = Snapshot(("a", "b"), counting([]), empty=0)
    assert (snap.current, snap.loaded) == (0, False)
    looks = [snap.refresh({"a": 1}), snap.refresh({"a": 1, "c": 5}), snap.refresh({"a": 1, "b": 1})]
    assert (looks, snap.current) == ([True, False, True], 2)


def test_a_load_that_fails_leaves_what_was_there_and_is_tried_again() -> None:
    def load() -> int:
        if next(answers):
            raise OperationalError
        return 7

    answers = iter([False, True, False])
    snap = Snapshot(("a",), load, empty=0)
    snap.refresh({"a": 1})
    with pytest.raises(OperationalError):
        snap.refresh({"a": 2})
    assert snap.current == 7
    assert snap.refresh({"a": 2})


@pytest.mark.django_db
def test_rows_are_read_in_chunks() -> None:
    Team.objects.bulk_create([Team(name=f"t{number}") for number in range(25)])
    rows = list(chunked(Team.objects.values_list("pk", "name"), size=10))
    assert [name for _, name in rows] == [f"t{number}" for number in range(25)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.django_db(transaction=True)
def test_a_running_poller_shows_a_change_and_outlives_the_database(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = threading.Event()

    def versions() -> dict[str, int]:
        if away.is_set():
            raise OperationalError("server closed the connection")
        return table_versions()

    monkeypatch.setattr(snapshot, "table_versions", versions)
    rows = Snapshot(("apikeys_team",), Team.objects.count, empty=-1)
    poller = SnapshotPoller([rows], interval=0.01)
    poller.load_all()
    poller.start()
    try:
        first = rows.current
        with caplog.at_level(logging.INFO):
            away.set()
            until(lambda: not poller.healthy)
            Team.objects.create(name="made meanwhile")
            assert rows.current == first
            away.clear()
            until(lambda: rows.current == first + 1)
        assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    finally:
        poller.stop()
        poller.stop()


@pytest.mark.django_db(transaction=True)
def test_one_snapshot_that_cannot_be_loaded_does_not_stop_the_others() -> None:
    def fail() -> int:
        raise ValueError("a bad row")

    good, bad = Snapshot(("apikeys_team",), Team.objects.count, empty=-1), Snapshot(("apikeys_team",), fail, empty=-1)
    poller = SnapshotPoller([bad, good], interval=0.01)
    poller.start()
    try:
        until(lambda: good.current >= 0)
    finally:
        poller.stop()
    assert (bad.current, bad.loaded) == (-1, False)


@pytest.mark.django_db(transaction=True)
def test_a_poll_gives_its_connection_back() -> None:
    poller = SnapshotPoller([Snapshot(("apikeys_team",), Team.objects.count, empty=-1)], interval=1)
    poller._poll()
    assert connection.connection is None


@pytest.mark.django_db(transaction=True)
def test_a_sqlite_file_stays_open_between_polls_but_not_for_ever() -> None:
    poller = SnapshotPoller([Snapshot(("apikeys_team",), Team.objects.count, empty=-1)], interval=1)
    poller._poll()
    poller._poll()
    assert (connection.connection is not None) == (connection.vendor == "sqlite")
    poller._kept_until = 0.0
    poller._poll()
    assert connection.connection is None


@pytest.mark.django_db
def test_keys_that_did_not_change_stay_the_same_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        make_key(number)
    monkeypatch.setattr(KEYS, "current", KeyRing())
    KEYS.refresh(table_versions())
    before = dict(KEYS.current.by_digest)
    ApiKey.objects.filter(name="key 1").update(active=False)
    KEYS.refresh(table_versions())
    after = KEYS.current.by_digest
    assert after[b"\2" * 32] is before[b"\2" * 32]
    assert not after[b"\1" * 32].active


@pytest.mark.django_db
def test_a_key_carries_its_limits_its_teams_and_its_bindings() -> None:
    team, group = Team.objects.create(name="crew"), AccountGroup.objects.create(name="g")
    key = make_key(team=team, tags={"env": "ci"}, model_patterns=["claude-*"], ip_allow=["10.0.0.0/8"])
    other = make_key(2)
    Limit.objects.create(team=team, metric="cost", amount=5, per="month", strict=True, time_zone="Asia/Kathmandu")
    Limit.objects.create(key=key, metric="requests", amount=9, per="minute", model_pattern="*opus*")
    Binding.objects.create(key=key, group=group, fallback=True)
    loaded = load_keys().by_id
    assert [(rule.scope, rule.owner_id, rule.metric, rule.amount, rule.strict) for rule in loaded[key.pk].limits] == [
        ("key", key.pk, "requests", 9, False),
        ("team", team.pk, "cost", 5, True),
    ]
    assert loaded[key.pk].bindings[0].group_id == group.pk
    assert (loaded[key.pk].team, loaded[key.pk].tags, loaded[other.pk].limits) == ("crew", {"env": "ci"}, ())


@pytest.mark.django_db
def test_a_team_gives_each_key_a_limit_that_the_keys_own_replaces() -> None:
    team = Team.objects.create(name="crew")
    plain, special = make_key(1, team=team), make_key(2, team=team)
    default = Limit.objects.create(team=team, metric="cost", amount=5, per="day", each_key=True)
    shared = Limit.objects.create(team=team, metric="cost", amount=50, per="day")
    own = Limit.objects.create(key=special, metric="cost", amount=9, per="day")
    loaded = load_keys().by_id
    assert [(rule.id, rule.scope, rule.owner_id) for rule in loaded[plain.pk].limits] == [
        (default.pk, "key", plain.pk),
        (shared.pk, "team", team.pk),
    ]
    assert [rule.id for rule in loaded[special.pk].limits] == [own.pk, shared.pk]


@pytest.mark.django_db
def test_a_suffix_that_cannot_be_decrypted_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    make_key()
    DigestSuffix.objects.create(name="crs", suffix=b"not encrypted")
    DigestSuffix.objects.create(name="good", suffix=encrypt_text("pepper"))
    assert load_keys().suffixes == (b"pepper",)
    assert "crs can't be decrypted" in caplog.text


@pytest.mark.django_db
def test_a_limit_whose_time_zone_this_system_lacks_follows_utc_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    Limit.objects.create(key=make_key(), metric="requests", amount=9, per="day", time_zone="Mars/Olympus")
    (key,) = load_keys().by_id.values()
    assert key.limits[0].time_zone == "UTC"
    assert "Mars/Olympus" in caplog.text
