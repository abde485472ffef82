"""Limits on upstream accounts: a used-up one leaves its account out; a call counts for the account that answered it.

The same counters and arithmetic as the limits of keys; the reservation is the account's own, `<call id>@<account id>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from accounts.snapshot import ACCOUNTS
from apikeys import seeding
from apikeys.admission import LEASE, ended_at, tokens_of, wanted
from apikeys.rules import Counted, counted
from relay.call import Account, Call, CallStatus, Demand, LimitRule, Record
from relay.errors import InvalidRequest
from relay.state.base import Hold, Refused, Settlement, Store, Unseeded

NANO = 10**9
NOTHING: Mapping[int, tuple[str, float]] = {}


@dataclass(frozen=True, slots=True)
class NotTaken:
    """Why an account that was ranked did not take the call; `frees` is Unix seconds, infinity = it never can.
    `unbounded` names what in the body a strict limit of the account can't bound."""

    reason: str
    frees: float
    unbounded: str = ""


# What this process has reserved on accounts for calls under way: call id -> account id -> holds.
_held: dict[str, dict[int, tuple[Hold, ...]]] = {}
# The accounts that have limits now, by id, and the snapshot that says so.
_limited: dict[int, Account] = {}
_limited_of: Sequence[Account] = ()


def limits_of(account: Account, model: str, *, metered: bool) -> list[Counted]:
    """The account's limits that count a call of this (requested) model."""
    every = counted(("account", account.id), account.limits)
    return [limit for limit in every if (metered or not limit.measured) and limit.matches(model)]


def counters(limited: Iterable[Account], call: Call, *, now: float) -> tuple[str, ...]:
    """The counters of the accounts' limits that count this call."""
    metered = call.endpoint.metered
    limits = [limit for item in limited for limit in limits_of(item, call.envelope.model, metered=metered)]
    return tuple([limit.counter(now)[0] for limit in limits if limit.metric != "concurrency"])


def spent(
    limited: Iterable[Account], call: Call, used: Mapping[str, int], *, now: float
) -> Mapping[int, tuple[str, float]]:
    """Return, by account id, why and until when (Unix seconds) a limit of the account is used up."""
    found: dict[int, tuple[str, float]] = {}
    for account in limited:
        limits = limits_of(account, call.envelope.model, metered=call.endpoint.metered)
        over = [limit for limit in limits if used.get(limit.counter(now)[0], 0) >= limit.cap]
        if over:
            last = max(over, key=lambda limit: limit.period(now).end)
            found[account.id] = in_words(last.rule, last.period(now).end, now=now), last.period(now).end
    return found


def in_words(rule: LimitRule, end: float, *, now: float, state: str = "are used up") -> str:
    """A used-up limit as a reason: "its 5 USD per day are used up, for 3600 s more"."""
    return f"{subject(rule)} {state}" + (f", for {math.ceil(end - now)} s more" if rule.per != "total" else "")


def subject(rule: LimitRule) -> str:
    amount = f"{rule.amount / NANO:g} USD" if rule.metric == "cost" else f"{rule.amount} {rule.metric}"
    return f"its {amount} " + ("in total" if rule.per == "total" else f"per {rule.per}")


async def reserve(
    call: Call, account: Account, *, store: Store, demand: Callable[[], Demand] | None, now: float
) -> NotTaken | None:
    """Hold the call's share of the account's limits until `settle`; returns why not where one has too little left."""
    if not account.limits:
        return None
    limits = limits_of(account, call.envelope.model, metered=call.endpoint.metered)
    try:
        holds = wanted(limits, demand or no_estimate, at=call.created_at)
    except InvalidRequest:  # a strict limit of the account, and a call without an upper bound
        field = (demand or no_estimate)().unbounded
        return NotTaken(f"its limit is strict, and the call has no upper bound: {field}", math.inf, field)
    owner = f"{call.id}@{account.id}"
    try:
        taken = await store.reserve(owner, holds, now=now, lease=LEASE)
    except Unseeded:
        await seeding.seed(store, [limit.rule for limit in limits], now=now)
        taken = await store.reserve(owner, holds, now=now, lease=LEASE)
    if isinstance(taken, Refused):
        return too_little(limits[holds.index(taken.hold)], taken, at=call.created_at, now=now)
    _held.setdefault(call.id, {})[account.id] = holds
    return None


