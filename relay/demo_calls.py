"""A plausible month of calls, made up from a seed. Pure: rows come in as ids and names, records go out."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from relay.call import Attempt, CallStatus, Outcome, Record, Usage, UsageSource, new_call_id
from relay.metering import book
from relay.pricing import PriceBook

HOURS = (1, 1, 1, 1, 1, 2, 4, 8, 14, 18, 19, 17, 13, 16, 18, 17, 15, 11, 7, 5, 4, 3, 2, 1)  # how busy, UTC
WEEKEND = 0.25
TAG = "demo"
ORIGIN = "demo"  # in the records: neither a client's call nor an operator's


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    provider: str
    dialect: str
    endpoint: str
    weight: float
    tokens_per_second: float


MODELS = (
    Model("claude-sonnet-5-5", "anthropic", "anthropic", "messages", 10, 80),
    Model("claude-haiku-5-5", "anthropic", "anthropic", "messages", 7, 160),
    Model("claude-opus-5-5", "anthropic", "anthropic", "messages", 3, 55),
    Model("gpt-6-sol", "openai", "openai_responses", "responses", 4, 90),
    Model("gpt-5-mini", "openai", "openai_responses", "responses", 3, 150),
    Model("claude-demo-unreleased", "anthropic", "anthropic", "messages", 0.02, 80),  # in no price list
)


@dataclass(frozen=True, slots=True)
class Caller:
    """A key as the records name it."""

    key_id: int
    key_name: str
    team_id: int | None
    team_name: str
    weight: float
    tags: dict[str, str] = field(default_factory=dict)
    user_agent: str = "anthropic-sdk-python"


@dataclass(frozen=True, slots=True)
class Upstream:
    """An account as the records name it."""

    account_id: int
    account_name: str
    provider: str


def calls(
    *,
    days: int,
    per_day: int,
    now: datetime,
    callers: Sequence[Caller],
    upstreams: Sequence[Upstream],
    prices: PriceBook,
    seed: int,
) -> Iterator[Record]:
    """Yield the booked calls of so many days before `now`, oldest first; the same for the same seed, but for ids."""
    chance = random.Random(seed)  # noqa: S311 - made-up figures, no secret
    start = now - timedelta(days=days)
    total = sum(HOURS)
    hour = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    while hour < now:
        busy = HOURS[hour.hour] / total * (WEEKEND if hour.weekday() >= 5 else 1.0) * growth(hour, now=now, days=days)
        moments = sorted(chance.random() * 3600 for _ in range(poisson(chance, per_day * busy)))
        for second in moments:
            at = hour + timedelta(seconds=second)
            if start <= at < now:
                yield call(at, chance, callers=callers, upstreams=upstreams, prices=prices)
        hour += timedelta(hours=1)


def growth(hour: datetime, *, now: datetime, days: int) -> float:
    """From 0.7 at the beginning to 1.2 at the end: people get used to it."""
    return 1.2 - 0.5 * ((now - hour) / timedelta(days=days))


def poisson(chance: random.Random, mean: float) -> int:
    """How many of many rare things happen (Knuth); large means as a rounded normal."""
    if mean > 30:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    limit, product, number = math.exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        number += 1
    return number


def call(
    at: datetime,
    chance: random.Random,
    *,
    callers: Sequence[Caller],
    upstreams: Sequence[Upstream],
    prices: PriceBook,
) -> Record:
    """One call, booked by the meter's own arithmetic."""
    caller = chance.choices(callers, [one.weight for one in callers])[0]
    model = chance.choices(MODELS, [one.weight for one in MODELS])[0]
    able = [one for one in upstreams if one.provider == model.provider]
    upstream = chance.choices(able, range(len(able), 0, -1))[0]
    record = Record(
        id=new_call_id(at.timestamp()),
        created_at=at.timestamp(),
        key_id=caller.key_id,
        key_name=caller.key_name,
        team_id=caller.team_id,
        team_name=caller.team_name,
        dialect=model.dialect,
        endpoint=model.endpoint,
        requested_model=model.name,
        stream=chance.random() < 0.8,
        tags={**caller.tags, TAG: "1"},
        origin=ORIGIN,
        user_agent=caller.user_agent,
        session=f"demo-{chance.randrange(200)}",
    )
    fate = chance.choices(("ok", "left", "failed", "refused"), (960, 18, 14, 8))[0]
    if fate == "refused":
        record.status, record.http_status, record.error = CallStatus.REFUSED.value, 429, "rate_limit_error"
        return record
    record.account_id, record.account_name = upstream.account_id, upstream.account_name
    record.provider, record.upstream_model = model.provider, model.name
    record.candidates = [
        {"account": one.account_name, "taken": one is upstream, "reason": "least loaded" if one is upstream else "next"}
        for one in able
    ]
    if fate == "failed":
        return failed(record, upstream, chance)
    return answered(record, upstream, model, chance, left=fate == "left", prices=prices)


def failed(record: Record, upstream: Upstream, chance: random.Random) -> Record:
    status = chance.choice((500, 529, 529, 503))
    record.status, record.http_status, record.error = CallStatus.UPSTREAM_ERROR.value, status, str(status)
    record.duration_ms = round(chance.lognormvariate(6.5, 0.6))
    record.attempts = [Attempt(upstream.account_name, status, str(status), record.duration_ms)]
    return record


def answered(
    record: Record, upstream: Upstream, model: Model, chance: random.Random, *, left: bool, prices: PriceBook
) -> Record:
    usage = used(model, chance)
    first = chance.lognormvariate(-0.6, 0.5)
    if left:
        usage = Usage(input_tokens=usage.input_tokens, output_tokens=max(1, (usage.output_tokens or 0) // 3))
    output = usage.output_tokens or 0
    record.duration_ms = round(1000 * (first + output / model.tokens_per_second * chance.uniform(0.8, 1.3)))
    record.status = CallStatus.CLIENT_DISCONNECTED.value if left else CallStatus.OK.value
    record.http_status = 200
    record.attempts = [Attempt(upstream.account_name, 200, "", record.duration_ms)]
    outcome = Outcome(
        usage=usage,
        source=UsageSource.ESTIMATED if left else UsageSource.PROVIDER,
        response_model=model.name,
        time_to_first_token=first if record.stream else None,
        terminal=not left,
    )
    book(record, outcome, prices=prices, provider=model.provider, now=record.created_at)
    return record


def used(model: Model, chance: random.Random) -> Usage:
    """Counts of a conversation: most of a long prompt comes from the cache."""
    prompt = round(chance.lognormvariate(8.2, 1.1))
    cached = round(prompt * chance.choice((0, 0, 0.5, 0.8, 0.9)))
    written = round((prompt - cached) * chance.choice((0, 0, 0.4))) if model.dialect == MODELS[0].dialect else None
    output = round(chance.lognormvariate(5.6, 0.9)) + 1
    counts: dict[str, Any] = {
        "input_tokens": prompt - cached - (written or 0) + 1,
        "cache_read_input_tokens": cached,
        "cache_creation_5m_input_tokens": written,
        "output_tokens": output,
        "reasoning_tokens": round(output * chance.choice((0, 0, 0.3, 0.6))),
    }
    return Usage(**counts, raw=json.dumps({**counts, "made_up_by": "seed_demo"}).encode())
