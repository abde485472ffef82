"""A call in flight: what its steps share, and the watch that interrupts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from accounts.selection import Ranking
from apikeys.admission import Reservation
from relay.call import Account, Attempt, Call, RateLimit, Record
from relay.dialects import DIALECTS
from relay.dialects.base import Dialect, Meter
from relay.errors import RelayError, UpstreamError, UpstreamTimeout
from relay.reply import Reply

if TYPE_CHECKING:
    from relay.runtime import Runtime


# A timer that rings early and looks again costs less than one that is set anew at each step of a call.
LOOK_SECONDS = 30.0


class ClientLeft(Exception):
    """The client has gone and nobody waits for the answer."""


class Watch:
    """The timers of a call, in one lazily moved loop timer, and everything else that may interrupt its task.

    `touch` costs one clock read for each event; a timer moved for each event would cost ten times that.
    """

    def __init__(self, task: asyncio.Task[None], *, total: float) -> None:
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + total
        self._last = 0.0
        self._allowed = 0.0
        self._waiting_for = ""
        self._rings = 0.0  # kept here: where the time is over, uvloop's handle does not tell it
        self._timer: asyncio.Handle | None = None
        self._settling = False
        self._held = False
        self.why: Exception | None = None

    def expect(self, name: str, seconds: float) -> None:
        """From now on the upstream has `seconds` for its next sign of life."""
        self._waiting_for, self._allowed = name, seconds
        self._last = self._loop.time()
        if self._timer is not None and self._rings > self._deadline():
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._wait()

    def _wait(self) -> None:
        self._rings = min(self._deadline(), self._loop.time() + LOOK_SECONDS)
        self._timer = self._loop.call_at(self._rings, self._check)

    def touch(self) -> float:
        """The upstream said something; returns the loop's time."""
        self._last = self._loop.time()
        return self._last

    def hold(self, held: bool) -> None:
        """The client lets the upstream wait, or no longer does: its time is not the upstream's silence."""
        self._held = held
        if not (held or self._settling):
            self.expect(self._waiting_for, self._allowed)

    def _deadline(self) -> float:
        return self._end if self._held else min(self._last + self._allowed, self._end)

    def _check(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now < self._deadline():
            self._wait()
        elif now >= self._end:
            late = UpstreamTimeout("The call took longer than this relay allows.", reason="total_timeout")
            late.try_next_account = False
            self.interrupt(late)
        else:
            reason = f"{self._waiting_for}_timeout"
            self.interrupt(UpstreamTimeout("The upstream was silent for too long.", reason=reason, rest="timeout"))

    def interrupt(self, why: Exception) -> None:
        """Stop the call's task where it waits, unless it settles already; the first reason counts."""
        if self.why is None and not self._settling:
            self.why = why
            self._task.cancel()

    def take(self) -> Exception | None:
        """The reason of the cancellation that was just caught, None if it was not ours."""
        why, self.why = self.why, None
        if why is not None:
            self._task.uncancel()
        return why

    def stop(self) -> None:
        """Nothing interrupts any more: the call settles."""
        self._settling = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@dataclass
class Flight:
    """One admitted or refused call of a known key, from its first step to its record."""

    run: Runtime
    call: Call
    reply: Reply
    record: Record
    dialect: Dialect = field(init=False)
    started: float = field(default_factory=time.perf_counter)
    watch: Watch = field(init=False)
    reservation: Reservation | None = None
    opened: asyncio.Future[None] | None = None  # the journal's open entry is on disk
    account: Account | None = None  # of the attempt under way, then of the answer
    model: str = ""  # as the upstream is asked for it
    upstream_status: int | None = None
    ranking: Ranking | None = None
    seat: Account | None = None  # whose slot the call has
    rates: tuple[RateLimit, ...] = ()  # told in the answer's headers
    gone: Exception | None = None  # why the task was interrupted, where that was not the upstream's silence
    meter: Meter | None = None
    forwarded: bool = False  # an upstream byte went out: no other account any more
    draining: bool = False
    first_token: float | None = None  # seconds after the start
    last_progress: float = 0.0
    on_settled: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dialect = DIALECTS[self.call.endpoint.dialect].spoken(self.call)

    def end(self) -> None:
        """All of the answer is handed over: no timer holds the call any more, and its client may leave."""
        self.reply.end()
        for callback in self.on_settled:
            callback()

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def tried(self, account: Account, *, since: float, error: UpstreamError | None) -> None:
        """Put one attempt on the record."""
        reason = error.reason if error is not None else self.meter.error if self.meter is not None else ""
        if self.gone is not None:
            reason = getattr(self.gone, "reason", "") or "client_disconnected"
        status = error.upstream_status if error is not None and error.upstream_status else self.upstream_status
        duration = round((time.perf_counter() - since) * 1000)
        self.record.attempts = [*self.record.attempts, Attempt(account.name, status, reason, duration)]


def opening_record(call: Call) -> Record:
    """The record as it would be if the process died now."""
    envelope, key = call.envelope, call.key
    return Record(
        id=call.id,
        created_at=call.created_at,
        key_id=key.id or None,
        key_name=key.name,
        team_id=key.team_id,
        team_name=key.team,
        dialect=call.endpoint.dialect,
        endpoint=call.endpoint.name,
        requested_model=clean(envelope.model, 200),
        stream=envelope.stream,
        origin=call.origin,
        session=clean(envelope.session, 200),
        end_user=clean(envelope.end_user, 200),
        user_agent=clean(header(call, b"user-agent"), 300),
        tags={**key.tags, **call.tags},
    )


def clean(text: str, length: int) -> str:
    """Client text as every database takes it: no NUL, no lone surrogates, not too long."""
    if text.isascii() and "\x00" not in text:
        return text[:length]
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")[:length]


def header(call: Call, name: bytes) -> str:
    return next((value.decode("latin1") for key, value in call.headers if key == name), "")


def as_relay_error(error: BaseException) -> RelayError:
    """Any failure of a step as an error that a client can be told."""
    if isinstance(error, RelayError):
        return error
    return RelayError("Baton failed to carry this call.", reason=f"internal:{type(error).__name__}")
