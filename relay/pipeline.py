"""THE STORY of a call, in one screen: admit, pick accounts, ask upstream, pass the answer on, settle."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from accounts import health, selection
from accounts.lineup import Lineup
from accounts.quota import NotTaken
from accounts.selection import Ranking
from accounts.snapshot import ACCOUNTS
from apikeys import admission
from relay import metering, tokens
from relay.answer import Last, pass_answer_on
from relay.call import Account, Call, Demand
from relay.errors import (
    NoAccountAvailable,
    NotRecordable,
    RelayError,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamUnreachable,
    let_frames_go,
)
from relay.flight import ClientLeft, Flight, Watch, as_relay_error, opening_record
from relay.providers import PROVIDERS
from relay.providers.base import UpstreamRequest
from relay.reply import Reply
from relay.runtime import Runtime
from relay.settlement import finish, refuse, settle
from relay.state.base import StoreAway

logger = logging.getLogger(__name__)

STALE_SECONDS = 1.0
SOON = 5.0  # seconds
OVERLOADED = frozenset({429, 503, 529})


def launch(run: Runtime, call: Call) -> Flight:
    """Start the call as a task of its own; what it answers comes through the flight's reply."""
    flight = Flight(run, call, Reply(), opening_record(call))
    task = asyncio.get_running_loop().create_task(carry(flight))
    flight.watch = Watch(task, total=run.timers.total)
    flight.reply.on_held = flight.watch.hold
    flight.reply.on_client_left = partial(client_left, flight)
    run.hold(flight, task)
    return flight


async def carry(flight: Flight) -> None:
    """Carry one call; leaves exactly one record, however it ends."""
    error: RelayError | ClientLeft | None = None
    last: Last | None = None
    try:
        if not await admitted(flight):
            return
        assert flight.ranking is not None
        last = await fly(flight, flight.ranking)
    except RelayError as failed:
        error = failed
    except asyncio.CancelledError as cancelled:
        why = flight.gone or flight.watch.take() or cancelled
        error = why if isinstance(why, ClientLeft) else as_relay_error(why)
    except Exception as failed:
        logger.exception("Call %s failed inside Baton", flight.call.id)
        error = as_relay_error(failed)
    flight.watch.stop()
    try:
        error = await settle(flight, error)
    except Exception as failed:
        logger.exception("Call %s could not be settled; its open entry stands", flight.call.id)
        error = as_relay_error(failed)
    try:
        await finish(flight, error, last)
    finally:
        let_frames_go(error)
        error = None


async def admitted(flight: Flight) -> bool:
    """Reserve the limits, rank the accounts, open the record; False = the call may not go and was refused."""
    run, call = flight.run, flight.call
    try:
        if not run.journal.healthy:
            raise NotRecordable("This relay can't record calls at the moment.", retry_after=5)
        found = selection.able(call, ACCOUNTS.current)
        now = call.created_at
        use = partial(demand, run, call, found)
        asked = selection.question(call, found, now=now)
        reservation = await admission.reserve(run.store, call, use, now=now, question=asked)
        flight.reservation, flight.rates = reservation, admission.rates_of(reservation)
        flight.ranking = await selection.rank(call, found, store=run.store, now=now, seen=reservation.seen)
    except RelayError as error:
        flight.watch.stop()
        await refuse(flight, error)
        return False
    flight.opened = run.journal.open(flight.record, holds=flight.reservation.holds)
    return True


def demand(run: Runtime, call: Call, found: Lineup) -> Demand:
    """What the call may use at most, at the dearest account that could serve it."""
    return demand_on(run, call, selection.eligible(found))


def demand_on(run: Runtime, call: Call, accounts: list[Account]) -> Demand:
    prices = run.prices.current
    model = call.envelope.model
    asked = {(account.provider, PROVIDERS[account.kind].upstream_model(account, model)) for account in accounts}
    demands = [metering.demand(call, prices=prices, provider=provider, model=name) for provider, name in asked]
    unbounded = next((item for item in demands if item.unbounded), None)
    return unbounded or max(demands, key=lambda item: (item.worst_cost, item.cost))


