"""Access tokens that run out: the next one is got ahead of time, by one process at a time, and kept encrypted.

The lease on the token's row decides who asks the token server. Whoever asks holds the token in memory at once; the
others find it in the row, or in their next snapshot.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
from asgiref.sync import sync_to_async
from django.db import Error
from django.db.models import Q

from accounts import health, models
from accounts.credentials import encrypt
from accounts.kinds import kinds
from accounts.snapshot import account_of
from relay.call import Account, TokenState
from relay.errors import (
    AccountRejected,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamTimeout,
)
from relay.state.base import Store
from relay.state.snapshot import give_connection_back

logger = logging.getLogger(__name__)

AHEAD = 300.0  # seconds before the end at which the next token is got; of a short life its last fifth
SHORTEST = 60.0  # seconds of age at which a rejected token is taken for one that was revoked
LEASE = 60.0  # seconds that one process has for asking
PAUSE = 10.0  # seconds after a failure before anybody asks again
PATIENCE = 30.0  # seconds that a call waits for a token
USUAL_LIFE = 3600
POLL = 0.1
STORE_TRIES = 5
# What a token server says of a credential that will never do (RFC 6749, section 5.2); anything else may pass.
REJECTED = frozenset({400, 401, 403})

Ask = Callable[[Account], Awaitable[tuple[int, bytes]]]  # raises UpstreamError where no answer comes

_held: dict[int, Account] = {}  # what this process got, until its snapshot has it
_renewing: dict[int, asyncio.Task[Account]] = {}
_keeping: set[asyncio.Task[None]] = set()
_not_before: dict[int, float] = {}


class Answer(msgspec.Struct):
    access_token: str
    expires_in: float | str | None = None
    refresh_token: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What the row says: the account as it stands in the database, whether this process may ask, why nobody may."""

    account: Account | None
    claimed: bool
    failure: str = ""


async def fresh(account: Account, ask: Ask, *, store: Store, now: float) -> Account:
    """Return the account with a current access token in its credential; raises `UpstreamError` where none can be got.

    A token that is due for renewal still serves this call; only one that ran out makes it wait.
    """
    if not kinds()[account.kind].renews(account):
        return account
    account = newest(account)
    if not is_current(account, now):
        return await renewed(account, ask, store=store)
    if now >= account.token.due and now >= _not_before.get(account.id, 0.0):
        begin(account, ask, store=store)
    return account


async def renewed(account: Account, ask: Ask, *, store: Store) -> Account:
    """Wait for the next token; raises `UpstreamError`."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.shield(begin(account, ask, store=store))
    except TimeoutError as error:
        message = "The upstream account could not be signed in in time."
        raise UpstreamTimeout(message, reason="token_timeout", rest="timeout") from error


async def replaced(account: Account, ask: Ask, *, store: Store, now: float) -> Account:
    """The next token in place of one that the upstream has rejected before its time."""
    _held.pop(account.id, None)
    await sync_to_async(make_void)(account, now=now)
    return await renewed(replace(account, token=replace(account.token, due=0.0, expires=0.0)), ask, store=store)


def may_be_revoked(account: Account, error: UpstreamError, *, now: float) -> bool:
    """Whether the rejection may be about the token's age: it was not got just now."""
    renews = (
        isinstance(error, AccountRejected) and error.upstream_status == 401 and kinds()[account.kind].renews(account)
    )
    return renews and now - account.token.issued > SHORTEST


def look_ahead(accounts: Iterable[Account], ask: Ask, *, store: Store, now: float) -> None:
    """Begin to renew what is due, calls or no calls; of accounts that were never called nothing is known yet."""
    for account in accounts:
        if account.active and not account.fault and kinds()[account.kind].renews(account):
            known = newest(account)
            if known.token.version and known.token.due <= now and now >= _not_before.get(account.id, 0.0):
                begin(known, ask, store=store)


async def finish(*, within: float) -> None:
    """Wait for what is under way: a token server may have put the old refresh token out of use already."""
    for tasks in (_renewing.values(), _keeping):
        if tasks:
            await asyncio.wait(list(tasks), timeout=within)


