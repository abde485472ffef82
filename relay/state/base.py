"""What relay processes share and change on every call. One interface; `memory.py` and `redis.py` behind it.

All methods are coroutines because Redis needs them; the memory store never waits, so each of its methods is one
critical section. Times are Unix seconds and passed in, so that tests own the clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from relay.errors import RelayError

# Named tuples and structs below are those that every call makes: they cost a fifth of a frozen dataclass.
NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Hold(Struct, frozen=True):
    """One limit's share of a reservation.

    `counter` names limit and period ("<limit id>-<owner id>.<sum of what it counts>:<period start, Unix seconds>";
    concurrency has no period); `expires` says when the counter may be forgotten, 0 = never.
    `over`: taken while anything is left, even where `amount` goes past the cap (limits that are not strict).
    """

    counter: str
    metric: str
    amount: int
    cap: int
    expires: float = 0.0
    over: bool = False

    @property
    def limit(self) -> str:
        """The counter without its period: what a store has seeded or not."""
        return self.counter.partition(":")[0]

    @property
    def need(self) -> int:
        """How much must be left: a spent limit admits nothing, not even what costs nothing."""
        return 1 if self.over else max(1, self.amount)


@dataclass(frozen=True, slots=True)
class Refused:
    """The first hold that did not fit and what its counter stood at; nothing was taken."""

    hold: Hold
    used: int


class Seat(Struct, frozen=True):
    """An account that could take the call, as its upstream knows the model; `slots` 0 = unlimited."""

    account_id: int
    model: str
    slots: int = 0
    front: bool = True  # False: another account goes before it, whoever had the conversation


class Question(NamedTuple):
    """What selection asks of the store for one call, all at one moment.

    `first` is the seat to take where the conversation has none, -1 = that depends on the answer. A seat is taken at
    once only where nothing has rested on it lately; without a `lease` none is.
    """

    seats: tuple[Seat, ...] = ()
    first: int = -1
    key_id: int = 0
    conversation: str = ""  # "" = none
    kept: float = 0.0  # seconds that the conversation stays where it is
    counters: tuple[str, ...] = ()  # of the accounts' own limits
    response_id: str = ""
    lease: float = 0.0


class Admitted(NamedTuple):
    """The call's limits are taken, and this is how the accounts stand.

    `taken` is the account whose slot the call holds already (and that has the conversation from now on), 0 = none;
    `in_flight` is without it. `pinned` had the conversation before.
    """

    standing: tuple[int, ...] = ()  # of each hold's counter, this call included
    rests: Mapping[tuple[int, str], Rest] = NOTHING
    in_flight: Mapping[int, int] = NOTHING
    used: Mapping[str, int] = NOTHING
    pinned: int | None = None
    response_owner: tuple[int, int] | None = None  # key, account
    taken: int = 0


class Settlement(NamedTuple):
    """How one reservation ends: `actual` amounts by counter; `now` = when the call ended, `began` = when it was
    admitted (Unix seconds). `seats` are accounts whose slots its owner gives back."""

    owner: str
    holds: tuple[Hold, ...]
    actual: Mapping[str, int]
    now: float
    began: float | None = None
    seats: tuple[int, ...] = ()


class StoreAway(RelayError):
    """The shared store (Redis) can't be reached, so limits can't be checked."""

    status, kind = 503, "not_recordable"


class Unseeded(Exception):
    """The store does not know what these limits have used yet: seed them from the ledger, then try again.

    `limits` are `Hold.limit` names; nothing was taken.
    """

    def __init__(self, limits: Sequence[str]) -> None:
        super().__init__(", ".join(limits))
        self.limits = tuple(limits)


@dataclass(frozen=True, slots=True)
class Seed:
    """What one limit had used at `cut` (Unix seconds), by counter: (value, when it may be forgotten).

    The ledger's calls that ended before `cut` are in it; those that end later count when they settle.
    `instead_of`: what the limit was called before it was edited; those seeds end, calls no longer count there.
    """

    limit: str
    cut: float
    counters: Mapping[str, tuple[int, float]]
    instead_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rest:
    """An account (model "") or one model on it rests until `until`. `named` = the upstream named that time."""

    account_id: int
    model: str
    until: float
    cause: str
    named: bool = False
    http_status: int | None = None


class Store(Protocol):
    shared: bool  # with other processes

    # -- limits: one atomic step, all or nothing; settle is idempotent by owner (the call id)
    async def admit(
        self, owner: str, holds: Sequence[Hold], question: Question, *, now: float, lease: float
    ) -> Refused | Admitted:
        """Take the call's limits, then answer `question`, both in one round trip; raises `Unseeded` and `StoreAway`.

        A second time takes nothing more. Where a shared store is away, and that may be (no holds, or
        RELAY_LIMITS_FAIL=open), the answer is what this process knows itself; without a standing of the holds.
        """

    async def reserve(
        self, owner: str, holds: Sequence[Hold], *, now: float, lease: float
    ) -> Refused | tuple[int, ...]:
        """`admit` without a question: return what each counter stands at with this reservation."""

    async def settle(self, *settlements: Settlement) -> None:
        """Replace the reserved amounts by the real ones, free concurrency and slots; one round trip. Idempotent.

        A hold that the store does not know counts too where neither a seed nor an earlier settle can have this call:
        its limit was seeded before `now`, and after `began` or while the call's other holds were open. `began` None =
        it never counts. Never raises `StoreAway`: a store that is away settles later.
        """

    async def renew(self, owners: Sequence[str], *, now: float, lease: float) -> None:
        """Prolong the leases of calls in flight, and settle what could not be settled before."""

    async def used(self, counters: Sequence[str], *, now: float) -> Mapping[str, int]: ...

    async def stand(self, counters: Sequence[str], *, now: float) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """What counters stand at, and what open reservations hold of them (beyond the ledger), at one moment."""

    async def seed(self, seeds: Sequence[Seed], *, generation: str) -> None:
        """Set the counters of limits that this store has no seed of, and mark the store with `generation`. What open
        reservations hold of a counter comes on top.

        A store that has another mark keeps it and its seeds: somebody else was first.
        """

    async def adjust(self, counters: Mapping[str, int], *, now: float, once: str = "") -> None:
        """Add signed amounts to counters that exist: what a correction of the ledger changed. Never below zero.

        With a name in `once`, only the first call of that name changes anything (within days).
        """

    async def forget_limits(self) -> None:
        """Drop counters, reservations, seeds and the mark: they belong to another database."""

    async def seeded(self) -> Mapping[str, float]:
        """The limits that have their seed, with its `cut`."""

    async def generation(self) -> str:
        """The store's mark, "" = unmarked: seed it before it admits."""

    # -- slots of accounts
    async def take_slot(
        self, account_id: int, owner: str, *, slots: int, now: float, lease: float, pin: Question | None = None
    ) -> bool:
        """Take one of the account's slots (0 = unlimited), and with it the conversation of `pin`."""

    async def free_slot(self, account_id: int, owner: str) -> None: ...

    # -- rests, failures in a row, half-open probes
    async def rest(self, rest: Rest, *, now: float) -> None: ...

    async def rests(self, *, now: float) -> Mapping[tuple[int, str], Rest]:
        """Live rests, and those that ended but whose first call (the probe) has not succeeded yet."""

    async def clear_rest(self, account_id: int, model: str | None = None) -> None:
        """End the rests of an account: of one model ("" = the account's own), or all of them (None)."""

    async def take_probe(self, account_id: int, model: str, owner: str, *, now: float, lease: float) -> bool:
        """After a rest ended, whether this call may be the one that goes first."""

    async def count_failure(self, account_id: int, model: str, *, now: float) -> int:
        """Return how many failures in a row this makes."""

    async def clear_failures(self, account_id: int, model: str) -> None: ...

    # -- affinity: scoped per API key; each `admit` that asks for it begins its time anew
    async def set_affinity(
        self, key_id: int, conversation: str, account_id: int, *, now: float, ttl: float
    ) -> None: ...

    async def flush_affinity(self, *, key_id: int | None = None, account_id: int | None = None) -> int: ...

    # -- which account holds a stored response; the record is the truth, this spares the look-up
    async def set_response_owner(self, response_id: str, key_id: int, account_id: int, *, now: float) -> None: ...

    async def response_owner(self, response_id: str, *, now: float) -> tuple[int, int] | None: ...

    async def close(self) -> None: ...
