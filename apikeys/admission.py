"""Whether a call may go: all its limits are taken in one atomic step, and given back as what it really used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, field

from apikeys import corrections, seeding
from apikeys.authentication import KEYS
from apikeys.refusal import refusal
from apikeys.rules import Counted, counted
from apikeys.standing import rates, standing
from relay.call import Call, CallStatus, Demand, Key, LimitRule, RateLimit, Record, extra_tokens
from relay.errors import InvalidRequest
from relay.state.base import Admitted, Hold, Question, Refused, Settlement, Store, Unseeded

__all__ = [
    "LEASE", "Reservation", "ended_at", "rates_of", "release", "renew", "reserve", "settle", "settle_recovered",
    "settlement_of", "standing", "strict_cost", "tokens_of", "wanted",
]  # fmt: skip

LEASE = 90.0  # seconds that a concurrency slot outlives a relay that died; live calls renew it
EMPTY: Mapping[str, int] = {}


class Reservation(Struct, frozen=True):
    """What a call holds until it is settled. `used`: what each counter stood at right after it was taken."""

    owner: str
    holds: tuple[Hold, ...]
    used: Mapping[str, int] = field(default_factory=dict)
    key: Key | None = None
    model: str = ""
    metered: bool = True
    began: float | None = None
    seen: Admitted | None = None  # the answer to the question that went along


NO_QUESTION = Question()


def rates_of(reservation: Reservation) -> tuple[RateLimit, ...]:
    """Where the key stands with its limits on requests and tokens, this call included."""
    key, began = reservation.key, reservation.began
    return rates(key, reservation.used, at=began) if reservation.used and key is not None and began is not None else ()


async def reserve(
    store: Store, call: Call, demand: Callable[[], Demand], *, now: float, question: Question = NO_QUESTION
) -> Reservation:
    """Take all limits of the call's key and team, or none; `demand` is asked only where tokens or cost are limited.
    What selection wants to know goes along, so that both cost one round trip.

    Raises LimitExceeded, BudgetExceeded, InvalidRequest (a strict limit, and no bound for what the call may use) and
    StoreAway (limits can't be checked, and RELAY_LIMITS_FAIL is "closed").
    """
    key, model, metered = call.key, call.envelope.model, call.endpoint.metered
    began = call.created_at
    limits = [
        limit
        for limit in counted(("key", key.id), key.limits)
        if (metered or not limit.measured) and limit.matches(model)
    ]
    holds = wanted(limits, demand, at=began) if limits else ()
    try:
        seen = await store.admit(call.id, holds, question, now=now, lease=LEASE)
    except Unseeded:
        await seeding.seed(store, [limit.rule for limit in limits], now=now)
        seen = await store.admit(call.id, holds, question, now=now, lease=LEASE)
    if isinstance(seen, Refused):
        limit = limits[holds.index(seen.hold)]
        raise refusal(limit.rule, limit.period(began), hold=seen.hold, used=seen.used, now=now)
    used = {hold.counter: value for hold, value in zip(holds, seen.standing, strict=False)} if holds else EMPTY
    return Reservation(call.id, holds, used, key, model, metered, began, seen)


def wanted(limits: Sequence[Counted], demand: Callable[[], Demand], *, at: float) -> tuple[Hold, ...]:
    """What each limit is asked for. Raises InvalidRequest."""
    asked: Demand | None = None
    holds = []
    for limit in limits:
        if not limit.measured:
            holds.append(limit.hold(1, at=at))
            continue
        asked = asked or demand()
        if limit.rule.strict and asked.unbounded:
            raise unbounded(limit, asked.unbounded)
        if limit.metric == "cost":
            amount = asked.worst_cost if limit.rule.strict else asked.cost
        else:
            amount = asked.worst_tokens if limit.rule.strict else asked.tokens
        holds.append(limit.hold(amount, at=at))
    return tuple(holds)


def unbounded(limit: Counted, field_name: str) -> InvalidRequest:
    whose = "team" if limit.rule.scope == "team" else "API key"
    return InvalidRequest(
        f"{field_name}: this {whose} has a strict {limit.metric} limit, and what the call may use has no upper bound "
        f"because of `{field_name}`. Set or change it.",
        reason="unbounded_on_strict_limit",
    )


async def settle(store: Store, reservation: Reservation, *, tokens: int, cost: int, now: float) -> None:
    """Replace what was reserved by what was used; `tokens` and nano-dollars. Idempotent; never raises StoreAway.

    `now` = when the call ended as its record says (created_at + duration_ms).
    """
    await store.settle(settled(reservation, tokens=tokens, cost=cost, now=now))


def settled(reservation: Reservation, *, tokens: int, cost: int, now: float, seats: tuple[int, ...] = ()) -> Settlement:
    """What becomes of a reservation whose call used this much."""
    holds = reservation.holds
    then, current, began = reservation.key, changed_key(reservation), reservation.began
    if then is not None and current is not None and began is not None:
        held, metered = {hold.limit for hold in holds}, reservation.metered
        holds = (*holds, *late(current, then.team_id, reservation.model, held, began=began, metered=metered))
    amounts = {"requests": 1, "tokens": tokens, "cost": cost}
    actual = {hold.counter: amounts.get(hold.metric, 0) for hold in holds}
    return Settlement(reservation.owner, holds, actual, now, reservation.began, seats)


async def release(store: Store, reservation: Reservation, *, now: float, counted: bool = True) -> None:
    """Give back what was reserved: nothing was used. A request stays counted, unless the record says `refused`."""
    if reservation.holds:
        await store.settle(released(reservation, now=now, counted=counted))


def released(reservation: Reservation, *, now: float, counted: bool, seats: tuple[int, ...] = ()) -> Settlement:
    actual = {hold.counter: int(counted) for hold in reservation.holds if hold.metric == "requests"}
    return Settlement(reservation.owner, reservation.holds, actual, now, None, seats)


def settlement_of(reservation: Reservation, record: Record, *, seats: tuple[int, ...] = ()) -> Settlement:
    """What becomes of a call's reservation by its finished record: a refused one counts nowhere, others with what they
    used and hold. `seats` are the accounts whose slots the call still has."""
    ended = ended_at(record)
    if record.status == CallStatus.REFUSED:
        return released(reservation, now=ended, counted=False, seats=seats)
    cost = record.cost_nanos + record.held_nanos
    return settled(reservation, tokens=tokens_of(record), cost=cost, now=ended, seats=seats)


def ended_at(record: Record) -> float:
    """When a finished call ended, as the ledger will know it (Unix seconds)."""
    return record.created_at + (record.duration_ms or 0) / 1000


def changed_key(reservation: Reservation) -> Key | None:
    """The key as it is now, if it has other limits than when the call was admitted."""
    then = reservation.key
    current = KEYS.current.by_id.get(then.id) if then is not None else None
    if then is None or current is None or current is then or current.limits == then.limits:
        return None
    return current


def late(
    key: Key | None, team_id: int | None, model: str, held: set[str], *, began: float, metered: bool
) -> list[Hold]:
    """Limits that the key got while the call was in flight: they count what it used, they reserved nothing.

    `team_id`: the team that the call's record names; a key that was moved since brings no call to its new team.
    """
    limits = counted(("key", key.id), key.limits) if key is not None else ()
    return [
        limit.hold(0, at=began)
        for limit in limits
        if limit.metric != "concurrency"
        and limit.limit not in held
        and (limit.rule.scope != "team" or limit.rule.owner_id == team_id)
        and (metered or not limit.measured)
        and limit.matches(model)
    ]


async def settle_recovered(store: Store, record: Record, holds: Sequence[Hold], *, now: float) -> None:
    """Settle what a dead process had reserved, by the record that recovery made of its journal. Idempotent.

    `held_nanos`, the strict budgets' share where no figure is known, stays counted until the record is corrected.
    """
    ended = now if record.duration_ms is None else ended_at(record)
    if record.status == CallStatus.REFUSED:
        await store.settle(Settlement(record.id, tuple(holds), {}, ended))
        return
    held = {hold.limit for hold in holds}
    key = KEYS.current.by_id.get(record.key_id or 0)
    every = (*holds, *late(key, record.team_id, record.requested_model, held, began=record.created_at, metered=True))
    amounts = {"requests": 1, "tokens": tokens_of(record), "cost": record.cost_nanos + record.held_nanos}
    actual = {hold.counter: amounts.get(hold.metric, 0) for hold in every}
    await store.settle(Settlement(record.id, every, actual, ended, record.created_at))


def tokens_of(record: Record) -> int:
    """What a record counts against token limits: all that the vendor meters in tokens, further model runs too."""
    return (
        (record.input_tokens or 0)
        + (record.cache_read_input_tokens or 0)
        + (record.cache_creation_5m_input_tokens or 0)
        + (record.cache_creation_1h_input_tokens or 0)
        + (record.output_tokens or 0)
        + extra_tokens(record.lines)
    )


def strict_cost(holds: Sequence[Hold]) -> int:
    """The nano-dollars that strict budgets reserved for a call: the `held_nanos` of a record without a figure."""
    return max((hold.amount for hold in holds if hold.metric == "cost" and not hold.over), default=0)


async def renew(
    store: Store,
    reservations: Sequence[Reservation],
    *,
    now: float,
    lease: float = LEASE,
    others: Sequence[LimitRule] = (),
) -> None:
    """Prolong the leases of the calls in flight; call it every few seconds. Also seeds limits that are new, and lets
    counters follow corrected records; `others` are limits that stand on no key or team."""
    await store.renew([reservation.owner for reservation in reservations], now=now, lease=lease)
    ring = KEYS.current
    await seeding.keep_up(store, ring, now=now, others=others)
    await corrections.follow(store, lambda: [*seeding.rules_of(ring), *others], now=now)
