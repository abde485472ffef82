"""Signing in to upstreams whose access tokens run out: the request of the provider, sent by this process's client."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from accounts import tokens
from accounts.snapshot import ACCOUNTS
from relay.call import Account
from relay.errors import UpstreamError, UpstreamTimeout
from relay.providers import PROVIDERS

if TYPE_CHECKING:
    from relay.flight import Watch
    from relay.runtime import Runtime

TOKEN_SECONDS = 20.0
MAX_ANSWER_BYTES = 256 * 1024


async def fresh(run: Runtime, account: Account, *, watch: Watch | None = None) -> Account:
    """The account with a current access token in its credential; raises `UpstreamError` where none can be got.

    `watch` learns that nobody waits for an answer yet: the timer of the attempt before would still run."""
    if watch is not None and PROVIDERS[account.kind].renews(account):
        watch.expect("token", tokens.PATIENCE + TOKEN_SECONDS)
    return await tokens.fresh(account, partial(ask, run), store=run.store, now=time.time())


async def again(run: Runtime, account: Account, error: UpstreamError, *, watch: Watch) -> Account | None:
    """The account with another token, where the upstream may have revoked the one it had; None = that is not it."""
    now = time.time()
    if not tokens.may_be_revoked(account, error, now=now):
        return None
    watch.expect("token", tokens.PATIENCE + TOKEN_SECONDS)
    return await tokens.replaced(account, partial(ask, run), store=run.store, now=now)


def look_ahead(run: Runtime) -> None:
    """Begin to renew the tokens that are due, calls or no calls."""
    tokens.look_ahead(ACCOUNTS.current, partial(ask, run), store=run.store, now=time.time())


async def ask(run: Runtime, account: Account) -> tuple[int, bytes]:
    """Ask the account's token server, through the account's own proxy; raises `UpstreamError`."""
    try:
        request = PROVIDERS[account.kind].token_request(account, now=time.time())
    except ValueError as error:  # a key that can't be read: nobody else's call has to fail by it
        raise tokens.error_of("credential") from error
    try:
        async with asyncio.timeout(TOKEN_SECONDS):
            upstream = await run.client.open(request, proxy=account.proxy)
            try:
                return upstream.status, await upstream.read(limit=MAX_ANSWER_BYTES)
            finally:
                await upstream.close()
    except TimeoutError as error:
        message = "The upstream account could not be signed in in time."
        raise UpstreamTimeout(message, reason="token_timeout", rest="timeout") from error
