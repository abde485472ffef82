"""An upstream that answers with given bytes, for tests that compare byte for byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Canned:
    """What it answers, piece by piece, and what it was asked."""

    url: str
    requests: list[bytes] = field(default_factory=list)


@contextmanager
def canned(pieces: Sequence[bytes], *, calls: int = 1) -> Iterator[Canned]:
    """Serve `calls` connections, each with the same pieces; one write for each piece."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        served = Canned(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=serve, args=(listener, served, pieces, calls), daemon=True)
        thread.start()
        yield served
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(20)


def serve(listener: socket.socket, served: Canned, pieces: Sequence[bytes], calls: int) -> None:
    for _ in range(calls):
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # the test is over, and nobody called
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            served.requests.append(read_request(connection))
            for piece in pieces:
                connection.sendall(piece)


def read_request(connection: socket.socket) -> bytes:
    """One whole request with a content-length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    wanted = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < wanted:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def stream_of(events: bytes, *, size: int = 0) -> list[bytes]:
    """A chunked SSE answer; `size` cuts the events into chunks of so many bytes, 0 = one chunk."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nrequest-id: req_canned\r\n"
    head += b"transfer-encoding: chunked\r\n\r\n"
    step = size or len(events)
    chunks = [events[start : start + step] for start in range(0, len(events), step)]
    return [head, *(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks), b"0\r\n\r\n"]


def json_of(body: bytes, *, status: bytes = b"200 OK", headers: bytes = b"") -> list[bytes]:
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n"
    return [head % (status, len(body), headers) + body]
