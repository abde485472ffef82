"""The ASGI application: relay paths go to the slim entry, everything else to Django, WebSockets to Channels."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote_plus

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "relay_site.settings")

from autobahn.websocket.types import ConnectionDeny
from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.conf import settings
from django.core.asgi import get_asgi_application
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

django_application = get_asgi_application()

from relay.call import new_call_id
from relay.runtime import lifespan
from relay.slim import Receive, Scope, Send, relay_entry
from relay.urls import websocket_urlpatterns
from relay_site import daphne_denial
from relay_site.checks import refuse_exposure

refuse_exposure()
daphne_denial.install()

RELAY_ROOTS = frozenset(
    "api claude gemini openai azure v1 v1beta v1beta1 v1alpha healthz readyz metrics internal".split()
)
ADMIN = "/admin/"  # where `?key=` is the id or the name of a key: a filter, no secret
NOT_RELAY = ("/api/docs", "/api/openapi.json")
websocket_application = AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(websocket_urlpatterns)))


def is_relay_path(path: str) -> bool:
    return path[1:].partition("/")[0] in RELAY_ROOTS and not path.startswith(NOT_RELAY)


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    kind = scope["type"]
    if kind != "lifespan" and not scope["path"].startswith(ADMIN):
        take_key_out(scope)
    if kind == "http":
        if is_relay_path(scope["path"]) or (scope["path"] == "/" and scope["method"] == "HEAD"):
            await relay_entry(scope, receive, send)
        else:
            await django_application(scope, receive, send)  # type: ignore[arg-type]
    elif kind == "websocket" and is_relay_path(scope["path"]):
        await refuse_upgrade(scope, receive, send)
    elif kind == "websocket":
        await websocket_application(scope, receive, send)
    elif kind == "lifespan":
        await lifespan(receive, send)


# Here and not by the servers' own options, of which daphne's believes everybody: the same under each of them.
application: Any = serve
if settings.RELAY_TRUSTED_PROXIES:
    application = ProxyHeadersMiddleware(serve, settings.RELAY_TRUSTED_PROXIES)  # type: ignore[arg-type]


def take_key_out(scope: Scope) -> None:
    """Move `?key=` out of the query before anything can log it."""
    query: bytes = scope.get("query_string", b"")
    if b"key=" not in query:
        return
    kept = []
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == b"key":
            scope["relay.query_key"] = unquote_plus(value.decode("latin1"))
        else:
            kept.append(part)
    scope["query_string"] = b"&".join(kept)


async def refuse_upgrade(scope: Scope, receive: Receive, send: Send) -> None:
    """426: Codex falls back to HTTP at once; any other status costs it seven tries (reference/clients.md)."""
    message: dict[str, Any] = await receive()  # type: ignore[assignment]
    if message["type"] != "websocket.connect":
        return
    if daphne_denial.EXTENSION not in scope.get("extensions", {}):
        if not deny_on_daphne(send):
            await send({"type": "websocket.close", "code": 1002})
        return
    headers = [
        (b"content-type", b"application/json"),
        (b"upgrade", b"HTTP/1.1"),
        (b"connection", b"upgrade, close"),
        (b"x-request-id", new_call_id().encode()),
    ]
    body = b'{"error":{"message":"WebSocket is not served here; use HTTP.","type":"invalid_request_error","code":null}}'
    await send({"type": "websocket.http.response.start", "status": 426, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def deny_on_daphne(send: Send) -> bool:
    """Answer 426 through daphne's own protocol: by ASGI it can only say 403. False where this is no daphne."""
    protocol = next(iter(getattr(send, "args", ())), None)
    handshake = getattr(protocol, "handshake_deferred", None)
    if protocol is None or handshake is None:
        return False
    del protocol.handshake_deferred
    handshake.errback(ConnectionDeny(426, "Upgrade Required"))  # type: ignore[no-untyped-call]
    protocol.server.protocol_disconnected(protocol)
    return True
