"""The bench's load generator, a process of its own: `python -m bench.load URL SCENARIO MODE ...`, one JSON line out."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import uvloop

from bench.scenario import SCENARIOS, Scenario, request_body

CALL_SECONDS = 120
PATH = b"/v1/messages"


@dataclass(slots=True)
class Result:
    """One call: seconds from the request's write to its first delta and to its end."""

    status: int = 0
    first: float = 0.0
    total: float = 0.0
    whole: bool = False  # the terminal event, or all of the body, arrived


@dataclass(slots=True)
class Tally:
    first: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        if result.status == 200 and result.whole:
            self.first.append(result.first)
            self.total.append(result.total)
        else:
            self.failures.append(f"status {result.status}, {'whole' if result.whole else 'broken off'}")

    def report(self, seconds: float) -> dict[str, Any]:
        failures = {text: self.failures.count(text) for text in sorted(set(self.failures))}
        done = len(self.total)
        return {"done": done, "failures": failures, "seconds": seconds, "first": self.first, "total": self.total}


class Client(asyncio.Protocol):
    """One keep-alive connection that carries one call at a time."""

    def __init__(self, request: bytes, stream: bool) -> None:
        self._request = request
        self._stream = stream
        self._parser: Any = None
        self._done: Callable[[Client, Result], None] | None = None
        self._result = Result()
        self._tail = b""
        self.began: Callable[[Client], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, done: Callable[[Client, Result], None]) -> None:
        """Send the request; `done` is called at its end, whatever the end."""
        self._parser = httptools.HttpResponseParser(self)
        self._done, self._result, self._tail = done, Result(), b""
        self._started = time.perf_counter()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if self._stream:
            if not self._result.first and b"text_delta" in body:
                self._result.first = time.perf_counter() - self._started
            self._tail = (self._tail + body)[-40:] if len(body) < 40 else body[-40:]
        elif not self._result.first:
            self._result.first = time.perf_counter() - self._started
        if self.began:
            began, self.began = self.began, None
            began(self)

    def on_message_complete(self) -> None:
        self._finish(whole=not self._stream or b"message_stop" in self._tail)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(whole=False)

    def reset(self) -> None:
        raw = self.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _finish(self, *, whole: bool) -> None:
        done, self._done = self._done, None
        if done:
            self._result.status = self._parser.get_status_code()
            self._result.total = time.perf_counter() - self._started
            self._result.whole = whole
            done(self, self._result)


class Load:
    """Connections to one address, and the ways to load it."""

    def __init__(self, url: str, scenario: Scenario, key: str, headers: Sequence[str] = ()) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._scenario = scenario
        body = request_body(scenario)
        named = {"x-api-key": key, "anthropic-version": "2023-06-01", **dict(line.split(": ", 1) for line in headers)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        head = (
            f"POST {PATH.decode()} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
            f"{lines}content-length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self.tally = Tally()

    async def connect(self) -> Client:
        loop = asyncio.get_running_loop()
        make = lambda: Client(self._request, self._scenario.stream)  # noqa: E731
        _, client = await loop.create_connection(make, self._host, self._port)
        return client

    async def closed_loop(self, *, clients: int, calls: int) -> float:
        """Keep `clients` calls in flight until `calls` have ended; returns the seconds that took."""
        over = asyncio.Event()
        connections = [await self.connect() for _ in range(clients)]
        left = calls

        def done(client: Client, result: Result) -> None:
            nonlocal left
            self.tally.add(result)
            if len(self.tally.total) + len(self.tally.failures) == calls:
                over.set()
            elif left and not client.transport.is_closing():
                left -= 1
                client.call(done)

        started = time.perf_counter()
        for client in connections[:calls]:
            left -= 1
            client.call(done)
        await asyncio.wait_for(over.wait(), CALL_SECONDS)
        return time.perf_counter() - started

    async def open_loop(self, *, rate: float, seconds: float) -> float:
        """Start a call every 1/rate seconds, however slow the answers are."""
        idle = deque([await self.connect() for _ in range(8)])
        busy = 0
        over = asyncio.Event()

        def done(client: Client, result: Result) -> None:
            nonlocal busy
            busy -= 1
            self.tally.add(result)
            idle.append(client)
            over.set()

        started = asyncio.get_running_loop().time()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(started + number / rate - asyncio.get_running_loop().time())
            client = idle.popleft() if idle else await self.connect()
            busy += 1
            client.call(done)
        while busy:
            over.clear()
            await asyncio.wait_for(over.wait(), CALL_SECONDS)
        return asyncio.get_running_loop().time() - started

    async def hold(self, *, clients: int) -> float:
        """Open streams until each has had its first bytes, say so, and close them when a line comes in."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        held: list[Client] = []
        for _ in range(clients):
            client, first = await self.connect(), loop.create_future()
            client.began = lambda _, first=first: first.set_result(None)
            client.call(lambda _, result: self.tally.add(result))
            held.append(client)
            await asyncio.wait_for(first, CALL_SECONDS)
        print(json.dumps({"held": len(held)}), flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        for client in held:
            client.transport.close()
        await asyncio.sleep(0.5)
        return loop.time() - started

    async def leave(self, *, calls: int, how: str) -> list[float]:
        """Open a stream, hang up on it, `calls` times; returns when each was left, by the machine's monotonic clock."""
        loop = asyncio.get_running_loop()
        times = []
        for _ in range(calls):
            client, first = await self.connect(), loop.create_future()
            client.began = lambda _, first=first: first.set_result(None)
            client.call(lambda _, result: None)
            if self._scenario.speaks:
                await asyncio.wait_for(first, CALL_SECONDS)
            await asyncio.sleep(0.05)
            times.append(time.monotonic())
            if how == "reset":
                client.reset()
            else:
                client.transport.close()
            await asyncio.sleep(0.1)
        return times


async def run(options: Any) -> None:
    load = Load(options.url, SCENARIOS[options.scenario], options.key, options.header)
    gc.collect()
    gc.freeze()
    gc.disable()
    if options.mode == "leave":
        left = await load.leave(calls=options.calls, how=options.how)
        print(json.dumps({"left": left, "done": len(left)}), flush=True)
        return
    if options.mode == "closed":
        seconds = await load.closed_loop(clients=options.clients, calls=options.calls)
    elif options.mode == "open":
        seconds = await load.open_loop(rate=options.rate, seconds=options.seconds)
    else:
        seconds = await load.hold(clients=options.clients)
    print(json.dumps(load.tally.report(seconds)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.load")
    parser.add_argument("url")
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("mode", choices=["closed", "open", "hold", "leave"])
    parser.add_argument("--key", default="sk-ant-bench")
    parser.add_argument("--header", action="append", default=[], help="one more, such as 'name: value'")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--calls", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--how", choices=["close", "reset"], default="close")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
