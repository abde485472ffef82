"""The slim ASGI handler for relay paths: Django's request, URL resolver and response, without what costs most.

Left out against `django.core.handlers.asgi.ASGIHandler` (1443 -> 190 us a call, docs/performance.md): a thread for each
request, the request signals' thread hops, middleware, and the body in a temporary file.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.urls import ResolverMatch, get_resolver

from relay.errors import BodyTooLarge

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

logger = logging.getLogger(__name__)

URLCONF = "relay.urls"


class ClientGone(Exception):
    """The client left before it had sent its whole request."""


class Body:
    """The request's body, read when the view asks for it; from its end on, listens for the client's leaving."""

    __slots__ = ("_listener", "_receive", "_task")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task = asyncio.current_task()
        self._listener: asyncio.Task[None] | None = None

    async def read(self, *, limit: int) -> bytes:
        """Return the whole body; raises `BodyTooLarge` as soon as more than `limit` bytes have come."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise BodyTooLarge(f"The request body is larger than {limit / 2**20:g} MiB, this relay's limit.")
            parts.append(part)
            if not message.get("more_body", False):
                break
        self._listener = asyncio.get_running_loop().create_task(self._listen())
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _listen(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                if self._task is not None:
                    self._task.cancel()
                return

    def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()


class RelayRequest(ASGIRequest):
    """Django's request, plus the unread body and the key that stood in the query."""

    relay_body: Body
    query_key: str


@lru_cache(maxsize=1024)
def resolve(path: str) -> ResolverMatch:
    """The view of a path. Paths repeat, so do not search the URL patterns for each call."""
    return get_resolver(URLCONF).resolve(path)


async def relay_entry(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one request on a relay path. A HEAD is a probe of some client: any answer will do, 200 pleases all."""
    if scope["method"] == "HEAD":
        await send_response(HttpResponse(), send)
        return
    request = RelayRequest(scope, io.BytesIO())
    request.query_key = scope.get("relay.query_key", "")
    body = request.relay_body = Body(receive)
    try:
        match = resolve(request.path_info)
        request.resolver_match = match
        response: HttpResponseBase = await match.func(request, *match.args, **match.kwargs)
        await send_response(response, send)
    except (asyncio.CancelledError, ClientGone):
        # The client has gone; the call's own task knows and decides what that means.
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
    except Exception:
        logger.exception("A relay view failed")
        if settings.DEBUG:
            raise
        await send_response(HttpResponse("Internal error.", status=500, content_type="text/plain"), send)
    finally:
        body.close()


async def send_response(response: HttpResponseBase, send: Send) -> None:
    """Send a Django response; closes it in every case."""
    try:
        headers = [(name.lower().encode("latin1"), value.encode("latin1")) for name, value in response.items()]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        if getattr(response, "streaming", False):
            async for chunk in response:  # type: ignore[attr-defined]
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "http.response.body", "body": response.content})  # type: ignore[attr-defined]
    finally:
        for closer in response._resource_closers:  # type: ignore[attr-defined]
            closer()
