"""Where a key stands: each of its limits, what is used of it, and when it begins anew."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from apikeys import seeding
from apikeys.rules import Counted, counted
from relay.call import Key, RateLimit
from relay.state.base import Store

UNITS = {"cost": "nano-dollars", "tokens": "tokens", "requests": "requests", "concurrency": "calls"}
# What the vendors tell of in headers, each under its own names.
TOLD = frozenset({"requests", "tokens"})


def rates(key: Key, used: Mapping[str, int], *, at: float) -> tuple[RateLimit, ...]:
    """Return the tightest limit on requests and on tokens, of those that `used` knows: what their counters stood at
    with the call that was admitted `at`. Totals are left out: they never reset."""
    found: dict[str, tuple[float, RateLimit]] = {}
    for limit in counted(("key", key.id), key.limits):
        if limit.metric not in TOLD or (taken := used.get(limit.counter(at)[0])) is None:
            continue
        remaining, end = max(0, limit.cap - taken), limit.resets(at)
        share = remaining / limit.cap if limit.cap else 0.0
        if not math.isinf(end) and (limit.metric not in found or share < found[limit.metric][0]):
            found[limit.metric] = share, RateLimit(limit.metric, limit.cap, remaining, end)
    return tuple([item for _, item in found.values()])


async def standing(store: Store, key: Key, now: float) -> list[dict[str, Any]]:
    """Return each limit of the key and its team, as `GET /api/v1/usage` shows it: amounts are integers in `unit`,
    calls in flight count with what they have reserved. Raises StoreAway."""
    limits = counted(("key", key.id), key.limits)
    if not limits:
        return []
    await seeding.seed(store, key.limits, now=now)
    used = await store.used([limit.counter(now)[0] for limit in limits], now=now)
    return [shown(limit, used.get(limit.counter(now)[0], 0), now=now) for limit in limits]


def shown(limit: Counted, used: int, *, now: float) -> dict[str, Any]:
    rule, end = limit.rule, limit.period(now).end
    resets = None if math.isinf(end) else datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "scope": rule.scope,
        "metric": rule.metric,
        "unit": UNITS[rule.metric],
        "amount": rule.amount,
        "used": used,
        "remaining": max(0, rule.amount - used),
        "per": rule.per or None,
        "resets_at": resets,
        "time_zone": rule.time_zone,
        "models": rule.models or None,
        "strict": rule.strict,
    }
