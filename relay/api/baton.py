"""Baton's own endpoints: the key's standing, health, metrics."""

from __future__ import annotations

import time

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from ninja import Router
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from apikeys import admission
from relay.api.common import error_response, json_response, known_key
from relay.call import new_call_id
from relay.dialects import DIALECTS
from relay.errors import RelayError
from relay.runtime import get_runtime

router = Router(tags=["Baton"])


@router.get("/api/v1/key-info", operation_id="key_info")
async def key_info(request: HttpRequest) -> HttpResponseBase:
    """The key's own name, permissions and limits."""
    call_id = new_call_id()
    try:
        run, key = await known_key(request)
        limits = await admission.standing(run.store, key, now=time.time())
    except RelayError as error:
        return error_response(next(iter(DIALECTS.values())), error, call_id)
    expires = None if key.expires_at is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(key.expires_at))
    info = {
        "name": key.name,
        "team": key.team or None,
        "families": sorted(key.families),
        "models": list(key.models),
        "tags": dict(key.tags),
        "expires_at": expires,
        "limits": limits,
    }
    return json_response(info, call_id=call_id)


@router.get("/api/v1/usage", operation_id="key_usage")
async def key_usage(request: HttpRequest) -> HttpResponseBase:
    """What the key has spent of each of its limits, what remains, and when it resets."""
    call_id = new_call_id()
    try:
        run, key = await known_key(request)
        limits = await admission.standing(run.store, key, now=time.time())
    except RelayError as error:
        return error_response(next(iter(DIALECTS.values())), error, call_id)
    return json_response({"key": key.name, "limits": limits}, call_id=call_id)


@router.get("/healthz", operation_id="healthz")
async def healthz(request: HttpRequest) -> HttpResponseBase:
    """200 as long as the process answers."""
    return json_response({"status": "ok"})


@router.get("/readyz", operation_id="readyz")
async def readyz(request: HttpRequest) -> HttpResponseBase:
    """200 when calls are taken; says how many records wait for the database, and how old the oldest is."""
    run = await get_runtime()
    ready = run.journal.healthy and not run.stopping
    body = {
        "status": "ok" if ready else "stopping" if run.stopping else "journal failing",
        "calls_in_flight": len(run.flights),
        "records_waiting": run.journal.waiting,
        "oldest_record_seconds": round(run.journal.oldest_age, 1),
    }
    return json_response(body, status=200 if ready else 503)


@router.get("/metrics", operation_id="metrics", include_in_schema=False)
async def metrics(request: HttpRequest) -> HttpResponseBase:
    """Prometheus metrics; no name of a key, account or person in them."""
    await get_runtime()
    return HttpResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)
