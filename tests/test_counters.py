"""The comparison of counters with the ledger: what settles meanwhile is no difference, anything else is."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.test import override_settings

from apikeys.counters import Stand, checked, differences, stand_of
from apikeys.models import ApiKey, Limit
from apikeys.rules import counted_one
from relay import internal
from relay.call import LimitRule, new_call_id
from relay.management.commands import check_counters
from relay.models import UsageRecord
from relay.state import Hold, Seed, Store
from relay.state.memory import MemoryStore
from tests.stores import KINDS, empty_redis, make, play, redis_url

NOW = 1_780_315_200.0
RULE = LimitRule(id=1, scope="key", owner_id=7, metric="cost", amount=100, per="day")
LIMIT = counted_one(RULE)
NAME = LIMIT.counter(NOW)[0]


def stand(used: int, reserved: int = 0, *, seeded: bool = True) -> Stand:
    return Stand({NAME: used}, {NAME: reserved}, frozenset({LIMIT.limit} if seeded else ()))


@pytest.mark.parametrize(
    "before, ledger, after, differs",
    [
        (stand(5), 5, stand(5), False),
        (stand(9, 4), 5, stand(5), False),
        (stand(5), 8, stand(9), False),
        (stand(5), 4, stand(5), True),
        (stand(5), 6, stand(5), True),
        (stand(5), 10, stand(9), True),
        (stand(0, seeded=False), 10, stand(0, seeded=False), False),
    ],
)
def test_the_ledger_must_lie_between_two_looks_at_the_store(
    before: Stand, ledger: int, after: Stand, differs: bool
) -> None:
    assert bool(differences([LIMIT], {LIMIT.limit: ledger}, before=before, after=after, now=NOW)) is differs


def test_only_what_the_ledger_can_prove_is_checked() -> None:
    calls = LimitRule(id=2, scope="key", owner_id=7, metric="concurrency", amount=1)
    attempts = LimitRule(id=3, scope="account", owner_id=7, metric="requests", amount=1, per="day")
    assert [limit.limit for limit in checked([RULE, calls, attempts, RULE])] == [LIMIT.limit]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_tells_what_is_used_what_is_reserved_and_what_is_seeded(kind: str) -> None:
    async def story(store: Store) -> None:
        await store.seed([Seed("1.aa", NOW - 9, {"1.aa:0": (4, 0.0)}), Seed("2.bb", NOW, {})], generation="first")
        holds = [Hold("1.aa:0", "cost", 3, 10), Hold("9.ff", "concurrency", 1, 5)]
        await store.reserve("a", holds, now=NOW, lease=90)
        found = await stand_of(store, ["1.aa:0", "9.ff", "7.cc:0"], now=NOW)
        assert found.used == {"1.aa:0": 7, "9.ff": 1, "7.cc:0": 0}
        assert found.reserved == {"1.aa:0": 3, "9.ff": 1, "7.cc:0": 0}
        assert found.seeded == {"1.aa"}

    play(kind, story)


@pytest.fixture
def limit() -> Limit:
    key = ApiKey.objects.create(name="ada", public_id="p", digest=b"d" * 32)
    now = datetime.now(UTC)
    UsageRecord.objects.create(
        id=new_call_id(now.timestamp()), created_at=now, key_id=key.pk, status="ok", usage_source="none", cost_nanos=40
    )
    found: Limit = Limit.objects.create(key=key, metric="cost", amount=100, per="total")
    return found


def run(*words: str) -> dict[str, Any]:
    out = io.StringIO()
    with contextlib.suppress(SystemExit):
        call_command("check_counters", "--json", *words, stdout=out)
    report: dict[str, Any] = json.loads(out.getvalue())
    return report


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_counters, "PAUSES", (0.0, 0.0))


def seeds(limit: Limit, value: int) -> list[Seed]:
    (found,) = check_counters.all_limits()
    assert found.rule.id == limit.pk
    return [Seed(found.limit, 1.0, {found.counter(2.0)[0]: (value, 0.0)})]


@pytest.mark.django_db
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("value, ok", [(40, True), (39, False), (41, False)])
def test_the_command_finds_and_repairs_a_counter_in_redis(limit: Limit, value: int, ok: bool) -> None:
    empty_redis()
    with override_settings(REDIS_URL=redis_url()):
        assert run() | {"held": None} == {"ok": True, "limits": 1, "unseeded": 1, "held": None, "differences": []}
        prepared = seeds(limit, value)
        play_on_redis(lambda store: store.seed(prepared, generation="first"))
        report = run()
        assert report["ok"] is ok
        assert [(item["counted"], item["ledger"]) for item in report["differences"]] == ([] if ok else [(value, 40)])
        assert run("--repair")["ok"]
        assert run()["ok"]


def play_on_redis(do: Callable[[Store], Awaitable[None]]) -> None:
    async def story() -> None:
        store = make("redis")
        await do(store)
        await store.close()

    async_to_sync(story)()


@pytest.mark.django_db
@pytest.mark.usefixtures("impatient")
def test_without_redis_the_relay_is_asked(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    async_to_sync(store.seed)(seeds(limit, 41), generation="first")
    monkeypatch.setattr(internal, "limits", lambda names: async_to_sync(stand_of)(store, names, now=NOW))
    monkeypatch.setattr(internal, "adjust_counters", lambda amounts: async_to_sync(store.adjust)(amounts, now=NOW))
    with override_settings(REDIS_URL=""):
        assert not run()["ok"]
        assert run("--repair")["ok"]
