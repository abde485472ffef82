"""Why did that call go there, and what would happen to this key and model now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from asgiref.sync import async_to_sync, sync_to_async

from accounts.events import restore_rests
from accounts.explain import Choice, call_for, choose
from accounts.kinds import entrances
from accounts.lineup import eligible, lineup
from accounts.snapshot import load_accounts
from apikeys.admission import unbounded
from apikeys.authentication import permit
from apikeys.key_rows import key_named
from apikeys.keyring import load_keys
from apikeys.refusal import refusal
from apikeys.rules import counted
from relay import internal
from relay.call import Account, Call, Key
from relay.dialects import DIALECTS
from relay.errors import ModelNotFound, NotAuthenticated, RelayError
from relay.models import UsageRecord
from relay.prices import load_prices
from relay.pricing import PriceBook
from relay.providers import PROVIDERS
from relay.state.base import Store
from relay.state.memory import MemoryStore
from relay.usage_json import iso

SHOWN = (
    "key_name", "team_name", "requested_model", "upstream_model", "dialect", "endpoint", "status", "http_status",
    "error", "account_name", "origin",
)  # fmt: skip


class Unknown(ValueError):
    """There is no such call, key or dialect; the message names it."""


def explain_call(call_id: str) -> dict[str, Any]:
    """Return why a recorded call went where it went; raises Unknown."""
    try:
        record = UsageRecord.objects.filter(id=UUID(call_id)).first()
    except ValueError:
        raise Unknown(f"{call_id!r} is no call id.") from None
    if record is None:
        raise Unknown(f"There is no record of a call {call_id}.")
    fields = {name.removesuffix("_name"): getattr(record, name) for name in SHOWN}
    return {
        "call": str(record.id),
        "created_at": iso(record.created_at),
        **fields,
        "attempts": record.attempts,
        "candidates": record.candidates,
    }


def explain_now(key_name: str, model: str, *, dialect: str = "") -> dict[str, Any]:
    """Return what would happen to a call of this key for this model now: as the relay sees it, or, where none answers,
    by the rows and the rests noted in events (`live` False). Raises Unknown."""
    if dialect and dialect not in entrances():
        raise Unknown(f"There is no dialect {dialect!r}; there are {', '.join(entrances())}.")
    try:
        key_id = key_named(key_name).pk
    except ValueError as error:
        raise Unknown(str(error)) from None
    try:
        found = internal.ask("explain", key_id=key_id, model=model, dialect=dialect)
    except internal.RelayUnreachable:
        found = {}
    if found and "error" not in found:
        return {**found, "live": True}
    return {**async_to_sync(by_rows)(load_keys().by_id[key_id], model, dialect), "live": False}


async def by_rows(key: Key, model: str, dialect: str) -> dict[str, Any]:
    """The explanation without a relay: nothing in flight, no counters, rests from events."""
    now, store = time.time(), MemoryStore()
    await restore_rests(store, now=now)
    accounts = await sync_to_async(load_accounts)()
    prices = await sync_to_async(load_prices)()
    return await foretell(key, model, dialect=dialect, accounts=accounts, store=store, prices=prices, now=now)


async def foretell(
    key: Key, model: str, *, dialect: str, accounts: Sequence[Account], store: Store, prices: PriceBook, now: float
) -> dict[str, Any]:
    """What a call would meet, step by step as the pipeline takes them; nothing is reserved or taken."""
    call = call_for(key, model, dialect=dialect, accounts=accounts, now=now)
    choice = await choose(call, accounts=accounts, store=store, now=now)
    error = forbidden(call, now=now)
    if error is None and not isinstance(choice.error, ModelNotFound):  # that no limit is asked for
        unpriced = without_price(call, eligible(lineup(call, tuple(accounts))), prices)
        error = await over_limit(call, unpriced=unpriced, store=store, now=now)
    error = error or choice.error
    return told(key, model, choice, error)


def forbidden(call: Call, *, now: float) -> RelayError | None:
    """What stops the call before it is one, None = nothing."""
    key, model = call.key, call.envelope.model
    if not key.active or (key.expires_at is not None and key.expires_at <= now):
        return NotAuthenticated("This API key is disabled or has expired.")
    try:
        permit(key, family=DIALECTS[call.endpoint.dialect].family, model=model)
    except RelayError as error:
        return error
    return None


def without_price(call: Call, accounts: Sequence[Account], prices: PriceBook) -> str:
    """The name of the model at an account that may take the call, where it has no price; "" = all have one."""
    asked = [
        (account.provider, PROVIDERS[account.kind].upstream_model(account, call.envelope.model)) for account in accounts
    ]
    return next((name for provider, name in asked if prices.find(provider, name) is None), "")


async def over_limit(call: Call, *, unpriced: str, store: Store, now: float) -> RelayError | None:
    """The limit of the key or its team that the call would not fit into, None = there is none."""
    key, model = call.key, call.envelope.model
    limits = [limit for limit in counted(("key", key.id), key.limits) if limit.matches(model)]
    strict = next((limit for limit in limits if limit.measured and limit.rule.strict), None)
    if strict is not None and unpriced:  # other fields without a bound stand in a body, and there is none
        return unbounded(strict, f"model ({unpriced} has no price)")
    used = await store.used([limit.counter(now)[0] for limit in limits], now=now)
    for limit in limits:
        hold, stands = limit.hold(1, at=now), used.get(limit.counter(now)[0], 0)
        if stands + hold.need > hold.cap:
            return refusal(limit.rule, limit.period(now), hold=hold, used=stands, now=now)
    return None


def told(key: Key, model: str, choice: Choice, error: RelayError | None) -> dict[str, Any]:
    """The explanation as JSON; `status` and `message` are what the client would get."""
    dialect = choice.endpoint.dialect
    return {
        "key": key.name,
        "model": model,
        "dialect": dialect,
        "outcome": "refused" if error else "carried",
        "account": None if error else choice.account,
        "status": DIALECTS[dialect].render_error(error, "").status if error else None,
        "message": error.message if error else "",
        "retry_after": error.retry_after if error else None,
        "candidates": [{**row, "taken": row["taken"] and not error} for row in choice.candidates],
    }
