"""Why a call would go where it goes: the same line-up and ranking as for a call, told instead of carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accounts import selection
from accounts.kinds import entrances, family_of
from accounts.lineup import lineup
from relay.call import Account, Call, Endpoint, Envelope, Key, new_call_id
from relay.errors import RelayError
from relay.state.base import Store


@dataclass(frozen=True, slots=True)
class Choice:
    """`account` would be asked first, None = the call would be refused with `error`; `candidates` as on a record."""

    endpoint: Endpoint
    account: str | None
    candidates: list[dict[str, Any]]
    error: RelayError | None = None


def call_for(key: Key, model: str, *, dialect: str, accounts: Sequence[Account], now: float) -> Call:
    """The call that the key would make for the model, a conversation of its own; without a dialect, in the first one in
    which an account can serve it, those that the key may use before all others."""
    known = entrances()
    wanted = [dialect] if dialect else sorted(known, key=lambda name: not permitted(key, name))
    calls = [imagined(key, model, known[name][0], now=now) for name in wanted]
    return next((call for call in calls if lineup(call, tuple(accounts)).able), calls[0])


def permitted(key: Key, dialect: str) -> bool:
    return not key.families or family_of(dialect) in key.families


def imagined(key: Key, model: str, endpoint: Endpoint, *, now: float) -> Call:
    """A call that nobody makes."""
    return Call(
        id=new_call_id(now),
        created_at=now,
        key=key,
        endpoint=endpoint,
        envelope=Envelope(model),
        method="POST",
        path="",
        query="",
        headers=(),
        body=b"",
    )


async def choose(call: Call, *, accounts: Sequence[Account], store: Store, now: float) -> Choice:
    """Rank without taking anything."""
    try:
        ranking = await selection.rank(call, selection.able(call, tuple(accounts)), store=store, now=now)
    except RelayError as error:
        return Choice(call.endpoint, None, selection.candidates(error.candidates), error)
    first = ranking.accounts[0].name
    return Choice(call.endpoint, first, selection.candidates(ranking.reasons, taken=first))