# -- in this process -------------------------------------------------------------------------------------


def newest(account: Account) -> Account:
    """The snapshot's account, or what this process has got for it since."""
    held = _held.get(account.id)
    if held is None:
        return account
    if held.token.origin != account.token.origin or held.token.version <= account.token.version:
        _held.pop(account.id, None)
        return account
    return replace(account, credential=held.credential, token=held.token)


def is_current(account: Account, now: float) -> bool:
    """Whether the credential has a token that may serve; the end of one that a person gave is not known."""
    expires = account.token.expires
    return bool(account.credential.get("access_token")) and (expires is None or now < expires)


def begin(account: Account, ask: Ask, *, store: Store) -> asyncio.Task[Account]:
    """The renewal that is under way, begun if there is none."""
    task = _renewing.get(account.id)
    if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
        task = _renewing[account.id] = asyncio.create_task(renew(account, ask, store=store))
        task.add_done_callback(lambda done: ended(account, done))
    return task


def ended(account: Account, task: asyncio.Task[Account]) -> None:
    if _renewing.get(account.id) is task:
        del _renewing[account.id]
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _not_before[account.id] = time.time() + PAUSE
        reason = error.reason if isinstance(error, UpstreamError) else type(error).__name__
        logger.warning("Account %s: its access token could not be renewed (%s)", account.name, reason)


# -- between processes -----------------------------------------------------------------------------------


async def renew(account: Account, ask: Ask, *, store: Store) -> Account:
    """Get the next token, or take the one that another process has got meanwhile; raises `UpstreamError`."""
    me = str(uuid.uuid4())
    claim = await wait_for_claim(account, me)
    if claim.account is None:
        raise UpstreamFailed("The upstream account is gone.", reason="account_gone")
    if not claim.claimed:
        return hold(claim.account)
    account = claim.account
    try:
        status, body = await ask(account)
        got = read(account, status, body, now=time.time())
    except BaseException as error:
        reason = error.reason if isinstance(error, UpstreamError) else "interrupted"
        await asyncio.shield(sync_to_async(give_up)(account, by=me, failure=reason, now=time.time()))
        if isinstance(error, AccountRejected):
            await health.failed(store, account, "", error, last=False, now=time.time())
        raise
    hold(got)
    task = asyncio.create_task(keep(got))
    _keeping.add(task)
    task.add_done_callback(_keeping.discard)
    return got


async def wait_for_claim(account: Account, me: str) -> Claim:
    """Until this process may ask, or another has asked; raises what that one's asking came to."""
    while True:
        try:
            claim = await sync_to_async(look)(account, by=me, now=time.time())
        except Error as error:
            if not account.credential.get("refresh_token"):
                return Claim(account, claimed=True)  # twice does no harm where nothing is used up
            message = "The upstream account can't be signed in at the moment."
            raise UpstreamFailed(message, reason="token_row_away", rest="5xx") from error
        if claim.failure:
            raise error_of(claim.failure)
        if claim.claimed or claim.account is None or not is_due(claim.account, time.time()):
            return claim
        await asyncio.sleep(POLL)


def is_due(account: Account, now: float) -> bool:
    return not account.token.version or now >= account.token.due


def look(account: Account, *, by: str, now: float) -> Claim:
    """Lease the right to ask if the token is due and nobody has it: one conditional UPDATE decides."""
    try:
        row = models.Account.objects.alive().select_related("token").filter(pk=account.id).first()
        if row is None:
            return Claim(None, claimed=False)
        known = account_of(row)
        stored = getattr(row, "token", None) or models.AccountToken.objects.get_or_create(account_id=row.pk)[0]
        mine = stored.origin == known.token.origin
        if mine and not is_due(known, now):
            return Claim(known, claimed=False)
        if mine and stored.leased_until is not None and stored.leased_until > moment(now):
            return Claim(known, claimed=False, failure=stored.failure)
        return Claim(known, claimed=lease(known, by=by, now=now))
    finally:
        give_connection_back()


