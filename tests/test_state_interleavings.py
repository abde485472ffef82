"""Whatever happens in whatever order, counters equal the ledger plus the calls in flight, and strict limits hold."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from apikeys import admission, corrections, seeding
from apikeys.admission import Reservation
from apikeys.authentication import KEYS, KeyRing
from apikeys.ledger_sums import Used
from apikeys.rules import Counted, counted_one
from relay.call import Call, Demand, Endpoint, Envelope, Key, LimitRule, Record, new_call_id
from relay.errors import BudgetExceeded, LimitExceeded
from relay.state import Store
from tests.stores import KINDS, empty_redis, make

T = TypeVar("T")
START = 1_780_315_200.0
KEY = Key(id=7, name="ada", public_id="p", digest=b"d", team_id=3)
STRICT = LimitRule(id=1, scope="key", owner_id=7, metric="cost", amount=100, per="total", strict=True)
PLAIN = LimitRule(id=2, scope="team", owner_id=3, metric="cost", amount=150, per="day")
TOKENS = LimitRule(id=3, scope="key", owner_id=7, metric="tokens", amount=400, per="hour", models="big-*")
REQUESTS = LimitRule(id=4, scope="key", owner_id=7, metric="requests", amount=30, per="hour")
CALLS = LimitRule(id=5, scope="key", owner_id=7, metric="concurrency", amount=4)
FIRST = (STRICT, PLAIN, CALLS)
LATER = (TOKENS, REQUESTS)


@dataclass(slots=True)
class Open:
    """A call in flight, or one whose process has died."""

    call: Call
    reservation: Reservation
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Booked:
    """One usage record; `shipped` = it is in the database."""

    call: Call
    cost: int
    tokens: int
    ended: float
    shipped: bool


class Relay(RuleBasedStateMachine):
    """One relay process at a time on one store, with a journal that forgets nothing and a ledger that ships late."""

    kind = ""

    @initialize()
    def begin(self) -> None:
        if self.kind == "redis":
            empty_redis()
        self.loop = asyncio.new_event_loop()
        self.store: Store = make(self.kind)
        self.now = START
        self.key = replace(KEY, limits=FIRST)
        self.open: list[Open] = []
        self.books: list[Booked] = []
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(KEYS, "current", KeyRing(by_id={7: self.key}))
        self.patch.setattr(seeding, "read", self.ledger)
        self.patch.setattr(corrections, "start", lambda now: 0)
        self.patch.setattr(corrections, "read", lambda after, done: [])
        self.patch.setattr(seeding, "identity", lambda: "database")
        self.patch.setattr(seeding, "monotonic", lambda: 0.0)
        self.patch.setattr(seeding, "others_shipped", self.shipped)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.all_is_well_once_it_is_quiet()
            self.run(self.store.close())
            self.loop.close()
            self.patch.undo()

    async def shipped(self) -> None:
        self.ship()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def ledger(self, limits: Sequence[Counted], *, at: float, cut: float) -> dict[str, Used]:
        """The database's answer to a seed."""
        return {limit.limit: self.total(limit, at=at, cut=cut, shipped=True) for limit in limits}

    def total(self, limit: Counted, *, at: float, cut: float = 1e12, shipped: bool = False) -> Used:
        counts = [
            (amount_of(limit, booked), booked.ended > booked.call.created_at)
            for booked in self.books
            if booked.ended < cut
            and (booked.shipped or not shipped)
            and limit.matches(booked.call.envelope.model)
            and limit.counter(booked.call.created_at) == limit.counter(at)
        ]
        ended = [amount for amount, has_end in counts if has_end]
        return Used(sum(amount for amount, _ in counts), sum(ended), len(ended))

    # -- what happens --------------------------------------------------------------------------------

    @rule(model=st.sampled_from(["big-1", "small"]), worst=st.integers(0, 60), cost=st.integers(0, 30))
    def admit(self, model: str, worst: int, cost: int) -> None:
        call = Call(
            id=new_call_id(self.now),
            created_at=self.now,
            key=self.key,
            endpoint=Endpoint("messages", "anthropic"),
            envelope=Envelope(model=model),
            method="POST",
            path="/",
            query="",
            headers=(),
            body=b"",
        )
        demand = Demand(tokens=cost, cost=min(cost, worst), worst_tokens=worst, worst_cost=worst)
        try:
            reservation = self.run(admission.reserve(self.store, call, lambda: demand, now=self.now))
        except (BudgetExceeded, LimitExceeded):
            return
        self.open.append(Open(call, reservation))

    @precondition(lambda self: self.living())
    @rule(which=st.integers(0), share=st.floats(0, 1), shipped=st.booleans(), twice=st.booleans())
    def settle(self, which: int, share: float, shipped: bool, twice: bool) -> None:
        flying = self.living()[which % len(self.living())]
        cost = int(self.strict_share(flying) * share)
        for _ in range(1 + twice):
            self.run(admission.settle(self.store, flying.reservation, tokens=cost * 2, cost=cost, now=self.now))
        self.book(flying, cost, shipped=shipped)

    @precondition(lambda self: self.living())
    @rule(which=st.integers(0))
    def fail(self, which: int) -> None:
        """A call that used nothing: its record says so, and its request counts."""
        flying = self.living()[which % len(self.living())]
        self.run(admission.settle(self.store, flying.reservation, tokens=0, cost=0, now=self.now))
        self.book(flying, 0, shipped=False)

    @precondition(lambda self: self.living())
    @rule(which=st.integers(0))
    def refuse(self, which: int) -> None:
        """No account could take it: a refused record, which counts nowhere."""
        flying = self.living()[which % len(self.living())]
        limits = {hold.limit for hold in flying.reservation.holds}
        if any(rule_.metric == "requests" and counted_one(rule_).limit not in limits for rule_ in self.key.limits):
            return
        self.run(admission.release(self.store, flying.reservation, now=self.now, counted=False))
        self.open.remove(flying)

    @rule(seconds=st.sampled_from([0.5, 20.0, 100.0, 3000.0]))
    def wait(self, seconds: float) -> None:
        if seconds > 1:
            self.ship()
        self.now += seconds

    @rule()
    def renew(self) -> None:
        self.run(admission.renew(self.store, [flying.reservation for flying in self.living()], now=self.now))

    @rule()
    def ship(self) -> None:
        self.books = [replace(booked, shipped=True) for booked in self.books]

    @precondition(lambda self: len(self.key.limits) < len(FIRST + LATER))
    @rule()
    def add_a_limit(self) -> None:
        self.key = replace(self.key, limits=(FIRST + LATER)[: len(self.key.limits) + 1])
        KEYS.current = KeyRing(by_id={7: self.key})

    @rule()
    def crash(self) -> None:
        """The process dies; what it had not shipped is in its journal. The next one recovers that before it seeds.

        Not within seconds of a seed: whoever seeded is the one to look again, and docs/limits.md says so.
        """
        self.ship()
        self.now += 4
        self.renew()
        for flying in self.open:
            flying.dead = True
        self.run(self.store.close())
        self.store = make(self.kind)
        if not self.run(self.store.generation()):
            self.recover(known=0)  # a start recovers journals before it seeds

    @rule(known=st.integers(0, 20))
    def recover(self, known: int) -> None:
        """A journal is recovered: a figure that is known, or what a strict budget held."""
        for flying in [flying for flying in self.open if flying.dead]:
            call = flying.call
            record = Record(
                id=call.id, created_at=call.created_at, key_id=call.key.id, requested_model=call.envelope.model
            )
            held = admission.strict_cost(flying.reservation.holds)
            if known:
                record.cost_nanos = record.output_tokens = min(known, held)
            else:
                record.held_nanos = held
            for _ in range(2):
                self.run(admission.settle_recovered(self.store, record, flying.reservation.holds, now=self.now))
            cost = record.cost_nanos + record.held_nanos
            self.open.remove(flying)
            self.books.append(
                Booked(flying.call, cost, record.output_tokens or 0, ended=flying.call.created_at, shipped=True)
            )
        self.ship()

    @precondition(lambda self: self.kind == "redis")
    @rule()
    def lose_all_counters(self) -> None:
        self.recover(known=0)
        empty_redis()

    # -- what must hold ------------------------------------------------------------------------------

    @invariant()
    def strict_limits_are_never_overrun(self) -> None:
        if not hasattr(self, "loop"):
            return
        self.now += 0.01  # no two things happen at once
        limit = counted_one(STRICT)
        held = sum(self.strict_share(flying) for flying in self.open)
        assert self.total(limit, at=self.now).amount + held <= STRICT.amount

    @rule()
    def all_is_well_once_it_is_quiet(self) -> None:
        """With everything shipped and looked at again, each counter is what the books say."""
        self.recover(known=3)
        self.now += 1
        self.renew()
        self.now += 4
        self.renew()
        limits = [counted_one(item) for item in self.key.limits]
        seeded = self.run(self.store.seeded())
        for limit in limits:
            if limit.metric == "concurrency" or limit.limit not in seeded:
                continue
            name = limit.counter(self.now)[0]
            stand = self.run(self.store.stand([name], now=self.now))
            used, reserved = stand[0][name], stand[1][name]
            assert used - reserved == self.total(limit, at=self.now).amount, limit.rule
            assert used >= 0

    # -- words ---------------------------------------------------------------------------------------

    def living(self) -> list[Open]:
        return [flying for flying in getattr(self, "open", []) if not flying.dead]

    @staticmethod
    def strict_share(flying: Open) -> int:
        return admission.strict_cost(flying.reservation.holds)

    def book(self, flying: Open, cost: int, *, shipped: bool) -> None:
        self.open.remove(flying)
        self.books.append(Booked(flying.call, cost, cost * 2, self.now, shipped))


def amount_of(limit: Counted, booked: Booked) -> int:
    return {"cost": booked.cost, "tokens": booked.tokens, "requests": 1}[limit.metric]


@pytest.mark.parametrize("kind", KINDS)
def test_counters_equal_the_ledger_and_the_calls_in_flight(kind: str) -> None:
    make(kind)  # skips where there is no Redis
    machine = type("RelayOn" + kind.capitalize(), (Relay,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100 if kind == "memory" else 40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
