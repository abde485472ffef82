"""HTTP byte by byte, for what no client library would send or would show."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from tests.harness import Server

UPGRADE = (
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
)


@dataclass(frozen=True)
class Answer:
    """One answer as it came; header names in lower case, in order, repeated where they were."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def __getitem__(self, name: str) -> str:
        (value,) = self.values(name)
        return value


def request_bytes(
    method: str, target: str, *headers: tuple[str, str], body: bytes = b"", version: str = "1.1", sized: bool = True
) -> bytes:
    """One request; `sized` adds content-length where there is a body."""
    lines = [f"{method} {target} HTTP/{version}", "host: localhost", *(f"{name}: {value}" for name, value in headers)]
    if body and sized:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin1") + body


def converse(server: Server, *pieces: bytes, seconds: float = 20) -> bytes:
    """Send the pieces and return all that comes until the server closes; fails where it does not."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while more := connection.recv(65536):
            received += more
        return received


def ask(server: Server, method: str, target: str, *headers: tuple[str, str], body: bytes = b"") -> Answer:
    """One request on a connection of its own."""
    closing = () if any(name == "connection" for name, _ in headers) else (("connection", "close"),)
    (answer,) = answers(converse(server, request_bytes(method, target, *headers, *closing, body=body)))
    return answer


def answers(received: bytes) -> list[Answer]:
    """The answers in what was received; a 1xx stands for itself."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin1").split("\r\n")
        pairs = tuple((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
        status = int(first.split()[1])
        body, received = body_of(dict(pairs), received) if status >= 200 else (b"", received)
        found.append(Answer(status, pairs, body))
    return found


def body_of(headers: dict[str, str], received: bytes) -> tuple[bytes, bytes]:
    """The body and what follows it."""
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            size, _, received = received.partition(b"\r\n")
            count = int(size, 16)
            body, received = body + received[:count], received[count + 2 :]
            if not count:
                return body, received
    length = headers.get("content-length")
    return (received, b"") if length is None else (received[: int(length)], received[int(length) :])
