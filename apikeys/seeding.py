"""Counters are a cache of the ledger: where they begin, and where they begin again after a store has lost them.

A limit is seeded once for each store, before it admits anything: with the ledger's calls that ended before the `cut`,
the moment of seeding. Calls that end later count when they settle. Records that ended before the cut but reached the
database after it are added by later looks.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from weakref import WeakKeyDictionary

from asgiref.sync import sync_to_async
from django.db import DatabaseError
from django.db.migrations.recorder import MigrationRecorder

from apikeys.authentication import KEYS
from apikeys.keyring import KeyRing
from apikeys.ledger_sums import Used, ledger_sums
from apikeys.rules import Counted, counted_one
from relay.call import LimitRule
from relay.state.base import Seed, Store, StoreAway
from relay.state.snapshot import give_connection_back

logger = logging.getLogger(__name__)

# Seconds after a seed: by the first every relay's ledger has shipped what had ended, the others are for one that was
# behind.
LOOKS = (3.0, 30.0, 300.0)
SHIPPED_WITHIN = 0.6  # seconds after its end that a record is in the database, while that is there


@dataclass(frozen=True, slots=True)
class Look:
    """What a seed had counted, to be compared with the ledger again `LOOKS[number]` seconds after its cut."""

    limits: tuple[Counted, ...]
    at: float
    cut: float
    sums: dict[str, Used]
    number: int = 0


@dataclass(slots=True)
class Progress:
    """What this process has done for one store."""

    looks: list[Look] = field(default_factory=list)
    ring: KeyRing | None = None  # all of its limits have their seeds
    others: Sequence[LimitRule] = ()  # these too
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # one seeding at a time


_progress: WeakKeyDictionary[Store, Progress] = WeakKeyDictionary()


async def ensure_seeded(store: Store, ring: KeyRing, *, now: float) -> None:
    """Seed in bulk whatever limit of the keys and teams has no seed yet; call it at start, after the journals of dead
    processes have been recovered. Where that can't be done now, it is logged, and the first call that needs it tries
    again."""
    progress = _progress.setdefault(store, Progress())
    try:
        if progress.ring is None:
            await forget_another_database(store)
        await seed(store, rules_of(ring), now=now)
    except StoreAway as error:
        logger.warning("Limits are not seeded yet: %s", error.reason)
    else:
        progress.ring = ring


async def forget_another_database(store: Store) -> None:
    """Empty a store whose counters were made from another database: ids mean other limits there."""
    mark = await store.generation()
    if mark and not mark.startswith(f"{await sync_to_async(identity)()}."):
        logger.warning("The limit counters belong to another database; they are made anew from this one's ledger")
        await store.forget_limits()


def identity() -> str:
    """What tells this database from others: when its first migration ran. A backup of it is the same database.

    Raises StoreAway.
    """
    try:
        first = MigrationRecorder.Migration.objects.order_by("id").values_list("applied", flat=True).first()
    except DatabaseError as error:
        raise away(error) from None
    finally:
        give_connection_back()
    return first.strftime("%Y%m%d%H%M%S%f") if first is not None else ""


async def keep_up(store: Store, ring: KeyRing, *, now: float, others: Sequence[LimitRule] = ()) -> None:
    """Every few seconds: seed limits that came with a new snapshot, or all of them in a store that lost its counters,
    and look again at earlier seeds. `others` are limits that stand on no key or team. Raises StoreAway."""
    progress = _progress.setdefault(store, Progress())
    lost = not await store.generation()
    if lost or progress.ring is not ring:
        await ensure_seeded(store, ring, now=now)
    if lost or progress.others != others:
        await seed(store, others, now=now)
        progress.others = others
    await look_again(store, now=now)


def rules_of(ring: KeyRing) -> list[LimitRule]:
    """Every limit of the ring once."""
    return list({(rule.id, rule.owner_id): rule for key in ring.by_id.values() for rule in key.limits}.values())


async def seed(store: Store, rules: Iterable[LimitRule], *, now: float) -> None:
    """Seed those of the limits that have no seed yet; an unmarked store gets its mark, and all limits of all keys.

    Raises StoreAway, also where the ledger can't be read.
    """
    progress, since = _progress.setdefault(store, Progress()), monotonic()
    async with progress.lock:
        limits, generation, former = await missing(store, rules)
        if not generation and store.shared:
            await others_shipped()
        if not limits and generation:
            return
        cut, sums = await ask_the_ledger(limits, now=now, since=since)
        seeds = [seed_of(limit, sums[limit.limit].amount, former, at=now, cut=cut) for limit in limits]
        mark = generation or f"{await sync_to_async(identity)()}.{secrets.token_hex(8)}"
        await store.seed(seeds, generation=mark)
        if limits:
            progress.looks.append(Look(tuple(limits), now, cut, sums))


async def missing(store: Store, rules: Iterable[LimitRule]) -> tuple[list[Counted], str, Mapping[str, tuple[str, ...]]]:
    """The limits that have no seed yet (without a mark: of all limits of all keys), the store's mark, and what those
    limits were called before they were edited: limits that are edited back must begin anew, too."""
    known = await store.seeded()
    generation = await store.generation()

    def unseeded() -> list[Counted]:
        asked = rules if generation else [*rules_of(KEYS.current), *rules]
        limits = {limit.limit: limit for limit in map(counted_one, asked) if limit.metric != "concurrency"}
        return [limit for name, limit in limits.items() if name not in known]

    # In a thread: with ten thousand keys it takes so long that calls would notice.
    limits = await asyncio.to_thread(unseeded)
    wanted = {row_of(limit.limit) for limit in limits}
    former: dict[str, tuple[str, ...]] = {}
    for name in known:
        if (row := row_of(name)) in wanted:
            former[row] = (*former.get(row, ()), name)
    return limits, generation, former


def row_of(limit: str) -> str:
    """The limit's row and owner, without the sum of what it counts."""
    return limit.partition(".")[0]


