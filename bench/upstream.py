"""The bench's upstream: answers from memory as fast as Python can, `python -m bench.upstream --port N`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import signal
import socket
import time
from typing import Any, cast

import httptools
import uvloop

from bench.scenario import BY_MODEL, SCENARIOS, Scenario, reply_body, stream_events

OPENING = 3  # events that arrive together with the headers
HEAD = b"HTTP/1.1 200 OK\r\nrequest-id: req_bench\r\ncontent-type: "
STREAM_HEAD = HEAD + b"text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Canned:
    """The bytes of one scenario, made once."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        reply = reply_body(scenario)
        self.reply = HEAD + b"application/json\r\ncontent-length: %d\r\n\r\n" % len(reply) + reply
        events = stream_events(scenario)
        self.opening = STREAM_HEAD + chunk(b"".join(events[:OPENING]))
        self.writes = [chunk(event) for event in events[OPENING:]]
        self.writes[-1] += b"0\r\n\r\n"
        self.burst = STREAM_HEAD + chunk(b"".join(events)) + b"0\r\n\r\n"


CANNED = {model: Canned(scenario) for model, scenario in BY_MODEL.items()}


class Counts:
    """What the bench asks for: calls by scenario, and when the connections of unfinished streams were closed."""

    def __init__(self) -> None:
        self.calls = dict.fromkeys(SCENARIOS, 0)
        self.closed: list[float] = []
        self.open = 0

    def report(self) -> bytes:
        return json.dumps({"calls": self.calls, "closed": self.closed, "open": self.open}).encode()


COUNTS = Counts()


class Upstream(asyncio.Protocol):
    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._url = b""
        self._timer: asyncio.TimerHandle | None = None
        self._unfinished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        if self._unfinished:
            COUNTS.open -= 1
            COUNTS.closed.append(time.monotonic())

    def on_message_begin(self) -> None:
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._url == b"/_bench":
            report = COUNTS.report()
            self._transport.write(HEAD + b"application/json\r\ncontent-length: %d\r\n\r\n" % len(report) + report)
            return
        canned = CANNED.get(model_of(self._body))
        if canned is None:
            self._transport.write(NOT_FOUND)
            return
        COUNTS.calls[canned.scenario.name] += 1
        self._answer(canned)

    def _answer(self, canned: Canned) -> None:
        scenario = canned.scenario
        if not scenario.stream:
            self._transport.write(canned.reply)
        elif not scenario.ends:
            self._unfinished = True
            COUNTS.open += 1
            if scenario.speaks:
                self._transport.write(canned.opening)
        elif not scenario.interval:
            self._transport.write(canned.burst)
        else:
            self._transport.write(canned.opening)
            self._next(canned, 0, self._loop.time() + scenario.interval)

    def _next(self, canned: Canned, index: int, due: float) -> None:
        """Schedule a write; by the clock, so that a late one does not delay the rest."""
        self._timer = self._loop.call_at(due, self._write, canned, index, due)

    def _write(self, canned: Canned, index: int, due: float) -> None:
        # The events behind the last delta come with it.
        last = index >= canned.scenario.deltas - 1
        self._transport.write(b"".join(canned.writes[index:]) if last else canned.writes[index])
        if not last:
            self._next(canned, index + 1, due + canned.scenario.interval)


def model_of(body: bytes) -> bytes:
    _, _, rest = body.partition(b'"model":')
    return rest[:80].lstrip(b' "').partition(b'"')[0]


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", port, backlog=4096)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    gc.freeze()
    await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.upstream")
    parser.add_argument("--port", type=int, default=0)
    options: Any = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.port))


if __name__ == "__main__":
    main()
