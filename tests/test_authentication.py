"""Who is calling: header forms, keys that are not good, and the one query for a key that the snapshot lacks."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apikeys import lookup
from apikeys.authentication import KEYS, KeyRing, authenticate, digest_of, new_secret, permit, secret_of
from apikeys.keyring import load_keys
from apikeys.lookup import Lookups
from apikeys.models import ApiKey, Limit, Team
from relay.call import Key
from relay.errors import Interrupted, NotAuthenticated, NotPermitted

NOW = 1_780_315_200.0
PUBLIC_ID, SECRET, DIGEST = new_secret()
KEY = Key(id=7, name="ada", public_id=PUBLIC_ID, digest=DIGEST)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has loaded no key and asked for none."""
    monkeypatch.setattr(lookup, "LOOKUPS", Lookups())
    monkeypatch.setattr(KEYS, "current", KeyRing())
    monkeypatch.setattr(KEYS, "loaded", True)


def hold(*keys: Key) -> None:
    KEYS.current = KeyRing(by_digest={key.digest: key for key in keys}, by_id={key.id: key for key in keys})


def come_in(secret: str = SECRET, *, ip: str = "10.0.0.1", now: float = NOW) -> Key:
    headers = ((b"x-api-key", secret.encode()),)
    return async_to_sync(authenticate)(headers, "", client_ip=ip, now=now)


def row(**fields: Any) -> ApiKey:
    return ApiKey.objects.create(**{"name": "ada", "public_id": PUBLIC_ID, "digest": DIGEST} | fields)


@pytest.mark.parametrize(
    "name, value",
    [
        ("x-api-key", "K"),
        ("authorization", "Bearer K"),
        ("authorization", "bearer  K "),
        ("authorization", "BEARER K"),
        ("authorization", "K"),
        ("x-goog-api-key", "K"),
        ("api-key", " K "),
    ],
)
def test_a_key_is_read_from_every_header_that_sdks_use(name: str, value: str) -> None:
    assert secret_of(((b"accept", b"*/*"), (name.encode(), value.encode())), "") == "K"


def test_a_key_is_read_from_the_query() -> None:
    assert secret_of(((b"x-api-key", b""), (b"authorization", b"Bearer ")), "K") == "K"


def test_the_first_credential_that_is_not_empty_counts() -> None:
    headers = ((b"api-key", b"4"), (b"authorization", b"Bearer 2"), (b"x-api-key", b" "), (b"x-goog-api-key", b"3"))
    assert secret_of(headers, "5") == "2"


def test_basic_authorization_is_no_key() -> None:
    assert secret_of(((b"authorization", b"Basic YTpi"), (b"api-key", b"K")), "") == "K"


def test_no_key_at_all_says_how_to_send_one() -> None:
    with pytest.raises(NotAuthenticated, match="Send your Baton key as x-api-key") as refused:
        secret_of((), "")
    assert (refused.value.status, refused.value.should_retry) == (401, False)


def test_bytes_that_are_no_text_are_an_unknown_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "ask", lambda digests: None)
    with pytest.raises(NotAuthenticated):
        async_to_sync(authenticate)(((b"x-api-key", b"\xff\xfe\x00"),), "\udcff", client_ip="", now=NOW)


def test_a_known_key_needs_no_query() -> None:
    hold(KEY)
    assert come_in() is KEY


def test_unknown_and_disabled_keys_read_the_same_and_no_key_is_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "ask", lambda digests: None)
    hold(replace(KEY, active=False))
    messages = set()
    for secret in (SECRET, "rk_someone_elses"):
        with pytest.raises(NotAuthenticated) as refused:
            come_in(secret)
        messages.add(refused.value.message)
    assert messages == {"This API key is not valid."}


def test_an_expired_key_says_when_it_ended() -> None:
    hold(replace(KEY, expires_at=NOW))
    assert come_in(now=NOW - 1)
    with pytest.raises(NotAuthenticated, match="This API key expired on 2026-06-01 12:00 UTC"):
        come_in()


@pytest.mark.parametrize(
    "ip, allowed",
    [
        ("10.1.2.3", True),
        ("10.2.0.1", False),
        ("::ffff:10.1.2.3", True),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("", False),
        ("unix:", False),
    ],
)
def test_a_key_works_from_its_networks_only(ip: str, allowed: bool) -> None:
    hold(replace(KEY, ip_allow=("10.1.0.0/16", "2001:db8::/32", "nonsense")))
    if allowed:
        assert come_in(ip=ip)
    else:
        with pytest.raises(NotPermitted):
            come_in(ip=ip)


