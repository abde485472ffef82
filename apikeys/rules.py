"""Limits made ready for the hot path: which calls one counts, and the counter of the period it counts them in."""

from __future__ import annotations

import math
import re
import zlib
from fnmatch import translate
from functools import lru_cache

from apikeys.periods import ALWAYS, Period, period
from relay.call import LimitRule
from relay.state.base import Hold

# A spent budget is told before a rate: it stops clients at the first answer.
ORDER = {"cost": 0, "tokens": 1, "requests": 2, "concurrency": 3}
MEASURED = frozenset({"cost", "tokens"})
# What a Redis script can add up exactly (its numbers are doubles).
LARGEST = 2**53 - 1
# How long a counter outlives its period: calls that the period admitted still settle into it.
GRACE_SHORT, GRACE_LONG = 2 * 3600.0, 26 * 3600.0
NOWHERE = Period(0, 0)


class Counted:
    """One limit, with the current period's counter kept at hand."""

    __slots__ = ("_counter", "_expires", "_match", "_period", "cap", "limit", "measured", "metric", "rule")

    def __init__(self, rule: LimitRule) -> None:
        self.rule = rule
        self.metric = rule.metric
        self.measured = rule.metric in MEASURED
        self.cap = min(rule.amount, LARGEST)
        # An edit that changes what is counted makes a new limit of it; a new amount goes on with the same counter.
        meaning = (rule.scope, rule.owner_id, rule.metric, rule.per, rule.models, rule.time_zone)
        self.limit = f"{rule.id}-{rule.owner_id}.{zlib.crc32(repr(meaning).encode()):08x}"
        self._match = pattern(rule.models) if rule.models else None
        self._period = NOWHERE
        self._counter = self.limit
        self._expires = 0.0

    def matches(self, model: str) -> bool:
        return self._match is None or self._match.match(model) is not None

    def period(self, at: float) -> Period:
        """The period of this limit that holds `at`; a limit on concurrency has none, so it is always the same."""
        return period(self.rule.per, self.rule.time_zone, at=at) if self.metric != "concurrency" else ALWAYS

    def counter(self, at: float) -> tuple[str, float]:
        """The counter's name for a call made at `at`, and when it may be forgotten (0 = never)."""
        if self.metric == "concurrency":
            return self.limit, 0.0
        if not self._period.start <= at < self._period.end:
            self._period = self.period(at)
            self._counter = f"{self.limit}:{self._period.start}"
            grace = GRACE_SHORT if self.rule.per in {"minute", "hour", "5h"} else GRACE_LONG
            self._expires = 0.0 if self._period == ALWAYS else self._period.end + grace
        return self._counter, self._expires

    def resets(self, at: float) -> float:
        """When the counter of a call made at `at` begins anew, Unix seconds; infinity = never."""
        self.counter(at)
        return self._period.end if self.metric != "concurrency" else math.inf

    def hold(self, amount: int, *, at: float) -> Hold:
        """This limit's share of a reservation made at `at`."""
        counter, expires = self.counter(at)
        return Hold(counter, self.metric, min(amount, LARGEST), self.cap, expires, not self.rule.strict)


@lru_cache(maxsize=1024)
def pattern(models: str) -> re.Pattern[str]:
    return re.compile(translate(models))


_counted: dict[tuple[int, int], Counted] = {}
_by_owner: dict[tuple[str, int], tuple[tuple[LimitRule, ...], tuple[Counted, ...]]] = {}
MOST = 200_000


def counted_one(rule: LimitRule) -> Counted:
    """The ready limit of a rule, made once for as long as the rule stays the same."""
    found = _counted.get((rule.id, rule.owner_id))
    if found is None or (found.rule is not rule and found.rule != rule):
        if len(_counted) >= MOST:
            _counted.clear()
        found = _counted[rule.id, rule.owner_id] = Counted(rule)
    return found


def counted(owner: tuple[str, int], rules: tuple[LimitRule, ...]) -> tuple[Counted, ...]:
    """The ready limits of a key or an account, in the order in which they refuse. `owner` = ("key", its id)."""
    found = _by_owner.get(owner)
    if found is None or found[0] is not rules:
        if len(_by_owner) >= MOST:
            _by_owner.clear()
        ready = sorted((counted_one(rule) for rule in rules), key=lambda item: ORDER[item.metric])
        found = _by_owner[owner] = (rules, tuple(ready))
    return found[1]
