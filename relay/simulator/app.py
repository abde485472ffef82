"""Routes a request to its dialect, finds its script, and writes down what arrived and how it ended."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

from relay.simulator.base import Dialect, Memory, Reply, credential_of, encode
from relay.simulator.http import Exchange, Request
from relay.simulator.play import Player
from relay.simulator.script import Script, parse, split_name
from relay.simulator.vertex import service_account

KEPT_REQUESTS = 1000
UNREADABLE = {
    "html": ("text/html", b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"),
    "empty": ("application/json", b""),
    "notjson": ("application/json", b"upstream connect error or disconnect/reset before headers"),
}


class Simulator:
    """The application: stateless but for the request log, the fault counters and the dialects' bounded memory."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        self._dialects = dialects
        self._memory = Memory()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._log: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)
        self._open = 0

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.request.path.startswith("/_sim/"):
            await send(exchange, self._control(exchange.request))
            return
        entry = log_entry(exchange.request)
        self._log.append(entry)
        self._open += 1
        started = time.perf_counter()
        try:
            await self._answer(exchange)
            entry["end"] = "completed"
        except (asyncio.CancelledError, ConnectionError):
            # Broken off by the script itself: the client did not leave.
            entry["end"] = "completed" if exchange.ended else "client_closed"
        finally:
            self._open -= 1
            entry.update(seconds=time.perf_counter() - started, ended_at=time.time(), sent_bytes=exchange.sent_bytes)

    def _control(self, request: Request) -> Reply:
        match request.method, request.path:
            case "GET", "/_sim/requests":
                return Reply(body=encode(list(self._log)))
            case "DELETE", "/_sim/requests":
                self._log.clear()
                self._calls.clear()
                return Reply(body=b"[]")
            case "GET", "/_sim/open":
                return Reply(body=encode({"open": self._open}))
            case "GET", "/_sim/service_account":
                asked = {name: values[0] for name, values in parse_qs(request.query).items()}
                scripts = {name: asked.get(name, "") for name in ("script", "token_script")}
                return Reply(body=encode(service_account(f"http://{request.header('host')}", **scripts)))
        return Reply(status=404, body=b'{"error":"no such control path"}')

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        dialect = next((item for item in self._dialects if item.serves(request)), None)
        if dialect is None:
            await send(exchange, Reply(status=404, body=encode({"error": f"no dialect serves {request.path}"})))
            return
        try:
            model, script = self._script(request, dialect)
            reply = self._reply(request, dialect, model=model, script=script)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # A script or a body that can't be read; a vendor would say 400 too.
            await send(exchange, dialect.error("400", script=Script(), message=f"{type(error).__name__}: {error}"))
            return
        await Player(exchange, script, dialect).play(reply)

    def _script(self, request: Request, dialect: Dialect) -> tuple[str, Script]:
        """Return the plain model name and the script: of the credential, over it the model's, over it the header's."""
        credential, own = split_name(credential_of(request))
        model, named = split_name(dialect.model(request))
        script = parse(request.header("x-sim")).over(named.over(own))
        times = script.count("times")
        if times:
            self._calls[model, credential] += 1
            if self._calls[model, credential] > times:
                script = script.without_faults()
        return model, script

    def _reply(self, request: Request, dialect: Dialect, *, model: str, script: Script) -> Reply:
        if script.has("error"):
            reply = dialect.error(script.text("error"), script=script, model=model)
        else:
            reply = dialect.answer(request, model, script, self._memory)
        if script.has("fail") and reply.events is None and reply.status == 200:
            wrong = dialect.error(script.argument("fail"), script=script, model=model)
            reply = Reply(headers=reply.headers, body=wrong.body)
        return unreadable(reply, script.text("body")) if script.has("body") else reply


def unreadable(reply: Reply, how: str) -> Reply:
    if how == "truncated":
        return Reply(status=reply.status, headers=reply.headers, body=reply.body[: len(reply.body) // 2])
    content_type, body = UNREADABLE[how]
    return Reply(status=reply.status, headers=reply.headers, body=body, content_type=content_type)


def log_entry(request: Request) -> dict[str, Any]:
    return {
        "method": request.method,
        "path": request.path,
        "target": request.target.decode("latin-1"),
        "query": request.query,
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers],
        "body": base64.b64encode(request.body).decode(),
        "received_at": time.time(),
        "end": "open",
    }


async def send(exchange: Exchange, reply: Reply) -> None:
    headers = ((b"content-type", reply.content_type.encode()), *reply.headers)
    await exchange.start(reply.status, headers, length=len(reply.body))
    await exchange.send(reply.body)
    await exchange.end()