async def fly(flight: Flight, ranking: Ranking) -> Last:
    """Try the accounts, best first, until one has answered; returns the last bytes, which wait for the record."""
    run, call = flight.run, flight.call
    accounts = ranking.accounts[: run.max_attempts]
    failures: list[UpstreamError] = []
    outs: list[NotTaken] = []
    away: StoreAway | None = None
    for position, account in enumerate(accounts):
        use = partial(demand_on, run, call, [account])
        flight.seat = account  # before it is taken: what is cut off meanwhile gives it back
        try:
            out = await selection.take(call, account, store=run.store, now=time.time(), ranking=ranking, demand=use)
        except StoreAway as error:  # another account may have nothing that must be counted
            away, out = error, selection.UNCOUNTED
            await selection.free(call, account, store=run.store)
        if out is not None:
            flight.seat = None
            outs.append(out)
            ranking = flight.ranking = selection.passed_over(ranking, account, out)
            continue
        try:
            return await attempt(flight, account)
        except UpstreamError as error:
            let_frames_go(error)
            failures.append(error)
            last_one = position == len(ranking.accounts) - 1
            await health.failed(run.store, account, flight.model, error, last=last_one, now=time.time())
            if flight.forwarded or not error.try_next_account:
                raise with_wait(error) from None
            if not last_one:
                await selection.free(call, account, store=run.store)
                flight.seat = None
    if failures:
        raise worst(failures)
    if away is not None:
        raise NoAccountAvailable(away.message, retry_after=away.retry_after, reason=away.reason)
    raise selection.none_took(ranking, outs, now=time.time())


async def attempt(flight: Flight, account: Account) -> Last:
    """One try on one account, from opening it to the last bytes. Raises `UpstreamError`."""
    provider = PROVIDERS[account.kind]
    flight.account = account
    flight.model = provider.upstream_model(account, flight.call.envelope.model)
    flight.upstream_status = None
    since = time.perf_counter()
    error: UpstreamError | None = None
    try:
        account = await tokens.fresh(flight.run, account, watch=flight.watch)
        try:
            return await ask(flight, account, provider.request(flight.call, account, flight.model))
        except UpstreamError as failed:
            again = await once_more(flight, account, failed, seconds=time.perf_counter() - since)
            if again is None:
                raise
            return await ask(flight, account, again)
    except asyncio.CancelledError:
        why = flight.watch.take()
        error = why if isinstance(why, UpstreamError) else None
        flight.gone = why if error is None else None
        if error is None:
            raise
        raise error from None
    except UpstreamError as failed:
        error = failed
        raise
    finally:
        flight.tried(account, since=since, error=error)
        error = None  # its traceback holds this frame


async def ask(flight: Flight, account: Account, request: UpstreamRequest) -> Last:
    """Send one request and pass its answer on; closes what it opens."""
    run = flight.run
    flight.meter, flight.upstream_status = flight.dialect.meter(flight.call.endpoint), None
    flight.watch.expect("first_byte", run.timers.first_byte)
    upstream = await run.client.open(request, proxy=account.proxy)
    flight.upstream_status, dropped = upstream.status, request.dropped
    del request  # an open stream keeps no request in memory
    try:
        return await pass_answer_on(flight, upstream, account, dropped=dropped)
    finally:
        await upstream.close()


async def once_more(
    flight: Flight, account: Account, error: UpstreamError, *, seconds: float
) -> UpstreamRequest | None:
    """The request to send to the same account again, where the failure was none of its own: the upstream had closed a
    kept connection before it read anything (it shows at once), has revoked an access token, or rejects what Baton had
    added. None = it stands."""
    if flight.forwarded:
        return None
    provider = PROVIDERS[account.kind]
    signed_in = await tokens.again(flight.run, account, error, watch=flight.watch)
    if signed_in is not None:
        return provider.request(flight.call, signed_in, flight.model)
    if error.reason == "disconnected" and seconds < STALE_SECONDS:
        return provider.request(flight.call, account, flight.model)
    return provider.without_additions(flight.call, account, error)


def worst(failures: list[UpstreamError]) -> UpstreamError:
    """The failure to tell when all accounts failed: the overload that may be over first, before what no wait helps."""
    return min(
        map(with_wait, failures),
        key=lambda error: (
            not isinstance(error, UpstreamOverloaded),
            error.retry_after or 0.0,
            isinstance(error, UpstreamUnreachable),
        ),
    )


def with_wait(error: UpstreamError) -> UpstreamError:
    """An overload that passes on as it came tells how long to wait. Where its end was not named, that is soon: the last
    account left does not rest on a guess, so the next call is tried."""
    passes = isinstance(error, (UpstreamOverloaded, UpstreamRejected)) and error.upstream_status in OVERLOADED
    if passes and error.retry_after is None:
        error.retry_after = SOON
    return error


def client_left(flight: Flight) -> None:
    """A stream on `abort` stops at once; one on `drain`, and every non-streamed call, runs on, capped in number."""
    run = flight.run
    aborts = flight.call.envelope.stream and (flight.account is None or flight.account.on_disconnect == "abort")
    if aborts or run.draining >= run.max_draining:
        flight.watch.interrupt(ClientLeft())
        return
    flight.draining = True
    run.draining += 1
    timer = asyncio.get_running_loop().call_later(run.drain_seconds, flight.watch.interrupt, ClientLeft())
    flight.on_settled.append(timer.cancel)
