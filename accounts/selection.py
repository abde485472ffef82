"""Which accounts may take a call now, best first, with the reason for every one: binding, affinity, then the pool.

`decide` is pure but for `TURNS`; `question` says what it needs of the store, so that admission asks for it in the same
round trip; `take` stands before an attempt, `free` behind one that failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from accounts import health, quota
from accounts.lineup import Candidate, Lineup, able, eligible
from accounts.quota import NotTaken
from accounts.turns import Turns
from relay.call import Account, Call, Demand
from relay.errors import InvalidRequest, NoAccountAvailable, RelayError, UpstreamOverloaded
from relay.state.base import Admitted, Question, Rest, Store

__all__ = [
    "TURNS",
    "UNBOUNDED",
    "UNCOUNTED",
    "Picture",
    "Ranking",
    "able",
    "candidates",
    "decide",
    "eligible",
    "free",
    "none_took",
    "passed_over",
    "question",
    "rank",
    "take",
]

AFFINITY = 3600.0  # seconds since the conversation's last call
LEASE = 120.0  # seconds that a slot outlives a relay that died; live calls renew theirs
PROBE_LEASE = 60.0  # seconds after which another call may go first
FULL = 2.0  # seconds: when a slot will be free is not known
LONGEST_WAIT = 1800.0
LISTED = 100  # accounts named on a record

TURNS = Turns()
UNBOUNDED = "unbounded_on_strict_limit"
UNCOUNTED = NotTaken("its slots or limits can't be counted at the moment", math.inf)


class Picture(Struct, frozen=True):
    """What the store knows at this moment; `spent` holds reason and end (Unix seconds) of used-up account quotas."""

    rests: Mapping[tuple[int, str], Rest] = field(default_factory=dict)
    in_flight: Mapping[int, int] = field(default_factory=dict)
    spent: Mapping[int, tuple[str, float]] = field(default_factory=dict)
    pinned: int | None = None  # the account of the same conversation
    tied: int | None = None  # the only account that can go on with it
    taken: int = 0  # the account whose slot the call has


class Ranking(Struct, frozen=True):
    """`accounts` may be tried in this order; `reasons` says of every account why it stands there or is left out."""

    accounts: tuple[Account, ...]
    reasons: tuple[tuple[str, str], ...]
    # The models whose rest a success on that account would end; "" = the account's own.
    recovering: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    probes: frozenset[int] = frozenset()  # recovering accounts that only one call may try first
    pinned: int | None = None
    pin: bool = True  # False where the conversation's own account is only full: it stays the conversation's own
    taken: int = 0  # the first account, where the call has its slot and the conversation already
    frees: float = math.inf  # Unix seconds: when the first of those left out may take it


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A candidate that can't take the call now; `frees` is Unix seconds, infinity = only a person can change it."""

    candidate: Candidate
    reason: str
    frees: float
    rest: Rest | None = None


Place = tuple[int, bool, int, float, tuple[float, int], int]


def question(call: Call, found: Lineup, *, now: float, take: bool = True) -> Question:
    """What the decision needs to know. With `take` the call gets its slot at once where the answer can't be another."""
    return Question(
        found.seats,
        found.first,
        call.key.id,
        conversation_of(call),
        AFFINITY,
        quota.counters(found.limited, call, now=now) if found.limited else (),
        call.envelope.previous_response_id,
        LEASE if take else 0.0,
    )


async def rank(call: Call, found: Lineup, *, store: Store, now: float, seen: Admitted | None = None) -> Ranking:
    """Return the ranking of who is `able`; raises NoAccountAvailable (all rest or are full) and UpstreamOverloaded (all
    rest until a time that the upstream named). `seen` is the answer to `question`."""
    if seen is None:
        seen = await look(call, found, store=store, now=now)
    try:
        ranking = decide(call, found, picture(call, found, seen, now=now), now=now)
    except RelayError:
        if seen.taken:
            await store.free_slot(seen.taken, call.id)
        raise
    if seen.taken != ranking.taken:
        await store.free_slot(seen.taken, call.id)
    return ranking


