"""ASGI's `websocket.http.response` for daphne, which refuses every upgrade with 403 and has no word for another status.

Codex falls back to HTTP at once on 426 only (reference/clients.md). Daphne's factory is told to build a protocol that
can deny with the application's own answer, and the scope says so, as the extension wants it. To go when daphne has it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any

from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol

EXTENSION = "websocket.http.response"


class DeniableProtocol(WebSocketProtocol):  # type: ignore[misc]  # daphne has no types
    """Daphne's protocol, plus the two messages of the extension."""

    def handle_reply(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == f"{EXTENSION}.start":
            self.denial = message
        elif message["type"] == f"{EXTENSION}.body":
            self.deny(message.get("body", b""))
        else:
            super().handle_reply(message)

    def deny(self, body: bytes) -> None:
        """Answer the upgrade like any other request, and close."""
        status = HTTPStatus(self.denial["status"])
        headers = [(name.decode("latin1"), value.decode("latin1")) for name, value in self.denial["headers"]]
        self.sendHttpErrorResponse(status.value, status.phrase, [*headers, ("content-length", str(len(body)))])
        self.sendData(body)
        self.dropConnection(abort=False)
        del self.handshake_deferred
        self.server.protocol_disconnected(self)


def install() -> None:
    """Teach it to every daphne of this process; a second time changes nothing."""
    if WebSocketFactory.protocol is DeniableProtocol:
        return
    create_application = Server.create_application

    def create_deniable(self: Server, protocol: Any, scope: MutableMapping[str, Any]) -> Any:
        if isinstance(protocol, DeniableProtocol):
            scope["extensions"] = {EXTENSION: {}}
        return create_application(self, protocol, scope)

    Server.create_application = create_deniable
    WebSocketFactory.protocol = DeniableProtocol
