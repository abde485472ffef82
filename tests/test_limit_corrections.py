"""Corrected records and the counters that had counted them."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from apikeys import admission, seeding
from apikeys.authentication import KEYS, KeyRing
from apikeys.rules import counted_one
from relay import corrections
from relay.call import Key, LimitRule, new_call_id
from relay.models import UsageRecord
from relay.pricing import PriceBook
from relay.state import Seed, Store
from tests.stores import KINDS, make, play

pytestmark = [pytest.mark.django_db, pytest.mark.parametrize("kind", KINDS)]

COST = LimitRule(id=1, scope="key", owner_id=7, metric="cost", amount=10**9, per="total")
TOKENS = LimitRule(id=2, scope="team", owner_id=3, metric="tokens", amount=10**6, per="month")
REQUESTS = LimitRule(id=3, scope="key", owner_id=7, metric="requests", amount=10, per="total", models="big-*")
OTHER_TEAM = replace(TOKENS, id=4, owner_id=4)
LATER = replace(COST, id=5)
RULES = (COST, TOKENS, REQUESTS, OTHER_TEAM)
KEY = Key(id=7, name="ada", public_id="p", digest=b"d", team_id=3, limits=(*RULES, LATER))


def record(**fields: Any) -> UsageRecord:
    now = time.time() - 60
    usual: dict[str, Any] = {"key_id": 7, "team_id": 3, "requested_model": "big-1", "status": "ok"}
    return UsageRecord.objects.create(
        id=new_call_id(now),
        created_at=datetime.fromtimestamp(now, UTC),
        usage_source="provider",
        duration_ms=10,
        **usual | fields,
    )


async def seed(store: Store, amounts: dict[LimitRule, int], *, cut: float) -> None:
    now = time.time()
    counters = {rule: counted_one(rule).counter(now) for rule in amounts}
    seeds = [
        Seed(counted_one(rule).limit, cut, {counters[rule][0]: (amount, counters[rule][1])})
        for rule, amount in amounts.items()
    ]
    await store.seed(seeds, generation=f"{await sync_to_async(seeding.identity)()}.first")


async def stand(store: Store, *rules: LimitRule) -> list[int]:
    names = [counted_one(rule).counter(time.time())[0] for rule in rules]
    used = await store.used(names, now=time.time())
    return [used[name] for name in names]


@sync_to_async
def correct(row: UsageRecord, **changes: Any) -> None:
    corrections.correct(row.pk, changes, author="ada", reason="test", prices=PriceBook())


@pytest.fixture(autouse=True)
def ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KEYS, "current", KeyRing(by_id={7: KEY}))


def test_counters_follow_a_correction_once_whoever_sees_it(kind: str) -> None:
    row = record(cost_nanos=100, output_tokens=10, held_nanos=50)

    async def story(store: Store) -> None:
        await seed(store, {COST: 150, TOKENS: 10, REQUESTS: 1, OTHER_TEAM: 0}, cut=time.time())
        await correct(row, cost_nanos=30, output_tokens=4)
        await seed(store, {LATER: 30}, cut=time.time() + 1)
        others = [store] if kind == "memory" else [store, make(kind)]
        for relay in (*others, *others):
            await admission.renew(relay, [], now=time.time())
        assert await stand(store, COST, TOKENS, REQUESTS, LATER) == [30, 4, 1, 30]
        for relay in others[1:]:
            await relay.close()

    play(kind, story)


def test_a_record_that_changes_its_owner_moves_whole(kind: str) -> None:
    row = record(cost_nanos=100, output_tokens=10)

    async def story(store: Store) -> None:
        await seed(store, {COST: 100, TOKENS: 10, REQUESTS: 1, OTHER_TEAM: 5, LATER: 0}, cut=time.time())
        await correct(row, team_id=4, team_name="other")
        await admission.renew(store, [], now=time.time())
        assert await stand(store, COST, TOKENS, REQUESTS, OTHER_TEAM) == [100, 0, 1, 15]

    play(kind, story)
