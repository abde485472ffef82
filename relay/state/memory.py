"""The store of a single relay process: everything in dictionaries, each method one critical section.

A lock, because a snapshot's thread or a test may call in from another event loop; nothing waits while holding it.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable, Mapping, Sequence

from relay.state.base import NOTHING, Admitted, Hold, Question, Refused, Seat, Seed, Settlement, Unseeded
from relay.state.memory_rests import MemoryRests

CONCURRENCY = "concurrency"
LATE_KEPT = 3 * 86_400.0  # seconds for which a settlement without a reservation can't happen twice


class MemoryStore(MemoryRests):
    """Implements `relay.state.base.Store`."""

    shared = False

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._counters: dict[str, int] = {}
        self._expiries: list[tuple[float, str]] = []
        self._open: dict[str, tuple[Hold, ...]] = {}
        self._late: dict[str, float] = {}
        self._leases: dict[str, dict[str, float]] = {}
        self._slots_of: dict[str, list[str]] = {}
        self._seeded: dict[str, float] = {}
        self._generation = ""

    # -- limits --------------------------------------------------------------------------------------

    async def admit(
        self, owner: str, holds: Sequence[Hold], question: Question, *, now: float, lease: float
    ) -> Refused | Admitted:
        with self._lock:
            standing = self._reserve(owner, holds, now=now, lease=lease) if holds else ()
            if isinstance(standing, Refused):
                return standing
            return self._answer(owner, question, standing, now=now)

    async def reserve(
        self, owner: str, holds: Sequence[Hold], *, now: float, lease: float
    ) -> Refused | tuple[int, ...]:
        with self._lock:
            return self._reserve(owner, holds, now=now, lease=lease)

    def _reserve(self, owner: str, holds: Sequence[Hold], *, now: float, lease: float) -> Refused | tuple[int, ...]:
        self._forget(now)
        unseeded = [hold.limit for hold in holds if hold.metric != CONCURRENCY and hold.limit not in self._seeded]
        if unseeded:
            raise Unseeded(unseeded)
        standing = [self._standing(hold, now) for hold in holds]
        if owner in self._open:
            return tuple(standing)
        both = list(zip(holds, standing, strict=True))
        for hold, used in both:
            if used + hold.need > hold.cap:
                return Refused(hold, used)
        for hold, used in both:
            if hold.metric == CONCURRENCY:
                self._leases.setdefault(hold.counter, {})[owner] = now + lease
            else:
                self._set(hold.counter, used + hold.amount, hold.expires)
        self._open[owner] = tuple(holds)
        return tuple([used + hold.amount for hold, used in both])

    def _answer(self, owner: str, question: Question, standing: tuple[int, ...], *, now: float) -> Admitted:
        seats = question.seats
        in_flight = {seat.account_id: len(self._live(f"slots:{seat.account_id}", now)) for seat in seats}
        pinned = self._pinned(question, now=now) if question.conversation else None
        seat = at_once(question, pinned) if question.lease else None
        taken = 0
        if (
            seat is not None
            and (not self._rests or not self._rests.keys() & {(seat.account_id, ""), (seat.account_id, seat.model)})
            and self._take_slot(seat.account_id, owner, slots=seat.slots, until=now + question.lease, now=now)
        ):
            taken = seat.account_id
            if question.conversation and taken != pinned:
                self._pin(question.key_id, question.conversation, taken, until=now + question.kept)
        return Admitted(
            standing,
            self._known_rests(now),
            in_flight,
            {name: self._counters.get(name, 0) for name in question.counters} if question.counters else NOTHING,
            pinned,
            self._owner_of(question.response_id, now=now) if question.response_id else None,
            taken,
        )

    async def settle(self, *settlements: Settlement) -> None:
        with self._lock:
            for settlement in settlements:
                self._settle(settlement)

    def _settle(self, settlement: Settlement) -> None:
        owner, actual, now = settlement.owner, settlement.actual, settlement.now
        for account_id in settlement.seats:
            self._free_slot(account_id, owner)
        opened = self._open.pop(owner, ())
        for hold in opened:
            if hold.metric == CONCURRENCY:
                self._leases.get(hold.counter, {}).pop(owner, None)
            else:
                self._change(hold, actual.get(hold.counter, 0) - hold.amount, now=now)
        if settlement.holds is not opened and settlement.began is not None and owner not in self._late:
            self._settle_late(settlement, opened, began=settlement.began)

    def _settle_late(self, settlement: Settlement, opened: Sequence[Hold], *, began: float) -> None:
        """Count what neither a reservation nor a seed has (see the protocol)."""
        known, now = {hold.counter for hold in opened}, settlement.now
        for hold in settlement.holds:
            cut = self._seeded.get(hold.limit)
            if cut is None or cut > now or (began >= cut and not opened):
                continue
            if began < cut:
                self._late[settlement.owner] = now
            if hold.counter not in known:
                self._change(hold, settlement.actual.get(hold.counter, 0), now=now)

    async def renew(self, owners: Sequence[str], *, now: float, lease: float) -> None:
        with self._lock:
            self._forget(now)
            for owner in owners:
                names = [hold.counter for hold in self._open.get(owner, ()) if hold.metric == CONCURRENCY]
                for name in (*names, *self._slots_of.get(owner, ())):
                    self._leases.setdefault(name, {})[owner] = now + lease
            for name in list(self._leases):
                if not self._live(name, now):
                    del self._leases[name]

    async def used(self, counters: Sequence[str], *, now: float) -> Mapping[str, int]:
        with self._lock:
            self._forget(now)
            return {name: self._counters.get(name, 0) or len(self._live(name, now)) for name in counters}

    async def stand(self, counters: Sequence[str], *, now: float) -> tuple[Mapping[str, int], Mapping[str, int]]:
        with self._lock:
            self._forget(now)
            return {name: self._counters.get(name, 0) for name in counters}, self._reserved(counters)

    def _reserved(self, counters: Iterable[str]) -> dict[str, int]:
        """What open reservations hold of each counter."""
        reserved = dict.fromkeys(counters, 0)
        for holds in self._open.values():
            for hold in holds:
                if hold.counter in reserved:
                    reserved[hold.counter] += hold.amount
        return reserved

    async def seed(self, seeds: Sequence[Seed], *, generation: str) -> None:
        with self._lock:
            if self._generation not in {"", generation}:
                return
            self._generation = generation
            reserved = self._reserved(name for seed in seeds for name in seed.counters)
            for seed in seeds:
                for former in seed.instead_of:
                    self._seeded.pop(former, None)
                if seed.limit not in self._seeded:
                    self._seeded[seed.limit] = seed.cut
                    for name, (value, expires) in seed.counters.items():
                        self._set(name, value + reserved[name], expires)

    async def adjust(self, counters: Mapping[str, int], *, now: float, once: str = "") -> None:
        with self._lock:
            self._forget(now)
            if once and once in self._late:
                return
            if once:
                self._late[once] = now
            for name, amount in counters.items():
                if name in self._counters:
                    self._counters[name] = max(0, self._counters[name] + amount)

    async def forget_limits(self) -> None:
        with self._lock:
            for table in (self._counters, self._open, self._late, self._seeded):
                table.clear()
            self._expiries.clear()
            self._generation = ""

    async def seeded(self) -> Mapping[str, float]:
        with self._lock:
            return dict(self._seeded)

    async def generation(self) -> str:
        return self._generation

    def _standing(self, hold: Hold, now: float) -> int:
        if hold.metric != CONCURRENCY:
            return self._counters.get(hold.counter, 0)
        leases = self._leases.get(hold.counter)
        if not leases:
            return 0
        # Lapsed leases are looked for only where they matter.
        return len(leases) if len(leases) < hold.cap else len(self._live(hold.counter, now))

    def _live(self, name: str, now: float) -> dict[str, float]:
        """The leases that have not lapsed; forgets the others."""
        leases = self._leases.get(name)
        if not leases:
            return {}
        for owner in [owner for owner, until in leases.items() if until <= now]:
            del leases[owner]
        return leases

    def _change(self, hold: Hold, amount: int, *, now: float) -> None:
        """Add to a counter, unless its period is so long over that it is forgotten."""
        if amount and not 0 < hold.expires <= now:
            self._set(hold.counter, max(0, self._counters.get(hold.counter, 0) + amount), hold.expires)

    def _set(self, name: str, value: int, expires: float) -> None:
        if expires and name not in self._counters:
            heapq.heappush(self._expiries, (expires, name))
        self._counters[name] = value

    def _forget(self, now: float) -> None:
        """Drop the counters whose time is over."""
        while self._expiries and self._expiries[0][0] <= now:
            self._counters.pop(heapq.heappop(self._expiries)[1], None)
            if self._late:
                self._late = {owner: at for owner, at in self._late.items() if at > now - LATE_KEPT}

    # -- slots of accounts ---------------------------------------------------------------------------

    async def take_slot(
        self, account_id: int, owner: str, *, slots: int, now: float, lease: float, pin: Question | None = None
    ) -> bool:
        with self._lock:
            taken = self._take_slot(account_id, owner, slots=slots, until=now + lease, now=now)
        if taken and pin is not None and pin.conversation:
            self._pin(pin.key_id, pin.conversation, account_id, until=now + pin.kept)
        return taken

    def _take_slot(self, account_id: int, owner: str, *, slots: int, until: float, now: float) -> bool:
        name = f"slots:{account_id}"
        leases = self._leases.setdefault(name, {})
        if slots and owner not in leases and len(leases) >= slots and len(self._live(name, now)) >= slots:
            return False
        if owner not in leases:
            self._slots_of.setdefault(owner, []).append(name)
        leases[owner] = until
        return True

    async def free_slot(self, account_id: int, owner: str) -> None:
        with self._lock:
            self._free_slot(account_id, owner)

    def _free_slot(self, account_id: int, owner: str) -> None:
        name = f"slots:{account_id}"
        self._leases.get(name, {}).pop(owner, None)
        held = [other for other in self._slots_of.pop(owner, ()) if other != name]
        if held:
            self._slots_of[owner] = held

    async def close(self) -> None:
        """Nothing to close."""


def at_once(question: Question, pinned: int | None) -> Seat | None:
    """The seat that the call takes unless it is full or has rested lately: the conversation's own, else the first one.
    None = who goes first depends on more than that."""
    if pinned is not None:
        for seat in question.seats:
            if seat.account_id == pinned:
                return seat if seat.front else None
    return question.seats[question.first] if question.first >= 0 else None