async def look(call: Call, found: Lineup, *, store: Store, now: float) -> Admitted:
    """Ask the store, and take nothing."""
    asked = question(call, found, now=now, take=False)
    seen = await store.admit(call.id, (), asked, now=now, lease=LEASE)
    assert isinstance(seen, Admitted)  # without holds nothing can be refused
    return seen


def picture(call: Call, found: Lineup, seen: Admitted, *, now: float) -> Picture:
    """What the store answered, as the decision takes it."""
    return Picture(
        seen.rests,
        seen.in_flight,
        quota.spent(found.limited, call, seen.used, now=now) if found.limited else quota.NOTHING,
        seen.pinned,
        tied_to(call, found, seen),
        seen.taken,
    )


def tied_to(call: Call, found: Lineup, seen: Admitted) -> int | None:
    """The account that holds what the call builds on; None where nothing does, or where that account is gone."""
    owner = seen.pinned if call.envelope.tied else None
    if seen.response_owner is not None:
        owner = seen.response_owner[1]
    return owner if owner is not None and any(account.id == owner for account in found.able) else None


def conversation_of(call: Call) -> str:
    """The conversation, model by model: prompt caches are the model's, and so are most accounts' rests."""
    conversation = call.envelope.affinity
    return f"{conversation}/{call.envelope.model[:100]}" if conversation else ""


def decide(call: Call, found: Lineup, picture: Picture, *, now: float) -> Ranking:
    """Rank the candidates by what the store knows; raises as `rank` does."""
    operator = call.origin == "operator"
    taken: list[tuple[Place, Candidate, str]] = []
    left: list[LeftOut] = []
    recovering: dict[int, tuple[str, ...]] = {}
    for candidate in found.candidates:
        out = None if operator else keeps_out(candidate, picture, now=now)
        if out is not None:
            left.append(out)
            continue
        rests = known_rests(candidate, picture) if picture.rests else ()
        if rests:
            recovering[candidate.account.id] = tuple(rest.model for rest in rests)
        taken.append(placed(candidate, picture, half_open=bool(rests)))
    if not taken:
        return last_resort(found, left, picture, now=now)
    if len(taken) > 1:
        taken.sort(key=itemgetter(0))
    return Ranking(
        accounts=tuple(candidate.account for _, candidate, _ in taken),
        reasons=(*((candidate.account.name, reason) for _, candidate, reason in taken), *refusals(found, left)),
        recovering=recovering,
        probes=frozenset() if operator else probes(taken, recovering, picture),
        pinned=picture.pinned,
        pin=not any(out.candidate.account.id == picture.pinned and out.frees <= now + FULL for out in left),
        taken=picture.taken if taken[0][1].account.id == picture.taken else 0,
        frees=min([out.frees for out in left]) if left else math.inf,
    )


def keeps_out(candidate: Candidate, picture: Picture, *, now: float) -> LeftOut | None:
    """What keeps the candidate from taking the call now, None = nothing. A rest is told last: it may be a guess."""
    account = candidate.account
    if picture.tied is not None and account.id != picture.tied:
        return LeftOut(candidate, "the conversation is tied to another account", math.inf)
    if account.expires_at is not None and account.expires_at <= now:
        return LeftOut(candidate, "expired", math.inf)
    if picture.spent and account.id in picture.spent:
        return LeftOut(candidate, *picture.spent[account.id])
    if account.slots and picture.in_flight.get(account.id, 0) >= account.slots:
        return LeftOut(candidate, f"all {account.slots} slots taken", now + FULL)
    if not picture.rests:
        return None
    rest = max(known_rests(candidate, picture), key=lambda rest: rest.until, default=None)
    if rest is None or rest.until <= now:
        return None
    return LeftOut(candidate, health.in_words(rest, now=now), rest.until, rest)


def known_rests(candidate: Candidate, picture: Picture) -> tuple[Rest, ...]:
    """The rests of the account and of this model on it, live or waiting for their probe."""
    both = (picture.rests.get((candidate.account.id, model)) for model in ("", candidate.model))
    return tuple(rest for rest in both if rest is not None)


