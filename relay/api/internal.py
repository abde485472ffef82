"""What the relay answers to its own site's commands, Celery and admin; every request is signed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from ninja import Router

from accounts import health
from accounts.snapshot import ACCOUNTS
from apikeys.authentication import KEYS
from apikeys.counters import repair, stand_of
from relay.api.common import json_response, not_served, read_body, scope_headers
from relay.explain import foretell
from relay.internal import HEADER, is_signed
from relay.probe import test_connection
from relay.runtime import Runtime, get_runtime

router = Router(tags=["Internal"])
MOST_BYTES = 2**20


class Question(msgspec.Struct):
    question: str
    account_id: int = 0
    model: str = ""
    names: list[str] = []
    amounts: dict[str, str] = {}
    key_id: int | None = None
    dialect: str = ""


async def state(run: Runtime, asked: Question) -> dict[str, Any]:
    """Rests, slots, and calls in flight."""
    now = time.time()
    rests = await run.store.rests(now=now)
    return {
        "rests": [msgspec.to_builtins(rest) for rest in rests.values()],
        "calls": [
            {
                "id": flight.call.id,
                "key": flight.call.key.name,
                "model": flight.call.envelope.model,
                "account": flight.account.name if flight.account else None,
                "account_id": flight.account.id if flight.account else None,
                "seconds": round(flight.elapsed(), 3),
            }
            for flight in run.flights.values()
        ],
    }


async def versions(run: Runtime, asked: Question) -> dict[str, Any]:
    """Which state of which table is in force here."""
    return {"versions": run.poller.versions()}


async def counters(run: Runtime, asked: Question) -> dict[str, Any]:
    stand = await stand_of(run.store, asked.names, now=time.time())
    return {
        "counters": {name: str(value) for name, value in stand.used.items()},
        "reserved": {name: str(value) for name, value in stand.reserved.items()},
        "seeded": sorted(stand.seeded),
    }


async def adjust_counters(run: Runtime, asked: Question) -> dict[str, Any]:
    await repair(run.store, {name: int(amount) for name, amount in asked.amounts.items()}, now=time.time())
    return {"ok": True}


async def clear_rest(run: Runtime, asked: Question) -> dict[str, Any]:
    name = next((account.name for account in ACCOUNTS.current if account.id == asked.account_id), "")
    await health.wake(run.store, asked.account_id, name, now=time.time())
    return {"ok": True}


async def flush_affinity(run: Runtime, asked: Question) -> dict[str, Any]:
    flushed = await run.store.flush_affinity(key_id=asked.key_id, account_id=asked.account_id or None)
    return {"flushed": flushed}


async def explain(run: Runtime, asked: Question) -> dict[str, Any]:
    """What would happen to a call of this key for this model now."""
    key = KEYS.current.by_id.get(asked.key_id or 0)
    if key is None:
        return {"error": "this relay does not know the key yet"}
    return await foretell(
        key,
        asked.model,
        dialect=asked.dialect,
        accounts=ACCOUNTS.current,
        store=run.store,
        prices=run.prices.current,
        now=time.time(),
    )


async def probe(run: Runtime, asked: Question) -> dict[str, Any]:
    return await test_connection(run, asked.account_id, model=asked.model)


ANSWERS: dict[str, Callable[[Runtime, Question], Awaitable[dict[str, Any]]]] = {
    "state": state,
    "counters": counters,
    "adjust_counters": adjust_counters,
    "versions": versions,
    "clear_rest": clear_rest,
    "flush_affinity": flush_affinity,
    "test_connection": probe,
    "explain": explain,
}


@router.post("/ask", operation_id="internal_ask", include_in_schema=False)
async def ask(request: HttpRequest) -> HttpResponseBase:
    """Answer one signed question; anything else finds nothing here, and is not read where it has no signature."""
    named = dict(scope_headers(request))
    signature = named.get(HEADER.encode(), b"").decode("latin1")
    body = await read_body(request, named, most=MOST_BYTES) if signature else b""
    if not is_signed(body, signature):
        return await not_served(request)
    asked = msgspec.json.decode(body, type=Question)
    if asked.question not in ANSWERS:
        return json_response({"error": f"unknown question {asked.question}"}, status=400)
    return json_response(await ANSWERS[asked.question](await get_runtime(), asked))
