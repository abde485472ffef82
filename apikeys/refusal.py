"""What a client reads when a limit refuses its call: which limit, how much of it is used, and when it begins anew."""

from __future__ import annotations

import math
from datetime import datetime
from zoneinfo import ZoneInfo

from apikeys.periods import Period
from relay.call import LimitRule, RateLimit
from relay.errors import BudgetExceeded, LimitExceeded
from relay.state.base import Hold

NANOS = 10**9
# Clients would sleep through a longer wait, or try again for minutes (DESIGN section 3).
LONGEST_WAIT = 60.0
SOON = 5.0  # seconds: when a call in flight may have ended is not known


def refusal(rule: LimitRule, at: Period, *, hold: Hold, used: int, now: float) -> LimitExceeded | BudgetExceeded:
    """Return the error for a limit that `hold` did not fit into; `used` is what its counter stood at."""
    whose = "your team" if rule.scope == "team" else "this API key"
    if rule.metric == "concurrency":
        return LimitExceeded(
            f"Too many calls at a time: {whose} may have {rule.amount:,} in flight{models(rule)}. "
            "Try again when one has ended.",
            retry_after=SOON,
            reason="concurrency_limit",
        )
    wait = None if math.isinf(at.end) else max(1.0, math.ceil(at.end - now))
    message = f"{subject(rule, whose)} {state(rule, hold, used=used)} {reset(rule, at, wait=wait)}"
    if rule.metric == "cost":
        return BudgetExceeded(message, retry_after=wait, reason="budget_spent")
    error = LimitExceeded(message, retry_after=wait, reason=f"{rule.metric}_limit")
    if wait is not None:
        error.rates = (RateLimit(rule.metric, rule.amount, max(0, rule.amount - used), at.end),)
    if wait is None or wait > LONGEST_WAIT:
        error.should_retry = False
    return error


def subject(rule: LimitRule, whose: str) -> str:
    name = "budget" if rule.metric == "cost" else "limit"
    per = " in total" if rule.per == "total" else f" per {'5 hours' if rule.per == '5h' else rule.per}"
    return f"The {name} of {amount(rule, rule.amount)}{per}{models(rule)} of {whose}"


def state(rule: LimitRule, hold: Hold, *, used: int) -> str:
    """Spent, or too little left for this call."""
    left = hold.cap - used
    if left <= 0:
        return f"is spent: {amount(rule, used)} used, calls in flight included."
    return (
        f"has {amount(rule, left)} left, and this call could use up to {amount(rule, hold.amount)}, which a strict "
        "limit sets aside. Ask for less output, or wait for calls in flight to end."
    )


def reset(rule: LimitRule, at: Period, *, wait: float | None) -> str:
    if wait is None:
        return "It does not reset by itself; ask your administrator."
    moment = datetime.fromtimestamp(at.end, ZoneInfo(rule.time_zone))
    return f"It resets at {moment:%Y-%m-%d %H:%M:%S} {rule.time_zone}, in {duration(wait)}."


def models(rule: LimitRule) -> str:
    return f" for models like {rule.models}" if rule.models else ""


def amount(rule: LimitRule, value: int) -> str:
    """An amount in the words of its metric; dollars to the cent, or as exactly as it takes to be no zero."""
    if rule.metric != "cost":
        return f"{value:,} {rule.metric if value != 1 else rule.metric.removesuffix('s')}"
    return dollars(value)


def dollars(nanos: int) -> str:
    """Nano-dollars as people write them: at least cents, at most all nine places."""
    whole, rest = divmod(abs(nanos), NANOS)
    places = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanos < 0 else ''}${whole:,}.{places}"


def duration(seconds: float) -> str:
    """A wait in its two largest units."""
    total = math.ceil(seconds)
    if total < 60:
        return f"{total} s"
    minutes, hours, days = total // 60 % 60, total // 3600 % 24, total // 86400
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {total % 60} s"
