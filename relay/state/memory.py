"""The store of a single relay process: everything in dictionaries, each method one critical section.

A lock, because a snapshot's thread or a test may call in from another event loop; nothing waits while holding it.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Mapping, Sequence

from relay.state.base import Hold, Refused, Seed, Unseeded
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

    async def reserve(
        self, owner: str, holds: Sequence[Hold], *, now: float, lease: float
    ) -> Refused | tuple[int, ...]:
        with self._lock:
            self._forget(now)
            unseeded = [hold.limit for hold in holds if hold.metric != CONCURRENCY and hold.limit not in self._seeded]
            if unseeded:
                raise Unseeded(unseeded)
            standing = [self._standing(hold, now) for hold in holds]
            if owner in self._open:
                return tuple(standing)
            for hold, used in zip(holds, standing, strict=True):
                if used + hold.need > hold.cap:
                    return Refused(hold, used)
            for hold, used in zip(holds, standing, strict=True):
                if hold.metric == CONCURRENCY:
                    self._leases.setdefault(hold.counter, {})[owner] = now + lease
                else:
                    self._set(hold.counter, used + hold.amount, hold.expires)
            self._open[owner] = tuple(holds)
            return tuple([used + hold.amount for used, hold in zip(standing, holds, strict=True)])

    async def settle(
        self, owner: str, holds: Sequence[Hold], actual: Mapping[str, int], *, now: float, began: float | None = None
    ) -> None:
        with self._lock:
            opened = self._open.pop(owner, ())
            for hold in opened:
                if hold.metric == CONCURRENCY:
                    self._leases.get(hold.counter, {}).pop(owner, None)
                else:
                    self._change(hold, actual.get(hold.counter, 0) - hold.amount, now=now)
            if holds is not opened and began is not None and owner not in self._late:
                self._settle_late(owner, holds, opened, actual, now=now, began=began)

    def _settle_late(
        self,
        owner: str,
        holds: Sequence[Hold],
        opened: Sequence[Hold],
        actual: Mapping[str, int],
        *,
        now: float,
        began: float,
    ) -> None:
        """Count what neither a reservation nor a seed has (see the protocol)."""
        known = {hold.counter for hold in opened}
        for hold in holds:
            cut = self._seeded.get(hold.limit)
            if cut is None or cut > now or (began >= cut and not opened):
                continue
            if began < cut:
                self._late[owner] = now
            if hold.counter not in known:
                self._change(hold, actual.get(hold.counter, 0), now=now)

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
            reserved = dict.fromkeys(counters, 0)
            for holds in self._open.values():
                for hold in holds:
                    if hold.counter in reserved:
                        reserved[hold.counter] += hold.amount
            return {name: self._counters.get(name, 0) for name in counters}, reserved

    async def seed(self, seeds: Sequence[Seed], *, generation: str) -> None:
        with self._lock:
            if self._generation not in {"", generation}:
                return
            self._generation = generation
            for seed in seeds:
                for former in seed.instead_of:
                    self._seeded.pop(former, None)
                if seed.limit not in self._seeded:
                    self._seeded[seed.limit] = seed.cut
                    for name, (value, expires) in seed.counters.items():
                        self._set(name, value, expires)

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

    async def take_slot(self, account_id: int, owner: str, *, slots: int, now: float, lease: float) -> bool:
        name = f"slots:{account_id}"
        with self._lock:
            leases = self._leases.setdefault(name, {})
            if slots and owner not in leases and len(leases) >= slots and len(self._live(name, now)) >= slots:
                return False
            leases[owner] = now + lease
            self._slots_of.setdefault(owner, []).append(name)
            return True

    async def free_slot(self, account_id: int, owner: str) -> None:
        name = f"slots:{account_id}"
        with self._lock:
            self._leases.get(name, {}).pop(owner, None)
            held = [other for other in self._slots_of.pop(owner, ()) if other != name]
            if held:
                self._slots_of[owner] = held

    async def in_flight(self, account_ids: Sequence[int], *, now: float) -> Mapping[int, int]:
        with self._lock:
            return {account_id: len(self._live(f"slots:{account_id}", now)) for account_id in account_ids}

    async def close(self) -> None:
        """Nothing to close."""
