"""The slim ASGI handler for relay paths: Django's request, URL resolver and response, without what costs most.

Left out against `django.core.handlers.asgi.ASGIHandler` (1443 -> 190 us a call, docs/performance.md): a thread for each
request, the request signals' thread hops, middleware, and the body in a temporary file.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any

from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.urls import Resolver404, ResolverMatch, get_resolver

from relay.call import new_call_id
from relay.errors import BodyTooLarge
from relay.response import RawHeaders

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

logger = logging.getLogger(__name__)

URLCONF = "relay.urls"
KEEP_ALIVE = (b"connection", b"keep-alive")
# An ASGI extension of ours: a set of what to call when the client's connection is lost.
LEAVING = "baton.leaving"
DISCARD_SECONDS = 2.0
NONE: dict[str, Any] = {}


class ClientGone(Exception):
    """The client left before it had sent its whole request."""


class Body:
    """The request's body, read when the view asks for it; from its end on, hears of the client's leaving: from the
    server where it tells (`leaving`, see relay_site.protocol), else from a task that waits for ASGI's message."""

    __slots__ = ("_leaving", "_listener", "_receive", "_task", "whole")

    def __init__(self, receive: Receive, leaving: set[Callable[[], object]] | None = None) -> None:
        self._receive = receive
        self._leaving = leaving
        self._task = asyncio.current_task()
        self._listener: asyncio.Task[None] | None = None
        self.whole = False

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
        self.whole = True
        if self._leaving is not None:
            self._leaving.add(self._left)
        else:
            self._listener = asyncio.get_running_loop().create_task(self._listen())
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def discard(self) -> None:
        """Take what the client still sends, for a moment, and forget it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body", False):
                    pass

    async def _listen(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._left()
                return

    def _left(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        if self._leaving is not None:
            self._leaving.discard(self._left)
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None  # its exception's traceback leads back here: no ring for the collector to find


class RelayRequest(ASGIRequest):
    """Django's request, plus the unread body and the key that stood in the query.

    `META` is made when somebody asks for it: relay views read the ASGI scope, which is what came.
    """

    def __init__(self, scope: Scope, body: Body) -> None:
        self.scope = scope
        self.relay_body = body
        self.query_key: str = scope.get("relay.query_key", "")
        self.method: str = scope["method"]
        self.path = self.path_info = scope["path"]
        self.resolver_match = None
        self._stream = io.BytesIO()

    @cached_property
    def META(self) -> dict[str, Any]:  # type: ignore[override]
        full = ASGIRequest(self.scope, self._stream)
        self.content_type, self.content_params = full.content_type, full.content_params
        return full.META


@lru_cache(maxsize=1024)
def resolve(path: str) -> ResolverMatch:
    """The view of a path. Paths repeat, so do not search the URL patterns for each call."""
    return get_resolver(URLCONF).resolve(path)


def refusal(status: int) -> Callable[..., Awaitable[HttpResponseBase]]:
    """The view that says so in the client's dialect."""
    return get_resolver(URLCONF).resolve_error_handler(status)  # type: ignore[return-value]


async def relay_entry(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one request on a relay path. A HEAD is a probe of some client: any answer will do, 200 pleases all."""
    if scope["method"] == "HEAD":
        await send_response(HttpResponse(), scope, send)
        return
    body = Body(receive, scope.get("extensions", NONE).get(LEAVING))
    try:
        await send_response(await answer(scope, body), scope, send, body)
    except (asyncio.CancelledError, ClientGone):
        # The client has gone; the call's own task knows and decides what that means.
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
    finally:
        body.close()


async def answer(scope: Scope, body: Body) -> HttpResponseBase:
    """What the path's view answers; where there is none, or it fails, the error in the client's dialect."""
    request = RelayRequest(scope, body)
    try:
        match = request.resolver_match = resolve(request.path_info)
        response: HttpResponseBase = await match.func(request, *match.args, **match.kwargs)
    except Resolver404:
        return await refusal(404)(request)
    except SuspiciousOperation:
        return await refusal(400)(request)
    except ClientGone:
        raise
    except Exception:
        logger.exception("A relay view failed")
        if settings.DEBUG:
            raise
        return await refusal(500)(request)
    if response.status_code == 405 and "x-request-id" not in response:
        return await refusal(405)(request, allow=response["allow"])
    return response


async def send_response(response: HttpResponseBase, scope: Scope, send: Send, body: Body | None = None) -> None:
    """Send a Django response; closes it in every case. A server that closes the connection while the client still sends
    its body takes the answer back (TCP resets it), so what comes is read for a moment before the answer's end."""
    try:
        await send({"type": "http.response.start", "status": response.status_code, "headers": head(response, scope)})
        if getattr(response, "streaming", False):
            async for chunk in response:  # type: ignore[attr-defined]
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        elif body is not None and not body.whole and response.status_code >= 400 and uploads(scope):
            content = response.content  # type: ignore[attr-defined]
            await send({"type": "http.response.body", "body": content, "more_body": True})
            await body.discard()
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "http.response.body", "body": response.content})  # type: ignore[attr-defined]
    finally:
        for closer in response._resource_closers:  # type: ignore[attr-defined]
            closer()


def head(response: HttpResponseBase, scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers as they go out; every answer has an id, and a length where it is known."""
    raw: RawHeaders | None = getattr(response, "raw_headers", None)
    if raw is not None:  # they have both already
        stays = KEEP_ALIVE not in raw or persistent(scope)
        return list(raw) if stays else [item for item in raw if item != KEEP_ALIVE]
    if "x-request-id" not in response:
        response["x-request-id"] = new_call_id()
    if not response.streaming and "content-length" not in response:
        response["content-length"] = str(len(response.content))  # type: ignore[attr-defined]
    if "connection" in response and not persistent(scope) and response["connection"] == "keep-alive":
        del response["connection"]  # the server says `close`
    return [(name.lower().encode("latin1"), value.encode("latin1")) for name, value in response.items()]


def uploads(scope: Scope) -> bool:
    """Whether the client may still be sending its body on a connection that ends with this answer; one that waits for
    `100 Continue` is not."""
    names = {name for name, _ in scope["headers"]}
    sized = not names.isdisjoint((b"content-length", b"transfer-encoding"))
    return sized and b"expect" not in names and not persistent(scope)


def persistent(scope: Scope) -> bool:
    """Whether the client's connection outlives this answer."""
    named = (value.lower() for name, value in scope["headers"] if name == b"connection")
    return scope.get("http_version") != "1.0" and not any(b"close" in value for value in named)
