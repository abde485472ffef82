"""A relay process that does nothing but admit calls; test_state_race starts several."""

from __future__ import annotations

import asyncio
import sys
import time

from apikeys import admission
from relay.call import Call, Demand, Endpoint, Envelope, Key, LimitRule, new_call_id
from relay.errors import BudgetExceeded, LimitExceeded
from relay.state.redis import RedisStore

WORST = 1_000_003
BUDGET = LimitRule(
    id=1, scope="key", owner_id=7, metric="cost", amount=50 * WORST + WORST - 1, per="total", strict=True
)
CALLS = LimitRule(id=3, scope="key", owner_id=7, metric="concurrency", amount=1000)
KEY = Key(id=7, name="race", public_id="p", digest=b"d", limits=(BUDGET, CALLS))


def new_call(key: Key) -> Call:
    now = time.time()
    return Call(
        id=new_call_id(now),
        created_at=now,
        key=key,
        endpoint=Endpoint("messages", "anthropic"),
        envelope=Envelope(model="m"),
        method="POST",
        path="/",
        query="",
        headers=(),
        body=b"",
    )


async def one(store: RedisStore, key: Key, cost: int, *, hang: bool) -> int:
    """What one call cost, -1 if it was refused."""
    demand = Demand(tokens=1, cost=WORST // 2, worst_tokens=1, worst_cost=WORST)
    try:
        reservation = await admission.reserve(store, new_call(key), lambda: demand, now=time.time())
    except (BudgetExceeded, LimitExceeded):
        return -1
    if not hang:
        await asyncio.sleep(0.01)
        await admission.settle(store, reservation, tokens=1, cost=cost, now=time.time())
    return cost


async def race(url: str, count: int, cost: int, *, hang: bool) -> None:
    """Once told to, print how many of `count` calls were admitted and what they cost; with `hang`, keep them open."""
    print("ready", flush=True)
    sys.stdin.readline()
    store = RedisStore(url)
    costs = await asyncio.gather(*(one(store, KEY, cost, hang=hang) for _ in range(count)))
    admitted = [cost for cost in costs if cost >= 0]
    print(len(admitted), sum(admitted), flush=True)
    if hang:
        await asyncio.sleep(600)
    await store.close()
