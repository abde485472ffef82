"""The store of several relay processes: Redis, one script and one round trip for each atomic step.

Needs one Redis (no cluster: scripts reach keys that a reservation names) with `maxmemory-policy noeviction`.
Keys: baton:c:<counter> amounts, baton:l:<name> leases, baton:o:<owner> open reservations, whose owners are in
baton:open, baton:t:<owner> marks of late settlements, baton:seeded, baton:generation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from relay.state import scripts
from relay.state.base import Hold, Refused, Seed, StoreAway, Unseeded
from relay.state.redis_link import PREFIX, RedisLink
from relay.state.redis_rests import RESTS_FOR, RedisRests, pairs

logger = logging.getLogger(__name__)

CONCURRENCY = "concurrency"
GENERATION, SEEDED, OPEN = f"{PREFIX}generation", f"{PREFIX}seeded", f"{PREFIX}open"
OPEN_FOR = 40 * 86_400  # seconds: longer than any period but "total"; recovery settles within minutes
LATE_FOR = 3 * 86_400
FORGOTTEN = "-"  # the life of a counter that has ended


@dataclass(frozen=True, slots=True)
class Settlement:
    """A settle that could not reach Redis yet."""

    owner: str
    holds: tuple[Hold, ...]
    actual: Mapping[str, int]
    now: float
    began: float | None


class RedisStore(RedisRests):
    """Implements `relay.state.base.Store`. `fail_open`: while Redis is away, calls are admitted and counted later."""

    shared = True

    def __init__(self, url: str, *, fail_open: bool = False, rests_for: float = RESTS_FOR) -> None:
        super().__init__(RedisLink(url), rests_for=rests_for)
        self._fail_open = fail_open
        self._generation = ""
        self._restored = ""  # the generation that has our calls in flight
        self._seeded: dict[str, float] = {}
        self._clock = (0.0, 0.0)  # the last `now` and lease that a caller gave
        # This process's open reservations, and the keys of the slots that its calls hold.
        self._live: dict[str, tuple[Hold, ...]] = {}
        self._slots_of: dict[str, set[str]] = {}
        self._unsettled: list[Settlement] = []
        self._unchecked: set[str] = set()  # owners that were admitted while Redis was away

    # -- limits --------------------------------------------------------------------------------------

    async def reserve(
        self, owner: str, holds: Sequence[Hold], *, now: float, lease: float
    ) -> Refused | tuple[int, ...]:
        holds = tuple(holds)
        try:
            answer = await self._reserve(owner, holds, now=now, lease=lease)
        except StoreAway:
            if self._fail_open:
                self._unchecked.add(owner)
                return ()
            self._give_back(owner, holds, now=now)
            raise
        except Unseeded:
            raise
        except BaseException:
            self._give_back(owner, holds, now=now)
            raise
        if isinstance(answer, tuple):
            self._live[owner] = holds
        return answer

    async def _reserve(
        self, owner: str, holds: tuple[Hold, ...], *, now: float, lease: float
    ) -> Refused | tuple[int, ...]:
        self._clock = now, lease
        await self._need_seeds(holds)
        keys = [GENERATION, f"{PREFIX}o:{owner}", OPEN, *(key_of(hold) for hold in holds)]
        while True:
            args: list[str | int | float] = [self._generation, now, now + lease, owner, OPEN_FOR]
            for hold in holds:
                life = life_of(hold, now).replace(FORGOTTEN, "1")
                args += [kind_of(hold), str(hold.amount), str(hold.need), str(hold.cap), life]
            code, *rest = await self._link.script(scripts.RESERVE, keys, *args)
            if int(code) == 0:
                return tuple(int(value) for value in rest)
            if int(code) == 1:
                return Refused(holds[int(rest[0])], int(rest[1]))
            await self._load_marks()
            await self._need_seeds(holds)

    async def _need_seeds(self, holds: Sequence[Hold]) -> None:
        """Raise Unseeded for limits that no process has seeded yet."""
        needed = {hold.limit for hold in holds if hold.metric != CONCURRENCY}
        if needed <= self._seeded.keys() and self._generation:
            return
        await self._load_marks()
        unseeded = needed - self._seeded.keys()
        if unseeded or not self._generation:
            raise Unseeded(sorted(unseeded))

    async def _load_marks(self) -> None:
        generation, seeded = await self._link.pipeline([("GET", GENERATION), ("HGETALL", SEEDED)])
        self._generation = generation or ""
        self._seeded = {limit: float(cut) for limit, cut in pairs(seeded).items()} if self._generation else {}
        if self._generation and self._generation != self._restored:
            await self._restore()

    async def _restore(self) -> None:
        """Put our calls in flight back into a store that has lost its counters since."""
        self._restored = self._generation
        now, lease = self._clock
        for owner, holds in list(self._live.items()):
            args: list[str | int | float] = [self._generation, owner, now + lease, OPEN_FOR]
            for hold in holds:
                args += [key_of(hold), kind_of(hold), hold.limit, str(hold.amount), life_of(hold, now)]
            await self._link.script(scripts.RESTORE, [GENERATION, SEEDED, f"{PREFIX}o:{owner}", OPEN], *args)

    def _give_back(self, owner: str, holds: tuple[Hold, ...], *, now: float) -> None:
        """Nobody knows whether Redis took it: a settle with nothing used makes both cases the same."""
        self._unsettled.append(Settlement(owner, holds, {}, now, None))

    async def settle(
        self, owner: str, holds: Sequence[Hold], actual: Mapping[str, int], *, now: float, began: float | None = None
    ) -> None:
        self._live.pop(owner, None)
        if owner in self._unchecked:
            self._unchecked.discard(owner)
            began = 0.0  # no seed has it, and perhaps no reservation
        settlement = Settlement(owner, tuple(holds), dict(actual), now, began)
        try:
            await self._settle(settlement)
        except BaseException as error:
            self._unsettled.append(settlement)
            if not isinstance(error, StoreAway):
                raise

    async def _settle(self, settlement: Settlement) -> None:
        keys = [f"{PREFIX}o:{settlement.owner}", f"{PREFIX}t:{settlement.owner}", SEEDED, OPEN]
        began = "" if settlement.began is None else settlement.began
        args: list[str | int | float] = [settlement.owner, settlement.now, began, LATE_FOR]
        for hold in settlement.holds:
            used = str(settlement.actual.get(hold.counter, 0))
            args += [key_of(hold), kind_of(hold), hold.limit, used, life_of(hold, settlement.now)]
        for name in settlement.actual.keys() - {hold.counter for hold in settlement.holds}:
            # Counts where the reservation holds it, never as a late one.
            args += [f"{PREFIX}c:{name}", "", "", str(settlement.actual[name]), FORGOTTEN]
        await self._link.script(scripts.SETTLE, keys, *args)

    async def _settle_the_rest(self) -> None:
        """Settle what waited for Redis; what fails again waits on."""
        for settlement in list(self._unsettled):
            await self._settle(settlement)
            self._unsettled.remove(settlement)

    async def renew(self, owners: Sequence[str], *, now: float, lease: float) -> None:
        self._clock = now, lease
        await self._settle_the_rest()
        await self._load_marks()
        names: list[tuple[str, str]] = []
        for owner in owners:
            held = [key_of(hold) for hold in self._live.get(owner, ()) if hold.metric == CONCURRENCY]
            names += [(name, owner) for name in (*held, *self._slots_of.get(owner, ()))]
        await self._link.pipeline([("ZADD", name, now + lease, owner) for name, owner in names])

    async def used(self, counters: Sequence[str], *, now: float) -> Mapping[str, int]:
        values = await self._link.pipeline(
            [
                ("GET", f"{PREFIX}c:{name}") if ":" in name else ("ZCOUNT", f"{PREFIX}l:{name}", f"({now!r}", "+inf")
                for name in counters
            ]
        )
        return {name: int(value or 0) for name, value in zip(counters, values, strict=True)}

    async def stand(self, counters: Sequence[str], *, now: float) -> tuple[Mapping[str, int], Mapping[str, int]]:
        keys = [OPEN, *(f"{PREFIX}c:{name}" for name in counters)]
        used, reserved = await self._link.script(scripts.STAND, keys)
        return (
            {name: int(value) for name, value in zip(counters, used, strict=True)},
            {name: int(value) for name, value in zip(counters, reserved, strict=True)},
        )

    async def seed(self, seeds: Sequence[Seed], *, generation: str) -> None:
        args: list[str | int | float] = [generation]
        for seed in seeds:
            for name, (value, expires) in (seed.counters or {"": (0, 0.0)}).items():
                life = str(max(1, math.ceil(expires - seed.cut))) if expires else "0"
                args += [seed.limit, repr(seed.cut), f"{PREFIX}c:{name}" if name else "", str(value), life]
        await self._link.script(scripts.SEED, [GENERATION, SEEDED], *args)
        former = [name for seed in seeds for name in seed.instead_of]
        if former:
            await self._link.command("HDEL", SEEDED, *former)
        await self._load_marks()
        await self._restore()  # holds of limits that had no seed until now

    async def adjust(self, counters: Mapping[str, int], *, now: float, once: str = "") -> None:
        keys = [f"{PREFIX}t:{once}" if once else "", *(f"{PREFIX}c:{name}" for name in counters)]
        await self._link.script(scripts.ADJUST, keys, LATE_FOR, *(str(amount) for amount in counters.values()))

    async def forget_limits(self) -> None:
        await self._link.command("DEL", GENERATION, SEEDED, OPEN)
        for kind in ("c", "o", "t"):
            cursor = "0"
            while True:
                found, keys = await self._link.command("SCAN", cursor, "MATCH", f"{PREFIX}{kind}:*", "COUNT", 1000)
                cursor = str(found)
                if keys:
                    await self._link.command("UNLINK", *keys)
                if cursor == "0":
                    break
        await self._load_marks()

    async def seeded(self) -> Mapping[str, float]:
        await self._load_marks()
        return dict(self._seeded)

    async def generation(self) -> str:
        await self._load_marks()
        return self._generation

    # -- slots of accounts ---------------------------------------------------------------------------

    async def take_slot(self, account_id: int, owner: str, *, slots: int, now: float, lease: float) -> bool:
        name = f"{PREFIX}l:slots:{account_id}"
        try:
            taken = await self._link.script(scripts.TAKE_SLOT, [name], owner, now, now + lease, slots, OPEN_FOR)
        except StoreAway:
            if slots and not self._fail_open:
                raise
            return True
        if taken:
            self._slots_of.setdefault(owner, set()).add(name)
        return bool(taken)

    async def free_slot(self, account_id: int, owner: str) -> None:
        name = f"{PREFIX}l:slots:{account_id}"
        held = self._slots_of.get(owner, set())
        held.discard(name)
        if not held:
            self._slots_of.pop(owner, None)
        try:
            await self._link.command("ZREM", name, owner)
        except StoreAway:
            return  # its lease ends

    async def in_flight(self, account_ids: Sequence[int], *, now: float) -> Mapping[int, int]:
        try:
            counts = await self._link.pipeline(
                [("ZCOUNT", f"{PREFIX}l:slots:{account_id}", f"({now!r}", "+inf") for account_id in account_ids]
            )
        except StoreAway:
            return dict.fromkeys(account_ids, 0)
        return {account_id: int(count) for account_id, count in zip(account_ids, counts, strict=True)}

    async def close(self) -> None:
        """Settle what waits, if Redis is there, and close the connections."""
        try:
            await self._settle_the_rest()
        except StoreAway:
            logger.error("%d calls could not be settled in Redis; check_counters will show it", len(self._unsettled))
        await self._link.close()


def key_of(hold: Hold) -> str:
    return f"{PREFIX}l:{hold.counter}" if hold.metric == CONCURRENCY else f"{PREFIX}c:{hold.counter}"


def kind_of(hold: Hold) -> str:
    return "c" if hold.metric == CONCURRENCY else "n"


def life_of(hold: Hold, now: float) -> str:
    """Seconds that the counter lives from now; "0" = for ever."""
    if not hold.expires:
        return "0"
    return str(math.ceil(hold.expires - now)) if hold.expires > now else FORGOTTEN
