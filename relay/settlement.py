"""The end of every call: what it used, what it cost, the record on disk, and only then the last bytes."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from accounts import health, quota, selection
from accounts.selection import UNBOUNDED
from apikeys import admission
from relay import metering, metrics
from relay.answer import Last, own_headers
from relay.call import CallStatus, Endpoint, Key, Outcome, Record, Usage, UsageSource
from relay.dialects import DIALECTS
from relay.errors import Interrupted, InvalidRequest, NoAccountAvailable, NotRecordable, RelayError, UpstreamError
from relay.flight import ClientLeft, Flight, clean
from relay.providers import PROVIDERS
from relay.reply import Head

if TYPE_CHECKING:
    from relay.runtime import Runtime

logger = logging.getLogger(__name__)

NOTHING = Outcome(usage=Usage(), source=UsageSource.NONE)
End = RelayError | ClientLeft | None


def status_of(error: End, *, in_band: str, client_left: bool) -> CallStatus:
    """How a call ended, in one word."""
    if isinstance(error, ClientLeft):
        return CallStatus.CLIENT_DISCONNECTED
    if isinstance(error, (Interrupted, NotRecordable)):
        return CallStatus.INTERRUPTED
    if isinstance(error, UpstreamError) or (error is None and in_band):
        return CallStatus.UPSTREAM_ERROR
    if isinstance(error, NoAccountAvailable) or (isinstance(error, InvalidRequest) and error.reason == UNBOUNDED):
        return CallStatus.REFUSED
    if error is not None:
        return CallStatus.INTERRUPTED
    return CallStatus.CLIENT_DISCONNECTED if client_left else CallStatus.OK


async def settle(flight: Flight, error: End) -> End:
    """Book the call, put its record on disk and settle its limits; returns how it ended for the client.

    A record that can't be written turns a success into `NotRecordable`; its open entry stands, recovery books it.
    """
    if flight.reservation is None:
        return error
    fill_record(flight, error)
    written = flight.run.journal.close(flight.record)
    try:
        # While the disk works. What fails here changes no record: counters are a cache of the ledger.
        await settle_limits(flight)
        await settle_account(flight, error)
        await note_owner(flight)
    except Exception:
        logger.exception("Call %s is booked, but its limits or its account are not settled", flight.call.id)
    try:
        await written
    except OSError:
        logger.exception("The record of call %s could not be written", flight.call.id)
        return error or NotRecordable("This relay can't record calls at the moment.", retry_after=5)
    return error


async def settle_limits(flight: Flight) -> None:
    """Replace what was reserved by what was used, give the slot back, and count the end."""
    run, record = flight.run, flight.record
    assert flight.reservation is not None
    seats = seats_of(flight)
    own = admission.settlement_of(flight.reservation, record, seats=seats)
    accounts = quota.settlements(flight.call, record, now=own.now)
    if own.holds or seats or accounts:
        await run.store.settle(own, *accounts)
    metrics.count(record)
    run.live.note(record)


def seats_of(flight: Flight) -> tuple[int, ...]:
    """The accounts whose slots the call may hold: that of its attempt, and the one that it got with its limits, which
    it holds before there is any attempt."""
    seen = flight.reservation.seen if flight.reservation is not None else None
    held = {seen.taken if seen is not None else 0, flight.seat.id if flight.seat is not None else 0}
    return tuple(sorted(held - {0}))


def fill_record(flight: Flight, error: End) -> None:
    """What is known at the end, on the record."""
    record, account, meter = flight.record, flight.account, flight.meter
    outcome = meter.outcome() if meter is not None and flight.opened is not None else NOTHING
    in_band = meter.error if meter is not None else ""
    record.status = status_of(error, in_band=in_band, client_left=flight.reply.client_left)
    record.duration_ms = round(flight.elapsed() * 1000)
    if flight.first_token is not None:
        record.time_to_first_token_ms = round(flight.first_token * 1000)
    if isinstance(error, RelayError):
        record.error = clean(error.reason, 200)
        record.http_status = flight.reply.status or client_status(flight, error)
    else:
        record.error = clean(in_band, 200) if error is None else "client_disconnected"
        record.http_status = flight.reply.status or (flight.upstream_status if error is None else None)
    if flight.ranking is not None:
        record.candidates = selection.candidates(flight.ranking.reasons, taken=account.name if account else "")
    if account is None:
        return
    record.account_id, record.account_name, record.provider = account.id, account.name, account.provider
    record.upstream_model = flight.model
    if isinstance(error, UpstreamError) and not flight.forwarded:
        outcome = NOTHING  # nothing of the model's reached anybody; the vendors bill no failed call
    metering.book(
        record,
        outcome,
        prices=flight.run.prices.current,
        provider=account.provider,
        now=time.time(),
        request_bytes=flight.call.body_bytes,
        place=PROVIDERS[account.kind].place(flight.call, account),
    )


async def note_owner(flight: Flight) -> None:
    """Later calls that name this answer go to the account that holds it, before the last bytes are out."""
    call, record = flight.call, flight.record
    if (call.envelope.stored or call.envelope.tied) and record.response_id and record.account_id is not None:
        await flight.run.store.set_response_owner(record.response_id, call.key.id, record.account_id, now=time.time())


def client_status(flight: Flight, error: RelayError) -> int:
    return flight.dialect.render_error(error, flight.call.id).status


async def settle_account(flight: Flight, error: End) -> None:
    """What the end means for the account: a success ends its troubles, an error inside the stream is one."""
    run, account, meter = flight.run, flight.account, flight.meter
    if account is None or meter is None:
        return
    answered = error is None or (isinstance(error, ClientLeft) and flight.forwarded)
    if answered and not meter.error:
        await health.succeeded(run.store, account, flight.model, now=time.time())
    elif error is None:
        # As if it had come with a status of its own: what the caller did wrong rests nothing.
        status = flight.dialect.in_band_status(meter.error)
        failed = PROVIDERS[account.kind].classify(status, (), meter.error_body, now=time.time())
        last = flight.ranking is not None and flight.ranking.accounts[-1] is account
        await health.failed(run.store, account, flight.model, failed, last=last, now=time.time())


async def finish(flight: Flight, error: End, last: Last | None) -> None:
    """Release the last bytes, or say in the client's dialect what went wrong."""
    reply = flight.reply
    try:
        if isinstance(error, RelayError):
            await answer_error(flight, error)
        elif last is not None and last.head is not None:
            reply.start(last.head)
        elif last is not None:
            await reply.put(last.block)
    finally:
        flight.end()


