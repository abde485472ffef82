"""Limits as people write them: `cost 5 per day strict for claude-* in Europe/Berlin`, `concurrency 4`."""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

PERIODS = ("minute", "hour", "5h", "day", "week", "month", "total")
METRICS = ("requests", "tokens", "cost", "concurrency")
NANOS = 10**9
# What Redis can add up exactly in a script (relay/state/redis.py).
LARGEST = 2**53
WHOLE = re.compile(r"[0-9]+")
DOLLARS = re.compile(r"[0-9]+(?:\.[0-9]{1,9})?")


class LimitTextError(ValueError):
    """The text is no limit; says which word is wrong and what may stand there."""


@dataclass(frozen=True, slots=True)
class LimitText:
    """One limit; `amount` in nano-dollars where the metric is cost, `models` "" = every model."""

    metric: str
    amount: int
    per: str = ""
    strict: bool = False
    models: str = ""
    time_zone: str = "UTC"

    def columns(self) -> dict[str, Any]:
        """The fields of an `apikeys.Limit` row, without its owner."""
        return {
            "metric": self.metric,
            "amount": self.amount,
            "per": self.per,
            "strict": self.strict,
            "model_pattern": self.models,
            "time_zone": self.time_zone,
        }


def parse_limit(text: str) -> LimitText:
    """Read one limit; raises `LimitTextError`."""
    words = text.split()
    metric, amount, *rest = words + [""] * (2 - len(words))
    if metric not in METRICS:
        raise LimitTextError(f"{text!r}: {metric!r} is no metric; choose one of {', '.join(METRICS)}.")
    counted = metric == "concurrency"
    per = "" if counted else period_of(text, rest[:2])
    options = options_of(text, rest if counted else rest[2:], allowed=("for",) if counted else ("strict", "for", "in"))
    return LimitText(
        metric,
        amount_of(text, metric, amount),
        per=per,
        strict="strict" in options,
        models=options.get("for", ""),
        time_zone=zone_of(text, options.get("in", "UTC")),
    )


def period_of(text: str, words: list[str]) -> str:
    if len(words) < 2 or words[0] != "per":
        raise LimitTextError(f"{text!r}: after the amount comes 'per' and a period: {', '.join(PERIODS)}.")
    if words[1] not in PERIODS:
        raise LimitTextError(f"{text!r}: {words[1]!r} is no period; choose one of {', '.join(PERIODS)}.")
    return words[1]


def amount_of(text: str, metric: str, word: str) -> int:
    """The amount as an integer: nano-dollars for cost, exactly."""
    pattern, kind = (DOLLARS, "US dollars, such as 5 or 0.25") if metric == "cost" else (WHOLE, "a whole number")
    if not pattern.fullmatch(word):
        raise LimitTextError(f"{text!r}: the amount {word!r} is not {kind}.")
    amount = int(Decimal(word) * NANOS) if metric == "cost" else int(word)
    if amount > LARGEST:
        raise LimitTextError(f"{text!r}: the amount {word!r} is too large to be counted exactly.")
    return amount


def options_of(text: str, words: list[str], *, allowed: tuple[str, ...]) -> dict[str, str]:
    """What follows the period: `strict`, `for PATTERN`, `in TIMEZONE`, each at most once."""
    found: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word not in allowed or word in found:
            raise LimitTextError(f"{text!r}: {word!r} can't stand there; possible: {', '.join(allowed)}.")
        found[word] = "" if word == "strict" else next(rest, "")
        if word != "strict" and not found[word]:
            raise LimitTextError(f"{text!r}: a word is missing after {word!r}.")
    return found


def zone_of(text: str, word: str) -> str:
    if word not in zoneinfo.available_timezones():
        raise LimitTextError(f"{text!r}: {word!r} is no IANA time zone; write it like Europe/Berlin.")
    return word


def limit_text(limit: LimitText) -> str:
    """The text that `parse_limit` reads back as the same limit."""
    amount = str(limit.amount)
    if limit.metric == "cost":
        whole, nanos = divmod(limit.amount, NANOS)
        amount = f"{whole}.{nanos:09d}".rstrip("0").rstrip(".")
    parts = [limit.metric, amount]
    if limit.per:
        parts += ["per", limit.per]
    if limit.strict:
        parts.append("strict")
    if limit.models:
        parts += ["for", limit.models]
    if limit.time_zone != "UTC":
        parts += ["in", limit.time_zone]
    return " ".join(parts)
