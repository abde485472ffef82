"""What one relay process holds open: journal, ledger, snapshots, shared state, upstream sessions, calls in flight.

Started lazily at the first request or by the server's lifespan (daphne sends none), once.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import gc
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import partial
from types import FrameType
from typing import Any

from django.conf import settings
from django.db import DatabaseError

from accounts import events, quota
from accounts import tokens as account_tokens
from accounts.snapshot import ACCOUNTS
from apikeys import admission, seeding
from apikeys.authentication import KEYS
from relay import metering, metrics, tokens
from relay.call import Record
from relay.errors import Interrupted
from relay.flight import Flight
from relay.journal import Journal
from relay.ledger import Ledger
from relay.live import Live
from relay.lock import RelayLock
from relay.prices import load_prices
from relay.pricing import PriceBook
from relay.providers import PROVIDERS
from relay.refusals import Refusals
from relay.state import Hold, Store, StoreAway, make_store
from relay.state.snapshot import Snapshot, SnapshotPoller
from relay.upstream import Timers, UpstreamClient

logger = logging.getLogger(__name__)

LEASE_SECONDS = 90.0
HOUSEKEEPING_SECONDS = 5.0
CATCH_UP_SECONDS = 10.0
SETTLE_SECONDS = 5.0
COMMIT_AGAIN_SECONDS = 0.1

PRICES: Snapshot[PriceBook] = Snapshot(("relay_price",), load_prices, empty=PriceBook())


class Runtime:
    """One for each process; bound to the event loop it was started on."""

    def __init__(self) -> None:
        self.timers = Timers(
            connect=settings.RELAY_CONNECT_TIMEOUT,
            first_byte=settings.RELAY_FIRST_BYTE_TIMEOUT,
            idle=settings.RELAY_IDLE_TIMEOUT,
            total=settings.RELAY_TOTAL_TIMEOUT,
        )
        self.keep_alive_after: float = settings.RELAY_KEEP_ALIVE_AFTER
        self.commit_after: float = settings.RELAY_COMMIT_AFTER
        self.max_attempts: int = settings.RELAY_MAX_ATTEMPTS
        self.max_draining: int = settings.RELAY_MAX_DRAINING
        self.drain_seconds: float = settings.RELAY_DRAIN_SECONDS
        self.draining = 0
        self.stopping = False
        self._end = 0.0  # when stopping: the loop's time at which calls are interrupted
        self.flights: dict[str, Flight] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._housekeeper: asyncio.Task[None] | None = None
        self.prices = PRICES
        self.store: Store = make_store(settings.REDIS_URL)
        self.client = UpstreamClient(timers=self.timers)
        self.refusals = Refusals(self.write_refusal)
        self.lock = RelayLock(settings.RELAY_DATA_DIR, shared=bool(settings.REDIS_URL))
        self.journal = Journal(settings.RELAY_DATA_DIR / "journal")
        self.ledger = Ledger(self.journal, interval=settings.RELAY_LEDGER_INTERVAL, on_recovered=self.settle_recovered)
        self.poller = SnapshotPoller([KEYS, ACCOUNTS, PRICES], interval=settings.RELAY_SNAPSHOT_POLL)
        self.live = Live(self.flights, process=self.journal.folder.name)
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Wait until everything is open; the first caller opens it."""
        if self._started is None:
            self._started = self._loop.create_task(self._start())
        if not self._started.done() or self._started.exception():
            await asyncio.shield(self._started)

    async def _start(self) -> None:
        self.lock.take()
        self.journal.start()
        await asyncio.to_thread(self.poller.load_all)
        self.poller.start()
        self.ledger.start()
        events.EVENTS.start()
        # What dead processes had booked belongs to the counters: recover first, then seed, then admit.
        await asyncio.to_thread(self.ledger.caught_up.wait, CATCH_UP_SECONDS)
        await self._seed()
        await events.restore_rests(self.store, now=time.time())
        self.live.start()
        self._housekeeper = self._loop.create_task(self._housekeeping())
        atexit.register(self._stop_threads)
        # 52 -> 12 ms at p99: what start-up made is never collected again (docs/performance.md).
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 50, 100)

    async def _seed(self) -> None:
        """Bring the counters up; where ledger or store are away, each limit is seeded before it first admits."""
        try:
            await seeding.ensure_seeded(self.store, KEYS.current, now=time.time())
            await quota.ensure_seeded(self.store, ACCOUNTS.current, now=time.time())
            await seeding.look_again(self.store, now=time.time())
        except (DatabaseError, StoreAway) as error:
            logger.warning("Limits are not seeded yet: %s", type(error).__name__)

    def hold(self, flight: Flight, task: asyncio.Task[None]) -> None:
        """Keep a call until it has ended, whoever reads its answer."""
        self.flights[flight.call.id] = flight
        self._calls.add(task)
        task.add_done_callback(lambda done: self._release(flight, done))
        if flight.call.envelope.stream:
            timer = self._loop.call_later(self.commit_after, self._commit_late, flight)
            flight.on_settled.append(timer.cancel)

    def _release(self, flight: Flight, task: asyncio.Task[None]) -> None:
        self.flights.pop(flight.call.id, None)
        self._calls.discard(task)
        if flight.draining:
            self.draining -= 1
        if task.cancelled():
            flight.end()  # before its first step: nothing was admitted, and nobody else lets its client go
        elif (error := task.exception()) is not None:
            logger.error("Call %s ended without its record", flight.call.id, exc_info=error)

    def _commit_late(self, flight: Flight) -> None:
        """A stream without its first event answers 200 with keep-alives; proxies in between give up otherwise."""
        opened = flight.opened
        if flight.reply.started or flight.reply.ended:
            return
        if opened is None or not opened.done():  # no byte before the open entry is on disk
            self._loop.call_later(COMMIT_AGAIN_SECONDS, self._commit_late, flight)
            return
        if opened.exception() is not None:
            return
        from relay.answer import SSE_HEADERS, own_headers
        from relay.reply import Head

        kind = (b"content-type", flight.dialect.stream_type)
        flight.reply.start(Head(200, (kind, *SSE_HEADERS[1:], *own_headers(flight))))
        flight.reply.keep_alive(flight.dialect.keep_alive, after=self.keep_alive_after, at_once=True)

    # -- what steps report ---------------------------------------------------------------------------

    def note_progress(self, flight: Flight) -> None:
        """Put the counts so far into the journal."""
        if flight.meter is None or flight.account is None:
            return
        record = copy.copy(flight.record)
        record.account_id, record.account_name = flight.account.id, flight.account.name
        record.provider, record.upstream_model = flight.account.provider, flight.model
        metering.book(
            record,
            flight.meter.outcome(),
            prices=self.prices.current,
            provider=record.provider,
            now=time.time(),
            request_bytes=flight.call.body_bytes,
            place=PROVIDERS[flight.account.kind].place(flight.call, flight.account),
        )
        self.journal.progress(record)

    def write_refusal(self, record: Record) -> None:
        """Journal a refused call; nobody waits for it."""
        self.journal.close(record).add_done_callback(lambda done: done.cancelled() or done.exception())

    def settle_recovered(self, record: Record, holds: Sequence[Hold]) -> None:
        """A dead process's call was booked: settle what it had reserved. Called from the ledger's thread, which keeps
        the dead process's folder open, and asks again, where this fails."""

        async def settle() -> None:
            now = time.time()
            await admission.settle_recovered(self.store, record, holds, now=now)
            await quota.settle_recovered(record, accounts=ACCOUNTS.current, store=self.store, now=now)

        asyncio.run_coroutine_threadsafe(settle(), self._loop).result(timeout=SETTLE_SECONDS)

    async def _housekeeping(self) -> None:
        """Renew the leases of calls in flight, write counted refusals, refresh gauges."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            try:
                held = [flight.reservation for flight in self.flights.values() if flight.reservation is not None]
                others = [rule for account in ACCOUNTS.current for rule in account.limits]
                await admission.renew(self.store, held, now=time.time(), lease=LEASE_SECONDS, others=others)
                tokens.look_ahead(self)
                await asyncio.to_thread(self.refusals.flush)
            except (DatabaseError, StoreAway) as error:
                logger.warning("Housekeeping waits for the database or Redis: %s", type(error).__name__)
            except Exception:
                logger.exception("Housekeeping failed; trying again in %s s", HOUSEKEEPING_SECONDS)
            metrics.IN_FLIGHT.set(len(self.flights))
            metrics.DRAINING.set(self.draining)
            metrics.TASKS.set(len(asyncio.all_tasks()))
            metrics.WAITING.set(self.journal.waiting)
            metrics.OLDEST.set(self.journal.oldest_age)

    # -- the end -------------------------------------------------------------------------------------

    def hear_signals(self) -> None:
        """Close the doors at SIGTERM and SIGINT; the last calls end a second before the server cuts its connections."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            server = signal.getsignal(number)
            if callable(server):
                signal.signal(number, partial(self._on_signal, server))

    def _on_signal(self, server: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
        within = max(0.0, settings.RELAY_SHUTDOWN_SECONDS - 1)
        self._loop.call_soon_threadsafe(partial(self.close_doors, within=within))
        server(number, frame)

    def close_doors(self, *, within: float) -> None:
        """Say so in `/readyz` (the server takes no more connections), and interrupt what still runs after `within`
        seconds: each client is told, and its record says why, before the server cuts them off. Idempotent."""
        if not self.stopping:
            self.stopping = True
            self._end = self._loop.time() + within
            self._loop.call_at(self._end, self._interrupt_all)

    def _interrupt_all(self) -> None:
        for flight in list(self.flights.values()):
            flight.watch.interrupt(Interrupted("Baton is restarting.", retry_after=1))

    async def stop(self, *, within: float) -> None:
        """Drain the calls in flight for at most `within` seconds since the doors were closed, interrupt the rest, ship
        what is booked."""
        self.close_doors(within=within)
        if self._calls:
            await asyncio.wait(list(self._calls), timeout=max(0.0, self._end - self._loop.time()))
        self._interrupt_all()
        if self._calls:
            await asyncio.wait(list(self._calls), timeout=5)
        self.live.stop()
        if self._housekeeper is not None:
            self._housekeeper.cancel()
        await asyncio.to_thread(self.refusals.flush)
        await account_tokens.finish(within=5)
        await self.client.close()
        await asyncio.to_thread(self._stop_threads)
        await self.store.close()
        atexit.unregister(self._stop_threads)

    def _stop_threads(self) -> None:
        self.poller.stop()
        events.EVENTS.stop()
        self.journal.stop()
        self.ledger.stop()
        self.lock.release()


_runtime: Runtime | None = None


async def get_runtime() -> Runtime:
    """The process's runtime, opened."""
    global _runtime
    if _runtime is None:
        _runtime = Runtime()
    await _runtime.ready()
    return _runtime


def current_runtime() -> Runtime | None:
    """The runtime if this process has one: only a relay does."""
    return _runtime


Message = MutableMapping[str, Any]


async def lifespan(receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    """ASGI lifespan: open everything before the first request, drain at the end."""
    global _runtime
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            try:
                run = await get_runtime()
                run.hear_signals()
            except Exception as error:
                logger.exception("Baton could not start")
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            if _runtime is not None:
                await _runtime.stop(within=settings.RELAY_SHUTDOWN_SECONDS)
                _runtime = None
            await send({"type": "lifespan.shutdown.complete"})
            return
