"""The store of several relay processes: Redis, one script and one round trip for each atomic step.

Needs one Redis (no cluster: scripts reach keys that a reservation names) with `maxmemory-policy noeviction`.
Keys: baton:c:<counter> amounts, baton:l:<name> leases, baton:o:<owner> open reservations, whose owners are in
baton:open, baton:t:<owner> marks of late settlements, baton:seeded, baton:generation.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from relay.state import scripts
from relay.state.base import Admitted, Hold, Question, Refused, Seed, Settlement, StoreAway, Unseeded
from relay.state.redis_link import PREFIX, RedisLink
from relay.state.redis_rests import RESTS, RESTS_FOR, RedisRests, conversation_key, milliseconds, pairs

logger = logging.getLogger(__name__)

CONCURRENCY = "concurrency"
GENERATION, SEEDED, OPEN = f"{PREFIX}generation", f"{PREFIX}seeded", f"{PREFIX}open"
OPEN_FOR = 40 * 86_400  # seconds: longer than any period but "total"; recovery settles within minutes
LATE_FOR = 3 * 86_400
RESTORED = 2  # what RESTORE answers where there was no such reservation
FORGOTTEN = "-"  # the life of a counter that has ended
NO_QUESTION = Question()


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

    async def admit(
        self, owner: str, holds: Sequence[Hold], question: Question, *, now: float, lease: float
    ) -> Refused | Admitted:
        holds = tuple(holds)
        try:
            answer = await self._admit(owner, holds, question, now=now, lease=lease)
        except StoreAway:
            if holds and not self._fail_open:
                self._give_back(owner, holds, question, now=now)
                raise
            if holds:
                self._unchecked.add(owner)
            return self._own_answer(question, now=now)
        except Unseeded:
            raise
        except BaseException:
            self._give_back(owner, holds, question, now=now)
            raise
        if isinstance(answer, Admitted) and holds:
            self._live[owner] = holds
        return answer

    async def reserve(
        self, owner: str, holds: Sequence[Hold], *, now: float, lease: float
    ) -> Refused | tuple[int, ...]:
        answer = await self.admit(owner, holds, NO_QUESTION, now=now, lease=lease)
        return answer.standing if isinstance(answer, Admitted) else answer

    async def _admit(
        self, owner: str, holds: tuple[Hold, ...], question: Question, *, now: float, lease: float
    ) -> Refused | Admitted:
        self._clock = now, lease
        if holds:
            await self._need_seeds(holds)
        keys = [GENERATION, f"{PREFIX}o:{owner}", OPEN, RESTS, *map(key_of, holds)]
        asked: list[str | int | float] = []
        changes = -1  # -1: the rests are not asked for
        if question is not NO_QUESTION:
            keys += keys_of(question)
            changes = self._changes if self._rests_wanted() else -1
            asked = asked_of(question, now=now, rests=changes >= 0)
        while True:
            args: list[str | int | float] = [self._generation, now, now + lease, owner, OPEN_FOR, len(holds)]
            for hold in holds:
                life = life_of(hold, now).replace(FORGOTTEN, "1")
                args += (kind_of(hold), hold.amount, hold.need, hold.cap, life)
            code, *answer = await self._link.script(scripts.ADMIT, keys, *args, *asked)
            if code == 0:
                return await self._admitted(owner, question, answer, now=now, asked=changes)
            if code == 1:
                return Refused(holds[answer[0]], int(answer[1]))
            await self._load_marks()
            await self._need_seeds(holds)

    async def _admitted(self, owner: str, question: Question, answer: list[Any], *, now: float, asked: int) -> Admitted:
        standing = tuple(map(int, answer[0]))
        if question is NO_QUESTION:
            return Admitted(standing)
        _, pinned, taken, in_flight, used, rests = answer
        if taken:
            self._slots_of.setdefault(owner, set()).add(slots_key(taken))
        return Admitted(
            standing,
            await self._take_over(pairs(rests), now=now, asked=asked) if asked >= 0 else self._copy,
            {seat.account_id: count for seat, count in zip(question.seats, in_flight, strict=True)},
            {name: int(value) for name, value in zip(question.counters, used, strict=True)},
            pinned or None,
            await self.response_owner(question.response_id, now=now) if question.response_id else None,
            taken,
        )

    def _own_answer(self, question: Question, *, now: float) -> Admitted:
        """What this process knows by itself."""
        return Admitted(
            rests=self._known_rests(now),
            in_flight={seat.account_id: 0 for seat in question.seats},
            pinned=self._pinned(question, now=now) if question.conversation else None,
            response_owner=self._owner_of(question.response_id, now=now) if question.response_id else None,
        )

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
        for owner in list(self._live):
            if (holds := self._live.get(owner)) is None:  # it has ended
                continue
            args: list[str | int | float] = [self._generation, owner, now + lease, OPEN_FOR]
            for hold in holds:
                args += [key_of(hold), kind_of(hold), hold.limit, str(hold.amount), life_of(hold, now)]
            keys = [GENERATION, SEEDED, f"{PREFIX}o:{owner}", OPEN]
            made = await self._link.script(scripts.RESTORE, keys, *args) == RESTORED
            if made and owner not in self._live:  # its own settlement may have come first, and counted it as a late one
                await self.settle(Settlement(owner, holds, {}, now))

    def _give_back(self, owner: str, holds: tuple[Hold, ...], question: Question, *, now: float) -> None:
        """Nobody knows whether Redis took it: a settle with nothing used makes both cases the same."""
        seats = tuple(seat.account_id for seat in question.seats) if question.lease else ()
        self._unsettled.append(Settlement(owner, holds, {}, now, None, seats))

    async def settle(self, *settlements: Settlement) -> None:
        for settlement in settlements:
            self._live.pop(settlement.owner, None)
            for account_id in settlement.seats:
                self._forget_slot(account_id, settlement.owner)
        if self._unchecked:
            settlements = tuple(map(self._checked, settlements))
        try:
            await self._settle(*settlements)
        except BaseException as error:
            self._unsettled += settlements
            if not isinstance(error, StoreAway):
                raise

    def _checked(self, settlement: Settlement) -> Settlement:
        """No seed has a call that was admitted unchecked, and perhaps no reservation."""
        if settlement.owner not in self._unchecked:
            return settlement
        self._unchecked.discard(settlement.owner)
        return settlement._replace(began=0.0)

    async def _settle(self, *settlements: Settlement) -> None:
        await self._link.scripts(scripts.SETTLE, [settle_run(settlement) for settlement in settlements])

    async def _settle_the_rest(self) -> None:
        """Settle what waited for Redis; what fails again waits on."""
        for settlement in list(self._unsettled):
            await self._settle(settlement)
            self._unsettled.remove(settlement)

    async def renew(self, owners: Sequence[str], *, now: float, lease: float) -> None:
        self._clock = now, lease
        await self._settle_the_rest()
        await self._load_marks()
        renewed = {owner: self._leases_of(owner) for owner in owners}
        await self._link.pipeline(
            [("ZADD", name, now + lease, owner) for owner, names in renewed.items() for name in names]
        )
        # A call that ended meanwhile may have given back first what was prolonged then.
        gone = [(name, owner) for owner, names in renewed.items() for name in names - self._leases_of(owner)]
        await self._link.pipeline([("ZREM", name, owner) for name, owner in gone])

    def _leases_of(self, owner: str) -> set[str]:
        """The keys in which a call of this process has a lease."""
        held = {key_of(hold) for hold in self._live.get(owner, ()) if hold.metric == CONCURRENCY}
        return held | self._slots_of.get(owner, set())

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
        await self._link.script(scripts.SEED, [GENERATION, SEEDED, OPEN], *args)
        former = [name for seed in seeds for name in seed.instead_of]
        if former:
            await self._link.command("HDEL", SEEDED, *former)
        await self._load_marks()
        await self._restore()  # holds of limits that had no seed until now

    async def adjust(self, counters: Mapping[str, int], *, now: float, once: str = "") -> None:
        # A mark of its own at least: the link sends again what may have been carried out.
        keys = [f"{PREFIX}t:{once or uuid.uuid4().hex}", *(f"{PREFIX}c:{name}" for name in counters)]
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

    async def take_slot(
        self, account_id: int, owner: str, *, slots: int, now: float, lease: float, pin: Question | None = None
    ) -> bool:
        keys, args = [slots_key(account_id), ""], (owner, now, now + lease, slots, OPEN_FOR, "", "")
        if pin is not None and pin.conversation:
            keys[1] = conversation_key(pin.key_id, pin.conversation)
            args = (*args[:5], f"{account_id} {now + pin.kept!r}", str(milliseconds(pin.kept)))
        try:
            taken = await self._link.script(scripts.TAKE_SLOT, keys, *args)
        except StoreAway:
            if slots and not self._fail_open:
                raise
            if keys[1] and pin is not None:
                self._pin(pin.key_id, pin.conversation, account_id, until=now + pin.kept)
            return True
        if taken:
            self._slots_of.setdefault(owner, set()).add(keys[0])
        return bool(taken)

    async def free_slot(self, account_id: int, owner: str) -> None:
        self._forget_slot(account_id, owner)
        try:
            await self._link.command("ZREM", slots_key(account_id), owner)
        except StoreAway:
            return  # its lease ends

    def _forget_slot(self, account_id: int, owner: str) -> None:
        held = self._slots_of.get(owner, set())
        held.discard(slots_key(account_id))
        if not held:
            self._slots_of.pop(owner, None)

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


def slots_key(account_id: int) -> str:
    return f"{PREFIX}l:slots:{account_id}"


def keys_of(question: Question) -> list[str]:
    """The keys that ADMIT reads for a question."""
    conversation = conversation_key(question.key_id, question.conversation) if question.conversation else ""
    seats = [slots_key(seat.account_id) for seat in question.seats]
    return [conversation, *seats, *(f"{PREFIX}c:{name}" for name in question.counters)]


def asked_of(question: Question, *, now: float, rests: bool) -> list[str | int | float]:
    """The arguments of ADMIT for a question."""
    asked: list[str | int | float] = [
        len(question.seats),
        len(question.counters),
        now + question.kept,
        milliseconds(question.kept),
        now + question.lease if question.lease else 0,
        question.first + 1,
        int(rests),
    ]
    for seat in question.seats:
        asked += (seat.account_id, seat.model, seat.slots if seat.front else -1)
    return asked


def settle_run(settlement: Settlement) -> tuple[list[str], list[str | int | float]]:
    """Keys and arguments of SETTLE."""
    owner, now = settlement.owner, settlement.now
    keys = [f"{PREFIX}o:{owner}", f"{PREFIX}t:{owner}", SEEDED, OPEN, *map(slots_key, settlement.seats)]
    args: list[str | int | float] = [owner, now, "" if settlement.began is None else settlement.began, LATE_FOR]
    counted = set()
    for hold in settlement.holds:
        counted.add(hold.counter)
        used = settlement.actual.get(hold.counter, 0)
        args += (key_of(hold), kind_of(hold), hold.limit, used, life_of(hold, now))
    for name in settlement.actual.keys() - counted:
        # Counts where the reservation holds it, never as a late one.
        args += (f"{PREFIX}c:{name}", "", "", settlement.actual[name], FORGOTTEN)
    return keys, args