def placed(candidate: Candidate, picture: Picture, *, half_open: bool) -> tuple[Place, Candidate, str]:
    """Where the candidate stands, and why."""
    account = candidate.account
    flying = picture.in_flight.get(account.id, 0)
    own = account.id == picture.pinned
    load = flying / account.weight
    place = (candidate.tier, not own, account.priority, load, TURNS.place(account), account.id)
    why = "same conversation" if own else candidate.why or f"priority {account.priority}"
    busy = f", {flying} in flight" if flying else ""
    return place, candidate, why + busy + (", first call after its rest" if half_open else "")


def probes(
    taken: list[tuple[Place, Candidate, str]], recovering: Mapping[int, tuple[str, ...]], picture: Picture
) -> frozenset[int]:
    """The recovering accounts to which one call goes first. Where no other account is left, nobody waits for that call,
    unless a credential was rejected."""
    if len(recovering) < len(taken):
        return frozenset(recovering)
    return frozenset(
        account_id
        for account_id, models in recovering.items()
        if any(picture.rests[account_id, model].cause in health.ACCOUNT_WIDE for model in models)
    )


def last_resort(found: Lineup, left: list[LeftOut], picture: Picture, *, now: float) -> Ranking:
    """Where all rest, those whose rest is our guess are tried nevertheless: one overloaded minute must not become ten.
    Raises where there is none."""
    guesses = [(out.frees, out.candidate.account, out) for out in left if out.rest and health.is_guess(out.rest)]
    if not guesses:
        raise nobody(found, left, now=now)
    guesses.sort(key=lambda item: (item[2].candidate.tier, item[0], item[1].id))
    tried = {account.id for _, account, _ in guesses}
    others = [out for out in left if out.candidate.account.id not in tried]
    return Ranking(
        accounts=tuple(account for _, account, _ in guesses),
        reasons=(
            *((account.name, f"{out.reason}, but no other account is left") for _, account, out in guesses),
            *refusals(found, others),
        ),
        recovering={
            account.id: tuple(rest.model for rest in known_rests(out.candidate, picture)) for _, account, out in guesses
        },
        pinned=picture.pinned,
        frees=min([out.frees for out in others]) if others else math.inf,
    )


def refusals(found: Lineup, left: list[LeftOut]) -> tuple[tuple[str, str], ...]:
    return (*((out.candidate.account.name, out.reason) for out in left), *found.out)


def nobody(found: Lineup, left: list[LeftOut], *, now: float) -> RelayError:
    """The error where no account can take the call; no account is named in its message."""
    waiting = [out for out in left if out.frees < math.inf]
    error: RelayError
    if not waiting:
        error = NoAccountAvailable("No account of this key is in service.", retry_after=60.0)
        error.should_retry = False
    else:
        wait = math.ceil(min(LONGEST_WAIT, max(1.0, min(out.frees for out in waiting) - now)))
        if all(out.rest is not None and out.rest.named for out in waiting):
            message = f"Every account that serves this model has reached its rate limit; the first resets in {wait} s."
            error = UpstreamOverloaded(message, status=429, retry_after=wait, reason="all_rate_limited")
        else:
            message = f"No account can take this call now; the first may be free again in {wait} s."
            error = NoAccountAvailable(message, retry_after=wait)
    error.candidates = refusals(found, left)
    return error


