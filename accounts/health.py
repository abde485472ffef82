"""What an upstream failure means: what rests, for how long, and when it comes back."""

from __future__ import annotations

import math
from collections.abc import Iterable

from accounts import events
from relay.call import Account
from relay.errors import UpstreamError, UpstreamRejected
from relay.state.base import Rest, Store

# Seconds, by `UpstreamError.rest`; an account's `cooldowns` override them, 0 = never rest.
RESTS: dict[str, float] = {
    "429": 300.0,
    "529": 600.0,
    "503": 60.0,
    "5xx": 300.0,
    "timeout": 300.0,
    "model": 1800.0,
    "credential": 1800.0,
}
LONGEST = 1800.0  # seconds, whatever an upstream names
IN_A_ROW = 3
AFTER_SOME = frozenset({"5xx", "timeout"})  # one failure is chance, three in a row are not
ACCOUNT_WIDE = frozenset({"credential"})  # the others rest one model on the account
NAMES_ITS_END = frozenset({"429"})
BY_HAND = events.BY_HAND
CAUSES = {"credential": "its credential or balance was rejected", "model": "saying that it lacks the model"}

# What this process expects to recover: (account id, model) of the calls under way on a rest that ended.
_recovering: set[tuple[int, str]] = set()
# Where this process counted failures, so that a success need not ask the store each time.
_failing: set[tuple[int, str]] = set()


def is_guess(rest: Rest) -> bool:
    """Whether the last candidate may go on in spite of the rest: only credentials and named times hold it back."""
    return not rest.named and rest.cause not in ACCOUNT_WIDE


def in_words(rest: Rest, *, now: float) -> str:
    """The rest as a reason: "rests 212 s after 429"."""
    seconds = max(0, math.ceil(rest.until - now))
    what = "this model rests" if rest.model else "rests"
    named = ", as the upstream said" if rest.named else ""
    return f"{what} {seconds} s after {CAUSES.get(rest.cause, rest.cause)}{named}"


def decide(account: Account, model: str, error: UpstreamError, *, last: bool, failures: int, now: float) -> Rest | None:
    """Return what rests after this failure, None = nothing; pure. `failures` = in a row, this one included."""
    cause = error.rest
    seconds = account.cooldowns.get(cause, RESTS.get(cause, 0.0))
    if seconds <= 0 or (cause in AFTER_SOME and failures < IN_A_ROW):
        return None
    named = cause in NAMES_ITS_END and error.retry_after is not None
    if error.retry_after is not None and named:
        seconds = min(LONGEST, max(1.0, error.retry_after))
    wide = cause in ACCOUNT_WIDE
    if not wide and not model:
        return None  # a call on a stored answer names no model, and "" would be the whole account
    if last and not named and not wide:
        return None
    return Rest(account.id, "" if wide else model, now + seconds, cause, named, error.upstream_status)


async def failed(
    store: Store, account: Account, model: str, error: UpstreamError, *, last: bool, now: float
) -> Rest | None:
    """Book a failure of `model` (as the upstream knows it); `last` = no other candidate is left. Returns what rests."""
    probing = bool(_recovering) and await goes_first(store, account, model, now=now)
    if not error.rest:
        if isinstance(error, UpstreamRejected):  # the caller's fault: the account itself has answered
            await succeeded(store, account, model, now=now)
        return None
    failures = 0
    if error.rest in AFTER_SOME:
        _failing.add((account.id, model))
        failures = await store.count_failure(account.id, model, now=now)
    rest = decide(account, model, error, last=last, failures=IN_A_ROW if probing else failures, now=now)
    if rest is None:
        return None
    _recovering.difference_update(((account.id, model), (account.id, "")))
    await store.rest(rest, now=now)
    events.rested(account, rest, now=now)
    return rest


async def goes_first(store: Store, account: Account, model: str, *, now: float) -> bool:
    """Whether a rest still waits for this call. One may have ended otherwise, where a call that went first was left by
    its client: by another process, or by hand."""
    expected = _recovering & {(account.id, model), (account.id, "")}
    if not expected:
        return False
    waiting = expected & (await store.rests(now=now)).keys()
    _recovering.difference_update(expected - waiting)
    return bool(waiting)


async def succeeded(store: Store, account: Account, model: str, *, now: float) -> None:
    """Book a success of `model`: its failures in a row and a rest that waited for this call are over."""
    pair = (account.id, model)
    if pair in _failing:
        _failing.discard(pair)
        await store.clear_failures(account.id, model)
    await answered(store, account, model, now=now)


async def answered(store: Store, account: Account, model: str, *, now: float) -> None:
    """The answer of `model` has begun: a rest that waited for this call is over, however the answer ends."""
    if not _recovering:
        return
    for rested in ("", model):
        if (account.id, rested) in _recovering:
            _recovering.discard((account.id, rested))
            await store.clear_rest(account.id, rested)
            events.recovered(account.id, account.name, rested, cause="a call succeeded", now=now)


async def wake(store: Store, account_id: int, account_name: str, *, now: float) -> None:
    """End all rests of an account by hand. The human switch is another matter: nothing here turns it."""
    await store.clear_rest(account_id)
    events.recovered(account_id, account_name, "", cause=BY_HAND, now=now)


def expect_recovery(account_id: int, models: Iterable[str]) -> None:
    """A call is about to try what rested: its success will end these rests."""
    _recovering.update((account_id, model) for model in models)