def too_little(limit: Counted, refused: Refused, *, at: float, now: float) -> NotTaken:
    """Why the call does not fit into a limit of the account, and until when."""
    rule, hold = limit.rule, refused.hold
    if rule.metric == "concurrency":
        return NotTaken(f"all of its {rule.amount} calls at a time are in flight", now)
    if not hold.over and hold.amount > hold.cap:
        return NotTaken(f"{subject(rule)} are less than this call could use", math.inf)
    end = limit.period(at).end
    state = "are used up" if refused.used >= hold.cap else "have too little left for this call"
    return NotTaken(in_words(rule, end, now=now, state=state), end)


async def ensure_seeded(store: Store, accounts: Iterable[Account], *, now: float) -> None:
    """Seed the limits of accounts that have no seed yet; call it after the keys' own, as often as you like.
    Raises StoreAway."""
    rules = [rule for account in accounts for rule in account.limits]
    if rules:
        await seeding.seed(store, rules, now=now)


def no_estimate() -> Demand:
    return Demand(tokens=0, cost=0, worst_tokens=0, worst_cost=0, unbounded="model")


def settlements(call: Call, record: Record, *, now: float) -> list[Settlement]:
    """What the call used counts for the account that answered it, and one request for those that failed before it.
    Returns what each account's reservation becomes, once."""
    held = _held.pop(call.id, {})
    if (account := limited_now(record.account_id)) is not None and record.status != CallStatus.REFUSED:
        held = with_late(held, account, call)
    return [
        Settlement(
            f"{call.id}@{account_id}",
            holds,
            figures(holds, record, answered=account_id == record.account_id),
            now,
            call.created_at,
        )
        for account_id, holds in held.items()
    ]


def limited_now(account_id: int | None) -> Account | None:
    """The account as it is now, if it has limits."""
    global _limited, _limited_of
    if ACCOUNTS.current is not _limited_of:
        _limited_of = ACCOUNTS.current
        _limited = {account.id: account for account in _limited_of if account.limits}
    return _limited.get(account_id or 0)


def with_late(held: dict[int, tuple[Hold, ...]], account: Account, call: Call) -> dict[int, tuple[Hold, ...]]:
    """What is held, and the limits that the account got while the call was in flight: they reserved nothing."""
    mine = held.get(account.id, ())
    names = {hold.limit for hold in mine}
    limits = limits_of(account, call.envelope.model, metered=call.endpoint.metered)
    late = [
        limit.hold(0, at=call.created_at)
        for limit in limits
        if limit.metric != "concurrency" and limit.limit not in names
    ]
    return {**held, account.id: (*mine, *late)} if late else held


async def settle_recovered(record: Record, *, accounts: Sequence[Account], store: Store, now: float) -> None:
    """Count a dead process's call for its account, by the record that recovery made of its journal."""
    account = next((item for item in accounts if item.id == record.account_id), None)
    if account is None or not account.limits:
        return
    limits = limits_of(account, record.requested_model, metered=True)
    holds = tuple(limit.hold(0, at=record.created_at) for limit in limits)
    actual = figures(holds, record, answered=True)
    # A finished call ended when its record says: a seed of later has it already.
    ended = now if record.duration_ms is None else ended_at(record)
    await store.settle(Settlement(f"{record.id}@{account.id}", holds, actual, ended, record.created_at))


def figures(holds: Sequence[Hold], record: Record, *, answered: bool) -> dict[str, int]:
    amounts = {"requests": 1}
    if answered:
        amounts |= {"tokens": tokens_of(record), "cost": record.cost_nanos + record.held_nanos}
    return {hold.counter: amounts.get(hold.metric, 0) for hold in holds}