async def take(
    call: Call,
    account: Account,
    *,
    store: Store,
    now: float,
    ranking: Ranking | None = None,
    demand: Callable[[], Demand] | None = None,
) -> NotTaken | None:
    """Take the account for one attempt: its slot, its limits, its probe where it recovers, and the conversation's pin.

    Returns why not, where another call was faster or this one does not fit into a limit. `free` gives the slot back,
    `quota.settle` what the limits hold; `demand` (what the call may use on this account) is asked only where it has
    limits on tokens or cost.
    """
    models = ranking.recovering.get(account.id, ()) if ranking else ()
    pin = pinning(call, account, ranking, now=now)
    if ranking is None or ranking.taken != account.id:
        at_once = pin if not models and not account.limits else None
        slots = 0 if call.origin == "operator" else account.slots
        if not await store.take_slot(account.id, call.id, slots=slots, now=now, lease=LEASE, pin=at_once):
            return NotTaken(f"all {slots} slots taken", now)
        pin = None if at_once else pin
    free_to_go = ranking is None or account.id not in ranking.probes
    if free_to_go or await goes_first(call, account, models, store=store, now=now):
        out = await quota.reserve(call, account, store=store, demand=demand, now=now)
    else:
        out = NotTaken("another call goes first after its rest", now)
    if out is not None:
        await store.free_slot(account.id, call.id)
        return out
    health.expect_recovery(account.id, models)
    TURNS.took(account)
    if pin is not None:
        await store.set_affinity(pin.key_id, pin.conversation, account.id, now=now, ttl=pin.kept)
    return None


def passed_over(ranking: Ranking, account: Account, out: NotTaken) -> Ranking:
    """The ranking, with why the account did not take the call in the place of why it stood there."""
    reasons = [(name, out.reason if name == account.name else why) for name, why in ranking.reasons]
    return replace(ranking, reasons=tuple(reasons))


def none_took(ranking: Ranking, outs: Sequence[NotTaken], *, now: float) -> RelayError:
    """The error where no ranked account took the call; no account is named in its message."""
    unasked = len(ranking.accounts) > len(outs)
    frees = now if unasked else min(ranking.frees, *(out.frees for out in outs))
    if math.isfinite(frees):
        wait = math.ceil(min(LONGEST_WAIT, max(1.0, frees - now)))
        if wait > 1:
            message = f"No account can take this call now; the first may be free again in {wait} s."
            return NoAccountAvailable(message, retry_after=wait)
        message = "Every account that serves this model is busy."
        return NoAccountAvailable(message, retry_after=wait, reason="all_slots_taken")
    if unbounded := next((out.unbounded for out in outs if out.unbounded), ""):
        return InvalidRequest(
            f"{unbounded}: the accounts that serve this model have strict limits, and what the call may use has no "
            f"upper bound because of `{unbounded}`. Set or change it.",
            reason=UNBOUNDED,
        )
    error = NoAccountAvailable(
        "This call could use more than the accounts that serve this model may use. Ask for less output.",
        retry_after=LONGEST_WAIT,
        reason="account_limits",
    )
    error.should_retry = False
    return error


async def goes_first(call: Call, account: Account, models: tuple[str, ...], *, store: Store, now: float) -> bool:
    """Whether this call may be the one that tries the account after its rest."""
    for model in models:
        if not await store.take_probe(account.id, model, call.id, now=now, lease=PROBE_LEASE):
            return False
    return True


def pinning(call: Call, account: Account, ranking: Ranking | None, *, now: float) -> Question | None:
    """The conversation that stays on this account from now on, None where it does already or stays elsewhere."""
    if ranking is not None and (account.id in {ranking.taken, ranking.pinned} or not ranking.pin):
        return None
    conversation = conversation_of(call)
    return Question(key_id=call.key.id, conversation=conversation, kept=AFFINITY) if conversation else None


async def free(call: Call, account: Account, *, store: Store) -> None:
    """Give the slot back."""
    await store.free_slot(account.id, call.id)


def candidates(reasons: Sequence[tuple[str, str]], *, taken: str = "") -> list[dict[str, Any]]:
    """The reasons as they stand on a record, those of more than 100 accounts cut short; `taken` names the account
    that answered."""
    rows = [{"account": name, "taken": name == taken, "reason": reason} for name, reason in reasons]
    kept = [row for position, row in enumerate(rows) if position < LISTED or row["taken"]]
    if len(rows) > len(kept):
        kept.append({"account": "", "taken": False, "reason": f"and {len(rows) - len(kept)} more accounts"})
    return kept