async def answer_error(flight: Flight, error: RelayError) -> None:
    """The vendor's native error: a whole answer, or, once the stream has begun, its error event."""
    reply, call_id = flight.reply, flight.call.id
    if reply.started:
        dialect, meter = flight.dialect, flight.meter
        begun = meter is not None and flight.forwarded
        if begun and meter is not None:
            await reply.put(dialect.last_event(error, call_id, meter=meter))
        else:
            await reply.put(dialect.error_event(error, call_id))
        return
    answer = flight.dialect.render_error(error, call_id)
    reply.start(Head(answer.status, (*answer.headers, *own_headers(flight)), answer.body))


async def refuse(flight: Flight, error: RelayError) -> None:
    """A call of a known key that may not go: a `refused` record with the reason, the first ten a minute."""
    record = flight.record
    if flight.reservation is not None:
        await admission.release(flight.run.store, flight.reservation, now=time.time(), counted=False)
    flight.rates = error.rates or flight.rates
    record.candidates = selection.candidates(error.candidates)
    record.status, record.error = CallStatus.REFUSED.value, clean(error.reason, 200)
    record.http_status = client_status(flight, error)
    record.duration_ms = round(flight.elapsed() * 1000)
    metrics.count(record)
    flight.run.live.note(record)
    flight.run.refusals.note(record, now=time.time())
    try:
        await answer_error(flight, error)
    finally:
        flight.end()


def refuse_early(
    run: Runtime, key: Key, endpoint: Endpoint, error: RelayError, *, call_id: str, created_at: float
) -> None:
    """A known key's request that never became a call: a body that can't be read, a model it may not use."""
    record = Record(
        id=call_id,
        created_at=created_at,
        key_id=key.id or None,
        key_name=key.name,
        team_id=key.team_id,
        team_name=key.team,
        dialect=endpoint.dialect,
        endpoint=endpoint.name,
        requested_model=clean(error.model, 200),
        status=CallStatus.REFUSED.value,
        http_status=DIALECTS[endpoint.dialect].render_error(error, call_id).status,
        error=clean(error.reason, 200),
        tags=dict(key.tags),
    )
    metrics.count(record)
    run.refusals.note(record, now=created_at)
