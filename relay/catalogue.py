"""What models an account has: its model map, else the upstream's own list, kept for five minutes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relay import tokens
from relay.call import Account, BindingRule, Key
from relay.dialects.base import ModelEntry
from relay.errors import UpstreamError
from relay.providers import PROVIDERS

if TYPE_CHECKING:
    from relay.runtime import Runtime

logger = logging.getLogger(__name__)

FRESH_SECONDS = 300.0
RETRY_SECONDS = 30.0
FETCH_SECONDS = 10.0
MAX_LIST_BYTES = 8 * 1024 * 1024


@dataclass
class Listing:
    """What one account answered last; a failed refresh keeps it, so that lists do not flap with rests."""

    entries: tuple[ModelEntry, ...] = ()
    due: float = 0.0
    refreshing: asyncio.Lock = field(default_factory=asyncio.Lock)


_listings: dict[tuple[int, str], Listing] = {}


async def upstream_models(run: Runtime, account: Account, *, now: float) -> tuple[ModelEntry, ...]:
    """Return the account's models; those of a map are the requested names."""
    if named := PROVIDERS[account.kind].named_models(account):
        return tuple(ModelEntry(id=name, display_name=name) for name in named)
    listing = _listings.setdefault((account.id, account.base_url), Listing())
    if now < listing.due:
        return listing.entries
    async with listing.refreshing:
        if now < listing.due:
            return listing.entries
        try:
            listing.entries = await fetch(run, account)
            listing.due = now + FRESH_SECONDS
        except (UpstreamError, TimeoutError) as error:
            listing.due = now + RETRY_SECONDS
            logger.warning("Account %s: its list of models could not be read (%s)", account.id, error)
    return listing.entries


async def fetch(run: Runtime, account: Account) -> tuple[ModelEntry, ...]:
    """Ask the upstream for its list; raises `UpstreamError`, `TimeoutError`."""
    provider = PROVIDERS[account.kind]
    request = provider.models_request(await tokens.fresh(run, account))
    if request is None:
        return ()
    async with asyncio.timeout(FETCH_SECONDS):
        upstream = await run.client.open(request, proxy=account.proxy)
        try:
            body = await upstream.read(limit=MAX_LIST_BYTES)
        finally:
            await upstream.close()
    if upstream.status != 200:
        raise UpstreamError(f"status {upstream.status}", status=upstream.status)
    return provider.read_models(body)


def reach(key: Key, accounts: Sequence[Account], *, dialects: Set[str]) -> list[Account]:
    """The accounts whose models this key's lists hold: switched on, speaking one of the dialects, bound to the
    key or in the pool. What rests is reached all the same: lists do not flap."""
    able = [
        account
        for account in accounts
        if account.active and not account.fault and not dialects.isdisjoint(PROVIDERS[account.kind].dialects)
    ]
    bound = [account for account in able if any(names(rule, account) for rule in key.bindings)]
    if key.bindings and not any(rule.fallback for rule in key.bindings):
        return bound
    return [account for account in able if account in bound or not PROVIDERS[account.kind].address_prefix]


def names(rule: BindingRule, account: Account) -> bool:
    """Whether a binding means this account."""
    return rule.account_id == account.id or rule.group_id in account.groups
