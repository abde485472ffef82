"""The standing part of selection: which accounts can serve a key and model at all, and why the others can't.

It depends on rows alone, so it is kept for as long as the snapshot stands; what changes with every call is in
`accounts.selection`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from accounts.kinds import Kind, entrances, kinds
from relay.call import Account, BindingRule, Call, Endpoint
from relay.errors import ModelNotFound
from relay.state.base import Seat

KEPT = 1024  # line-ups in memory; models are client text, so there is no natural end to them


@dataclass(frozen=True, slots=True)
class Candidate:
    """An account that can serve; `tier` 1 is the pool behind a binding, `model` the name that this upstream knows."""

    account: Account
    tier: int
    model: str
    why: str


@dataclass(frozen=True, slots=True)
class Lineup:
    """`candidates` can serve now as far as rows say, `able` could once a person has acted, `out` says why not."""

    candidates: tuple[Candidate, ...]
    able: tuple[Account, ...]
    out: tuple[tuple[str, str], ...]
    # The candidates as the store is asked for them, and the one that leads whatever the load, -1 = none.
    seats: tuple[Seat, ...] = ()
    first: int = -1
    limited: tuple[Account, ...] = ()  # candidates that have limits of their own


_kept: dict[tuple[object, ...], tuple[Sequence[Account], Lineup]] = {}
_kept_for: Sequence[Account] = ()


def lineup(call: Call, accounts: Sequence[Account]) -> Lineup:
    """Return who can serve the call; the same object until the accounts are loaded anew."""
    global _kept_for
    if accounts is not _kept_for or len(_kept) >= KEPT:
        _kept.clear()
        _kept_for = accounts
    question = (call.key.bindings, call.endpoint, call.envelope.model, call.account_id, call.origin)
    kept = _kept.get(question)
    # Compared once more: another thread may look at other accounts in between.
    if kept is not None and kept[0] is accounts and isinstance(accounts, tuple):
        return kept[1]
    found = draw_up(call, accounts)
    _kept[question] = accounts, found
    return found


def able(call: Call, accounts: Sequence[Account]) -> Lineup:
    """Return who may take the call, now or after a rest; raises ModelNotFound when none ever can."""
    found = lineup(call, accounts)
    if not found.able:
        raise model_not_found(call, accounts, found)
    return found


def eligible(found: Lineup) -> list[Account]:
    """The accounts that may take the call."""
    return [candidate.account for candidate in found.candidates] or list(found.able)


def draw_up(call: Call, accounts: Iterable[Account]) -> Lineup:
    """Sort all accounts by what their rows say; pure."""
    endpoint, model = call.endpoint, call.envelope.model
    addressed = any(kind.address_prefix and model.startswith(kind.address_prefix) for kind in kinds().values())
    candidates: list[Candidate] = []
    able: list[Account] = []
    out: list[tuple[str, str]] = []
    for account in accounts:
        kind = kinds().get(account.kind)
        tier, why = place(call, account)
        if tier is None:
            out.append((account.name, why))
        elif kind is None:
            out.append((account.name, f"this Baton has no kind {account.kind!r}"))
        elif reason := cannot_serve(kind, account, endpoint, model=model, bound=bool(why), addressed=addressed):
            out.append((account.name, reason))
        elif broken := unusable(account, call):
            able.append(account)
            out.append((account.name, broken))
        else:
            able.append(account)
            candidates.append(Candidate(account, tier, kind.upstream_model(account, model), why))
    return Lineup(
        tuple(candidates),
        tuple(able),
        tuple(out),
        seats=seated(candidates, operator=call.origin == "operator"),
        first=leader(candidates),
        limited=tuple(candidate.account for candidate in candidates if candidate.account.limits),
    )


def seated(candidates: Sequence[Candidate], *, operator: bool) -> tuple[Seat, ...]:
    """The candidates as seats; an operator's test waits for no slot."""
    front = min((candidate.tier for candidate in candidates), default=0)
    return tuple(
        Seat(
            candidate.account.id,
            candidate.model,
            slots=0 if operator else candidate.account.slots,
            front=candidate.tier == front,
        )
        for candidate in candidates
    )


def leader(candidates: Sequence[Candidate]) -> int:
    """Which candidate stands alone at the best tier and priority, -1 = several: load and turn decide between them."""
    places = [(candidate.tier, candidate.account.priority) for candidate in candidates]
    best = min(places, default=None)
    return places.index(best) if best is not None and places.count(best) == 1 else -1


def place(call: Call, account: Account) -> tuple[int | None, str]:
    """Return the tier, with what binds the account ("" = the pool); None and the reason where it is out of bounds."""
    if call.account_id is not None:
        return (0, "named by the call") if account.id == call.account_id else (None, "the call names another account")
    bindings = call.key.bindings
    if not bindings:
        return 0, ""
    if any(binds(rule, account) for rule in bindings):
        return 0, "bound to this key"
    if any(rule.fallback for rule in bindings):
        return 1, ""
    return None, "not bound to this key"


def binds(rule: BindingRule, account: Account) -> bool:
    return account.id == rule.account_id or (rule.group_id is not None and rule.group_id in account.groups)


def cannot_serve(kind: Kind, account: Account, endpoint: Endpoint, *, model: str, bound: bool, addressed: bool) -> str:
    """Why the account can't ever serve this, "" = it can."""
    prefix = kind.address_prefix
    if endpoint.dialect not in kind.dialects:
        return f"does not speak the {endpoint.dialect} dialect"
    if addressed and not (prefix and model.startswith(prefix)):
        return "the model is addressed to another kind of account"
    if not addressed and prefix and not bound:
        return f"takes only calls addressed to it ({prefix}<model>) or bound to it"
    return "" if kind.serves(account, endpoint, model) else "does not serve this model"


def unusable(account: Account, call: Call) -> str:
    """What only a person can change, "" = nothing. An operator's test may call an account that is switched off."""
    if account.fault:
        return account.fault
    return "" if account.active or call.origin == "operator" else "switched off"


def model_not_found(call: Call, accounts: Sequence[Account], found: Lineup) -> ModelNotFound:
    """The error, with the way to the model where another path or name leads to it. No account is named."""
    model = call.envelope.model
    message = f"No account of this key serves the model {model[:100]!r} here."
    error = ModelNotFound(message + other_way(call, accounts, model))
    error.candidates = found.out
    return error


def other_way(call: Call, accounts: Iterable[Account], model: str) -> str:
    """Under which path or name this key could reach the model, as a sentence; "" = under none."""
    mine = [(account, kinds()[account.kind]) for account in accounts if account.kind in kinds()]
    mine = [(account, kind) for account, kind in mine if account.active and place(call, account)[0] is not None]
    for account, kind in mine:
        for dialect in sorted(entrances().keys() & kind.dialects - {call.endpoint.dialect}):
            endpoint, path = entrances()[dialect]
            if not kind.address_prefix and kind.serves(account, endpoint, model):
                return f" It is served under {path}."
    for account, kind in mine:
        if kind.address_prefix and kind.serves(account, call.endpoint, kind.address_prefix + model):
            return f" It is served as {kind.address_prefix}{model[:100]}."
    return ""
