"""Whether the counters of limits say what the ledger says: the proof, and the repair of what does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from apikeys.ledger_sums import ledger_sums
from apikeys.rules import Counted, counted_one
from relay.call import LimitRule
from relay.state.base import Store

FOREVER = 86_400.0  # seconds after now by which every call that the ledger holds has ended


@dataclass(frozen=True, slots=True)
class Stand:
    """What a store says at one moment: counters, what open reservations hold of them, and the limits with a seed."""

    used: Mapping[str, int]
    reserved: Mapping[str, int]
    seeded: frozenset[str]


@dataclass(frozen=True, slots=True)
class Difference:
    """A counter that is not what the ledger says; without what calls in flight have reserved of it."""

    limit_id: int
    scope: str
    owner_id: int
    metric: str
    per: str
    counter: str
    counted: int
    ledger: int


def checked(rules: Iterable[LimitRule]) -> list[Counted]:
    """The limits that the ledger can prove. Not calls at a time; and not an account's requests: they count every
    attempt, the ledger knows calls."""
    provable = (
        rule for rule in rules if rule.metric != "concurrency" and (rule.scope, rule.metric) != ("account", "requests")
    )
    return list({limit.limit: limit for limit in map(counted_one, provable)}.values())


def read_ledger(limits: Sequence[Counted], *, now: float) -> dict[str, int]:
    """What the ledger says of the current periods, by `Counted.limit`."""
    return {name: used.amount for name, used in ledger_sums(limits, at=now, cut=now + FOREVER).items()}


def differences(
    limits: Sequence[Counted], ledger: Mapping[str, int], *, before: Stand, after: Stand, now: float
) -> list[Difference]:
    """Return the counters that differ from the ledger, which was read between two looks at the store.

    What settled in between may be in the ledger or not. Limits without a seed have no counter yet.
    """
    found = []
    for limit in limits:
        name, known = limit.counter(now)[0], ledger[limit.limit]
        least, most = sorted(stand.used.get(name, 0) - stand.reserved.get(name, 0) for stand in (before, after))
        if limit.limit in before.seeded and not least <= known <= most:
            rule, counted = limit.rule, most
            found.append(Difference(rule.id, rule.scope, rule.owner_id, rule.metric, rule.per, name, counted, known))
    return found


async def stand_of(store: Store, names: Sequence[str], *, now: float) -> Stand:
    """Ask a store; counters of calls at a time (they have no period) are all reserved."""
    used, reserved = await store.stand([name for name in names if ":" in name], now=now)
    in_flight = await store.used([name for name in names if ":" not in name], now=now)
    limits = {name.partition(":")[0] for name in names}
    return Stand({**used, **in_flight}, {**reserved, **in_flight}, frozenset(limits & (await store.seeded()).keys()))


async def repair(store: Store, amounts: Mapping[str, int], *, now: float) -> None:
    """Add signed amounts to counters: what the ledger says more, or less."""
    await store.adjust(amounts, now=now)
