"""What admission costs on the hot path: limits, selection, slot and settlement of one call, without the call itself.

    python -m bench.admission [--calls 5000] [--redis-url redis://127.0.0.1:6379/9] [--json]

In memory and, where an address is given, on Redis: microseconds on the clock and of processor time, and round trips,
for a key with 0, 3 and 10 limits and one account. The calls go one after another, each in a conversation that has its
account. What a call may use is a constant here: the bound of strict limits is not admission's. Empties the limit
counters of that Redis database, and refuses one that a relay has used.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "relay_site.settings")

import django

django.setup()  # before the modules below are imported

import uvloop  # noqa: E402

from accounts import selection  # noqa: E402
from apikeys import admission  # noqa: E402
from apikeys.limit_text import parse_limit  # noqa: E402
from apikeys.rules import counted_one  # noqa: E402
from bench.world import LIMITS  # noqa: E402
from relay.call import Account, Call, Demand, Endpoint, Envelope, Key, LimitRule, Record, new_call_id  # noqa: E402
from relay.state.base import Seed, Store  # noqa: E402
from relay.state.memory import MemoryStore  # noqa: E402
from relay.state.redis import RedisStore  # noqa: E402
from relay.state.redis_link import RedisLink  # noqa: E402

MARK = "bench"
DEMAND = Demand(tokens=500, cost=4000, worst_tokens=2000, worst_cost=20_000)
ACCOUNTS = (Account(id=1, name="bench", kind="claude_console", base_url="http://127.0.0.1", provider="anthropic"),)
ENDPOINT = Endpoint("messages", "anthropic")
ENVELOPE = Envelope(model="claude-sonnet-4-5", affinity="bench")


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one call, begin and end together; microseconds."""

    store: str
    limits: int
    clock_us: float
    cpu_us: float
    round_trips: float


class Counting(RedisLink):
    """A link that counts its round trips."""

    trips = 0

    async def _guarded(self, run: Any) -> Any:
        self.trips += 1
        return await super()._guarded(run)


def key_with(limits: int) -> Key:
    texts = [parse_limit(text) for text in LIMITS[limits]]
    rules = [
        LimitRule(number, "key", limits + 1, text.metric, text.amount, text.per, strict=text.strict)
        for number, text in enumerate(texts, start=100 * limits)
    ]
    return Key(id=limits + 1, name="bench", public_id="bench", digest=b"", limits=tuple(rules))


def new_call(key: Key, now: float) -> Call:
    return Call(
        id=new_call_id(now),
        created_at=now,
        key=key,
        endpoint=ENDPOINT,
        envelope=ENVELOPE,
        method="POST",
        path="messages",
        query="",
        headers=(),
        body=b"",
    )


async def carry(store: Store, key: Key) -> None:
    """What the pipeline does with a call, but for the call."""
    now = time.time()
    call = new_call(key, now)
    found = selection.able(call, ACCOUNTS)
    question = selection.question(call, found, now=now)
    held = await admission.reserve(store, call, lambda: DEMAND, now=now, question=question)
    ranking = await selection.rank(call, found, store=store, now=now, seen=held.seen)
    account = ranking.accounts[0]
    if await selection.take(call, account, store=store, now=now, ranking=ranking, demand=lambda: DEMAND) is not None:
        raise RuntimeError("the account could not be taken")
    record = Record(id=call.id, created_at=now, status="ok", duration_ms=9, input_tokens=25, output_tokens=150)
    await store.settle(admission.settlement_of(held, record, seats=(account.id,)))


async def measure(store: Store, limits: int, *, calls: int, link: Counting | None) -> Figures:
    key, now = key_with(limits), time.time()
    seeds = [Seed(counted_one(rule).limit, now - 60, {}) for rule in key.limits]
    await store.seed(seeds, generation=MARK)
    for _ in range(calls // 10):
        await carry(store, key)
    trips, clock, cpu = link.trips if link else 0, time.perf_counter(), time.process_time()
    for _ in range(calls):
        await carry(store, key)
    used, took = time.process_time() - cpu, time.perf_counter() - clock
    made = (link.trips if link else 0) - trips
    return Figures(type(store).__name__, limits, took / calls * 1e6, used / calls * 1e6, made / calls)


async def every(redis_url: str, calls: int) -> list[Figures]:
    figures = [await measure(MemoryStore(), limits, calls=calls, link=None) for limits in LIMITS]
    if redis_url:
        store = RedisStore(redis_url)
        store._link = link = Counting(redis_url)
        if await store.generation() not in {"", MARK}:
            raise SystemExit("bench: a relay has used this Redis database; name an empty one")
        try:
            figures += [await measure(store, limits, calls=calls, link=link) for limits in LIMITS]
        finally:
            await store.forget_limits()
            await store.flush_affinity()
            await store.close()
    return figures


def render(figures: list[Figures]) -> str:
    head = f"{'':12} {'limits':>6} {'on the clock':>13} {'CPU':>8} {'round trips':>12}"
    rows = [
        f"{item.store:12} {item.limits:6} {item.clock_us:10,.0f} us {item.cpu_us:5,.0f} us {item.round_trips:12.2f}"
        for item in figures
    ]
    return "\n".join((head, *rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.admission", description=__doc__)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--redis-url", default="", help="an empty database; default: memory only")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    figures = uvloop.run(every(options.redis_url, options.calls))
    fields = Figures.__slots__
    plain = [{name: getattr(item, name) for name in fields} for item in figures]
    print(json.dumps(plain, indent=2) if options.json else render(figures))


if __name__ == "__main__":
    main()