def test_permit_knows_families_and_model_patterns() -> None:
    key = replace(KEY, families=frozenset({"claude"}), models=("claude-*-4-5", "ccr,*"))
    permit(key, family="claude", model="claude-opus-4-5")
    permit(key, family="claude", model="")
    with pytest.raises(NotPermitted, match="may not use gemini models"):
        permit(key, family="gemini", model="")
    with pytest.raises(NotPermitted, match="may not use the model 'claude-opus-3'"):
        permit(key, family="claude", model="claude-opus-3")
    permit(KEY, family="gemini", model="anything")


def test_new_secrets_are_long_and_never_the_same() -> None:
    made = [new_secret() for _ in range(100)]
    assert len({whole for _, whole, _ in made}) == 100
    public_id, whole, digest = made[0]
    assert whole.startswith(f"rk_{public_id}_") and len(whole.removeprefix(f"rk_{public_id}_")) == 43
    assert digest == digest_of(whole)


@pytest.mark.django_db
def test_a_new_key_works_before_the_snapshot_has_it() -> None:
    team = Team.objects.create(name="crew")
    key = row(team=team, expires_at=datetime.fromtimestamp(NOW + 60, UTC), families=["claude"])
    Limit.objects.create(key=key, metric="requests", amount=5, per="day")
    Limit.objects.create(team=team, metric="cost", amount=7, per="month")
    found = come_in()
    assert (found.name, found.team, set(found.families), found.expires_at) == ("ada", "crew", {"claude"}, NOW + 60)
    assert [(rule.scope, rule.metric) for rule in found.limits] == [("key", "requests"), ("team", "cost")]
    with CaptureQueriesContext(connection) as queries:
        assert come_in() is found
    assert len(queries) == 0


@pytest.mark.django_db
def test_a_key_found_by_the_query_is_asked_for_again_once_the_snapshot_is_another() -> None:
    key = row()
    come_in()
    key.active = False
    key.save()
    KEYS.current = load_keys()
    with pytest.raises(NotAuthenticated):
        come_in()


@pytest.mark.django_db
def test_an_unknown_key_is_looked_up_once() -> None:
    for expected in (1, 0):
        with CaptureQueriesContext(connection) as queries, pytest.raises(NotAuthenticated):
            come_in("rk_nobody_s")
        assert len(queries) == expected


@pytest.mark.django_db
def test_a_key_made_after_it_was_unknown_comes_with_the_snapshot() -> None:
    with pytest.raises(NotAuthenticated):
        come_in()
    row()
    KEYS.current = load_keys()
    assert come_in().name == "ada"


@pytest.mark.django_db
def test_a_flood_of_invented_keys_costs_a_few_queries() -> None:
    with CaptureQueriesContext(connection) as queries:
        for number in range(500):
            with pytest.raises(NotAuthenticated):
                come_in(f"rk_invented_{number}", now=NOW + number / 100)
    assert len(queries) <= lookup.BURST + 5 * lookup.RATE


def test_the_memory_of_unknown_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "REMEMBERED", 10)
    memory = Lookups()
    for number in range(50):
        memory.remember(bytes([number]), None, KeyRing(), now=NOW)
    assert len(memory.unknown) == 10
    assert memory.known_unknown(bytes([49]), NOW)


def database_away(digests: list[bytes]) -> Key | None:
    from django.db import OperationalError

    raise OperationalError("connection refused, password=hunter2")


def test_without_a_database_the_snapshot_decides(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lookup, "ask", database_away)
    hold(KEY)
    assert come_in() is KEY
    with caplog.at_level(logging.ERROR), pytest.raises(NotAuthenticated):
        come_in("rk_nobody_s")
    assert "OperationalError" in caplog.text
    assert "rk_nobody_s" not in caplog.text and "hunter2" not in caplog.text


def test_without_a_database_and_without_a_snapshot_nobody_is_called_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "ask", database_away)
    monkeypatch.setattr(KEYS, "loaded", False)
    with pytest.raises(Interrupted) as refused:
        come_in()
    assert (refused.value.status, refused.value.retry_after) == (503, 2)


@pytest.mark.django_db
def test_deleted_keys_are_unknown() -> None:
    row(deleted_at=datetime.fromtimestamp(NOW, UTC))
    KEYS.current = load_keys()
    with pytest.raises(NotAuthenticated, match=r"^This API key is not valid\.$"):
        come_in()


@pytest.mark.django_db
@pytest.mark.parametrize("snapshot", [True, False])
def test_the_old_secret_of_a_rotated_key_works_until_its_overlap_ends(snapshot: bool) -> None:
    _, old, old_digest = new_secret()
    until = datetime.fromtimestamp(NOW, UTC) + timedelta(hours=1)
    row(previous_digest=old_digest, previous_until=until)
    if snapshot:
        KEYS.current = load_keys()
    assert come_in(old).id == come_in().id
    with pytest.raises(NotAuthenticated, match="expired"):
        come_in(old, now=NOW + 3600)
    assert come_in(now=NOW + 3600)
