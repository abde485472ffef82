"""Counters are a cache of the ledger: where they begin, and where they begin again after a store has lost them.

A limit is seeded once for each store, before it admits anything: with the ledger's calls that ended before the `cut`,
the moment of seeding. Calls that end later count when they settle. Records that ended before the cut but reached the
database after it are added by a second look, a few seconds later.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from asgiref.sync import sync_to_async
from django.db import DatabaseError

from apikeys.authentication import KEYS
from apikeys.keyring import KeyRing
from apikeys.ledger_sums import ledger_sums
from apikeys.rules import Counted, counted_one
from relay.call import LimitRule
from relay.state.base import Seed, Store, StoreAway
from relay.state.snapshot import give_connection_back

logger = logging.getLogger(__name__)

SECOND_LOOK = 3.0  # seconds: by then every relay's ledger has shipped what had ended


@dataclass(frozen=True, slots=True)
class Look:
    """What a seed had counted, to be compared with the ledger once more after `due`."""

    limits: tuple[Counted, ...]
    cut: float
    sums: dict[str, int]
    due: float


@dataclass(slots=True)
class Progress:
    """What this process has done for one store."""

    looks: list[Look] = field(default_factory=list)
    ring: KeyRing | None = None  # all of its limits have their seeds


_progress: WeakKeyDictionary[Store, Progress] = WeakKeyDictionary()


async def ensure_seeded(store: Store, ring: KeyRing, *, now: float) -> None:
    """Seed in bulk whatever limit of the keys and teams has no seed yet; call it at start, after the journals of dead
    processes have been recovered. Where that can't be done now, it is logged, and the first call that needs it tries
    again."""
    try:
        await seed(store, rules_of(ring), now=now)
    except StoreAway as error:
        logger.warning("Limits are not seeded yet: %s", error.reason)
    else:
        _progress.setdefault(store, Progress()).ring = ring


async def keep_up(store: Store, ring: KeyRing, *, now: float) -> None:
    """Every few seconds: seed limits that came with a new snapshot, and take the second look at earlier seeds."""
    progress = _progress.setdefault(store, Progress())
    if progress.ring is not ring:
        await ensure_seeded(store, ring, now=now)
    await look_again(store, now=now)


def rules_of(ring: KeyRing) -> list[LimitRule]:
    """Every limit of the ring once."""
    return list({(rule.id, rule.owner_id): rule for key in ring.by_id.values() for rule in key.limits}.values())


async def seed(store: Store, rules: Iterable[LimitRule], *, now: float) -> None:
    """Seed those of the limits that have no seed yet; an unmarked store gets its mark, and all limits of all keys.

    Raises StoreAway, also where the ledger can't be read.
    """
    known = await store.seeded()
    generation = await store.generation()
    asked = rules if generation else [*rules_of(KEYS.current), *rules]
    limits = [limit for limit in map(counted_one, asked) if limit.metric != "concurrency" and limit.limit not in known]
    if not limits and generation:
        return
    try:
        sums = await sync_to_async(read)(limits, at=now, cut=now)
    except DatabaseError as error:
        logger.error("The ledger can't be read, so limits can't be seeded: %s", type(error).__name__)
        raise StoreAway("Limits can't be checked at the moment.", retry_after=5, reason="limits_unseeded") from None
    seeds = [seed_of(limit, sums[limit.limit], at=now) for limit in limits]
    await store.seed(seeds, generation=generation or secrets.token_hex(8))
    if limits:
        progress = _progress.setdefault(store, Progress())
        progress.looks.append(Look(tuple(limits), now, sums, now + SECOND_LOOK))


def seed_of(limit: Counted, value: int, *, at: float) -> Seed:
    name, expires = limit.counter(at)
    return Seed(limit.limit, at, {name: (value, expires)})


def read(limits: Sequence[Counted], *, at: float, cut: float) -> dict[str, int]:
    try:
        return ledger_sums(limits, at=at, cut=cut)
    finally:
        give_connection_back()


async def look_again(store: Store, *, now: float) -> None:
    """Add what had ended before a seed's cut and was shipped after it. Keeps the look for later where it can't."""
    looks = _progress.setdefault(store, Progress()).looks
    for look in [look for look in looks if look.due <= now]:
        try:
            sums = await sync_to_async(read)(look.limits, at=look.cut, cut=look.cut)
        except DatabaseError:
            return
        missed = {
            limit.counter(look.cut)[0]: sums[limit.limit] - look.sums[limit.limit]
            for limit in look.limits
            if sums[limit.limit] != look.sums[limit.limit]
        }
        looks.remove(look)
        if missed:
            await store.adjust(missed, now=now)