async def others_shipped() -> None:
    """A shared store that lost its mark: give every relay's ledger the time to ship what has ended."""
    await asyncio.sleep(SHIPPED_WITHIN)


async def ask_the_ledger(limits: Sequence[Counted], *, now: float, since: float) -> tuple[float, dict[str, Used]]:
    """Return the cut and what had been used. Raises StoreAway.

    A call that settles while the ledger is read finds no seed to count in. The cut is the moment after the answer, so
    that a later look finds its record.
    """
    try:
        sums = await sync_to_async(read)(limits, at=now, cut=now + monotonic() - since)
    except DatabaseError as error:
        raise away(error) from None
    return now + monotonic() - since, sums


def away(error: DatabaseError) -> StoreAway:
    logger.error("The ledger can't be read, so limits can't be seeded: %s", type(error).__name__)
    return StoreAway("Limits can't be checked at the moment.", retry_after=5, reason="limits_unseeded")


def seed_of(limit: Counted, value: int, former: Mapping[str, tuple[str, ...]], *, at: float, cut: float) -> Seed:
    name, expires = limit.counter(at)
    return Seed(limit.limit, cut, {name: (value, expires)}, former.get(row_of(limit.limit), ()))


def read(limits: Sequence[Counted], *, at: float, cut: float) -> dict[str, Used]:
    try:
        return ledger_sums(limits, at=at, cut=cut)
    finally:
        give_connection_back()


async def look_again(store: Store, *, now: float) -> None:
    """Add what had ended before a seed's cut and was shipped after it. Keeps the look for later where it can't.

    Only where there are more calls than before: a record that was corrected meanwhile is no late one. Calls of dead
    processes settle by themselves.
    """
    looks = _progress.setdefault(store, Progress()).looks
    for look in [look for look in looks if look.cut + LOOKS[look.number] <= now]:
        try:
            sums = await sync_to_async(read)(look.limits, at=look.at, cut=look.cut)
        except DatabaseError:
            return
        seeded = await store.seeded()
        missed = {
            limit.counter(look.at)[0]: sums[limit.limit].ended - look.sums[limit.limit].ended
            for limit in look.limits
            # Another process may have been first, and a store that lost its counters was seeded anew.
            if seeded.get(limit.limit) == look.cut and sums[limit.limit].calls != look.sums[limit.limit].calls
        }
        looks.remove(look)
        if look.number + 1 < len(LOOKS):
            looks.append(Look(look.limits, look.at, look.cut, sums, look.number + 1))
        if missed:
            await store.adjust(missed, now=now)