def lease(account: Account, *, by: str, now: float) -> bool:
    """Whether this process may ask, and nobody else for a while."""
    tokens = models.AccountToken.objects.filter(account_id=account.id)
    # Another credential than the last token was got by: nothing of that one counts any more.
    tokens.exclude(origin=account.token.origin).update(
        origin=account.token.origin, secret=b"", version=0, due_at=None, leased_until=None, failure=""
    )
    free = Q(leased_until=None) | Q(leased_until__lte=moment(now))
    due = Q(version=0) | Q(due_at=None) | Q(due_at__lte=moment(now))
    taken = tokens.filter(free, due).update(leased_by=by, leased_until=moment(now + LEASE), failure="")
    return taken == 1


def give_up(account: Account, *, by: str, failure: str, now: float) -> None:
    """Let the lease go after a while: who asks at once gets the same answer."""
    try:
        mine = models.AccountToken.objects.filter(account_id=account.id, leased_by=by)
        mine.update(leased_until=moment(now + PAUSE), failure=failure[:40])
    except Error as error:
        logger.warning("Account %s: the lease on its token runs on (%s)", account.name, type(error).__name__)
    finally:
        give_connection_back()


async def keep(account: Account) -> None:
    """Store the token; tries again while the database is away, because the old refresh token may be spent."""
    for attempt in range(STORE_TRIES):
        try:
            await sync_to_async(store_token)(account)
            return
        except Error as error:
            logger.error("Account %s: its new token could not be stored (%s)", account.name, type(error).__name__)
            await asyncio.sleep(attempt + 1)


def store_token(account: Account) -> None:
    state = account.token
    names = ("access_token", "refresh_token")
    secret = {name: account.credential[name] for name in names if account.credential.get(name)}
    try:
        models.AccountToken.objects.filter(account_id=account.id, origin=state.origin).update(
            secret=encrypt(secret),
            version=state.version,
            issued_at=moment(state.issued),
            due_at=moment(state.due),
            expires_at=moment(state.expires or state.issued),
            leased_by="",
            leased_until=None,
            failure="",
        )
    finally:
        give_connection_back()


def make_void(account: Account, *, now: float) -> None:
    """End a token before its time, unless another process has replaced it already."""
    try:
        rows = models.AccountToken.objects.filter(account_id=account.id, version=account.token.version)
        rows.update(due_at=moment(now), expires_at=moment(now))
    finally:
        give_connection_back()


def hold(account: Account) -> Account:
    _held[account.id] = account
    _not_before.pop(account.id, None)
    return account


# -- what the token server said ---------------------------------------------------------------------------


def read(account: Account, status: int, body: bytes, *, now: float) -> Account:
    """The account with the token of this answer; raises `UpstreamError`, whose message has nothing of the body."""
    if status in REJECTED:
        raise error_of("credential", status=status)
    if status == 429:
        raise error_of("token_429", status=status)
    try:
        answer = msgspec.json.decode(body, type=Answer) if status == 200 else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = None
    if answer is None or not answer.access_token.isprintable() or not answer.access_token.isascii():
        raise error_of("token_server", status=status)
    life = life_of(answer.expires_in)
    given = {"access_token": answer.access_token}
    if answer.refresh_token:
        given["refresh_token"] = answer.refresh_token
    state = TokenState(
        origin=account.token.origin,
        version=account.token.version + 1,
        issued=now,
        due=now + max(life - AHEAD, life * 0.8),
        expires=now + life,
    )
    return replace(account, credential={**account.credential, **given}, token=state)


def life_of(value: Any) -> float:
    """Seconds; some servers write them as text."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return USUAL_LIFE
    return seconds if math.isfinite(seconds) and seconds > 0 else USUAL_LIFE


def error_of(reason: str, *, status: int | None = None) -> UpstreamError:
    """What a failure to get a token means for the call and the account; also of another process's failure."""
    message = "The upstream account could not be signed in."
    if reason == "credential":
        return AccountRejected(message, reason=reason, rest="credential", status=status)
    if reason == "token_429":
        return UpstreamOverloaded(message, reason=reason, rest="429", status=status)
    return UpstreamFailed(message, reason=reason, rest="5xx", status=status)


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
