"""The live page's WebSocket: staff only, checked on the socket; at most four messages a second whatever the load."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

from asgiref.sync import sync_to_async
from channels.auth import get_user
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.db import DatabaseError

from relay.live import MAX_CALLS, MAX_ENDED, RELAYS, TICK_SECONDS, VIEWERS

FORBIDDEN = 4403
HELLO_SECONDS = 5.0
# A relay that has not sent for so long is gone, and its calls with it.
FORGET_SECONDS = 3.0


class LiveConsumer(AsyncJsonWebsocketConsumer):  # type: ignore[misc]
    """One viewer. Keeps each relay's newest picture and sends them merged."""

    async def connect(self) -> None:
        self.pictures: dict[str, tuple[float, dict[str, Any]]] = {}
        self.ended: list[dict[str, Any]] = []
        self.counts = {"calls": 0, "tokens": 0, "cost_nanos": 0}
        self.task: asyncio.Task[None] | None = None
        self.guard: asyncio.Task[None] | None = None
        await self.accept()
        if not await may_watch(self.scope.get("user")):
            await self.close(FORBIDDEN)
            return
        await self.channel_layer.group_add(VIEWERS, self.channel_name)
        self.task = asyncio.get_running_loop().create_task(self._tick())
        self.guard = asyncio.get_running_loop().create_task(self._ask_again(self.task))

    async def disconnect(self, code: int) -> None:
        if self.task is not None and self.guard is not None:
            self.task.cancel()
            self.guard.cancel()
            await self.channel_layer.group_discard(VIEWERS, self.channel_name)

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        """The page has nothing to say."""

    async def picture(self, event: dict[str, Any]) -> None:
        """A relay's picture from the channel layer."""
        picture = event["picture"]
        self.pictures[picture["process"]] = (time.monotonic(), picture)
        self.ended = [*self.ended, *picture["ended"]][-MAX_ENDED:]
        self.counts["calls"] += picture["ended_count"]
        self.counts["tokens"] += picture["ended_tokens"]
        self.counts["cost_nanos"] += picture["ended_cost_nanos"]

    async def _tick(self) -> None:
        said_hello = 0.0
        while True:
            now = time.monotonic()
            if now - said_hello >= HELLO_SECONDS:
                said_hello = now
                await self.channel_layer.group_send(RELAYS, {"type": "viewer"})
            await asyncio.sleep(TICK_SECONDS)
            await self.send_json(self.merged(time.monotonic()))

    async def _ask_again(self, telling: asyncio.Task[None]) -> None:
        """End the socket with the right to it. While the database is away nobody's right changes."""
        while True:
            await asyncio.sleep(HELLO_SECONDS)
            with contextlib.suppress(DatabaseError):
                if not await may_watch(await present_user(self.scope)):
                    telling.cancel()
                    await self.close(FORBIDDEN)
                    return

    def merged(self, now: float) -> dict[str, Any]:
        """All relays' pictures as one, and what ended since the last message."""
        self.pictures = {name: item for name, item in self.pictures.items() if now - item[0] < FORGET_SECONDS}
        pictures = [picture for _, picture in self.pictures.values()]
        calls = sorted((call for picture in pictures for call in picture["calls"]), key=lambda call: -call["seconds"])
        ended, self.ended = self.ended, []
        counts, self.counts = self.counts, {"calls": 0, "tokens": 0, "cost_nanos": 0}
        return {
            "relays": len(pictures),
            "in_flight": sum(picture["in_flight"] for picture in pictures),
            "calls": calls[:MAX_CALLS],
            "ended": ended,
            **{f"ended_{name}": value for name, value in counts.items()},
        }


async def present_user(scope: Mapping[str, Any]) -> Any:
    """Who is signed in by this socket's session now, read anew: nobody after a sign-out or another password."""
    session = scope["session"]
    return await get_user({"session": session.__class__(session.session_key)})


@sync_to_async
def may_watch(user: Any) -> bool:
    """Staff who may see usage records; the permission look-up asks the database."""
    return bool(user and user.is_active and user.is_staff and user.has_perm("relay.view_usagerecord"))
