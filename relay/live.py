"""What goes on now: each relay publishes its calls in flight and those that ended, while somebody watches.

Nothing is computed or sent without a viewer. A viewer's page says every few seconds that it is there; each relay then
sends at most four pictures a second, and the consumer at most four messages to its viewer, whatever the load.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from channels.layers import get_channel_layer

from apikeys.admission import tokens_of
from relay.call import Record
from relay.flight import Flight

logger = logging.getLogger(__name__)

VIEWERS = "live.viewers"
RELAYS = "live.relays"
TICK_SECONDS = 0.25
WATCHED_SECONDS = 15.0
MAX_CALLS = 200
MAX_ENDED = 50


class LiveCall(TypedDict):
    id: str
    model: str
    key: str
    account: str
    seconds: float
    tokens: int
    stream: bool
    leaving: bool


class EndedCall(TypedDict):
    id: str
    model: str
    key: str
    account: str
    status: str
    tokens: int
    cost_nanos: int
    duration_ms: int


@dataclass
class Ended:
    """What ended since the last picture."""

    calls: deque[EndedCall] = field(default_factory=lambda: deque(maxlen=MAX_ENDED))
    count: int = 0
    tokens: int = 0
    cost_nanos: int = 0

    def add(self, record: Record) -> None:
        tokens = tokens_of(record)
        self.count += 1
        self.tokens += tokens
        self.cost_nanos += record.cost_nanos
        self.calls.append(
            EndedCall(
                id=record.id,
                model=record.requested_model,
                key=record.key_name,
                account=record.account_name,
                status=record.status,
                tokens=tokens,
                cost_nanos=record.cost_nanos,
                duration_ms=record.duration_ms or 0,
            )
        )


class Live:
    """One relay's side: `note` is called for every call that ends; everything else happens only while watched."""

    def __init__(self, flights: Mapping[str, Flight], *, process: str) -> None:
        self._flights = flights
        self._process = process
        self._ended = Ended()
        self._watched_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._listen()), loop.create_task(self._publish())]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    @property
    def watched(self) -> bool:
        return asyncio.get_running_loop().time() < self._watched_until

    def note(self, record: Record) -> None:
        """A call ended."""
        if self.watched:
            self._ended.add(record)

    async def _listen(self) -> None:
        """Hear viewers say that they are there; survives a channel layer that is away."""
        while True:
            try:
                layer = get_channel_layer()
                # The consumers' own prefix: channels-redis waits for one prefix in a process at a time.
                channel = await layer.new_channel()
                while True:
                    await layer.group_add(RELAYS, channel)
                    await layer.receive(channel)
                    self._watched_until = asyncio.get_running_loop().time() + WATCHED_SECONDS
            except asyncio.CancelledError:
                raise
            except Exception as error:
                logger.warning("The live page hears nothing: %s", type(error).__name__)
                await asyncio.sleep(5)

    async def _publish(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if not self.watched:
                self._ended = Ended()
                continue
            ended, self._ended = self._ended, Ended()
            try:
                await get_channel_layer().group_send(VIEWERS, {"type": "picture", "picture": self.picture(ended)})
            except Exception as error:
                logger.warning("The live page gets nothing: %s", type(error).__name__)
                await asyncio.sleep(5)

    def picture(self, ended: Ended) -> dict[str, Any]:
        """This process's calls in flight, oldest first, and what has ended since the last picture."""
        flights = list(self._flights.values())
        return {
            "process": self._process,
            "in_flight": len(flights),
            "calls": [live_call(flight) for flight in flights[:MAX_CALLS]],
            "ended": list(ended.calls),
            "ended_count": ended.count,
            "ended_tokens": ended.tokens,
            "ended_cost_nanos": ended.cost_nanos,
        }


def live_call(flight: Flight) -> LiveCall:
    usage = flight.meter.outcome().usage if flight.meter is not None else None
    return LiveCall(
        id=flight.call.id,
        model=flight.record.requested_model,
        key=flight.call.key.name,
        account=flight.account.name if flight.account is not None else "",
        seconds=round(flight.elapsed(), 1),
        tokens=(usage.output_tokens or 0) if usage is not None else 0,
        stream=flight.call.envelope.stream,
        leaving=flight.reply.client_left,
    )
