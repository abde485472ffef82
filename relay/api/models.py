"""Model lists: what this key may reach, in the shape of the dialect that asks; authenticated, not recorded."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from ninja import Router

from accounts.snapshot import ACCOUNTS
from apikeys.authentication import permit
from relay.api.common import error_response, known_key, scope_headers, with_headers
from relay.call import Key, new_call_id
from relay.catalogue import reach, upstream_models
from relay.dialects import DIALECTS
from relay.dialects.base import Dialect, ModelEntry
from relay.errors import ModelNotFound, RelayError
from relay.runtime import Runtime

router = Router(tags=["Models"])


def shape_of(request: HttpRequest) -> Dialect:
    """`/v1/models` belongs to three vendors: the request's own headers tell whose (DESIGN section 3)."""
    names = {name for name, _ in scope_headers(request)}
    claimed = (dialect for dialect in DIALECTS.values() if dialect.models_marker in names)
    return next(claimed, None) or next(dialect for dialect in DIALECTS.values() if not dialect.models_marker)


async def reachable(run: Runtime, key: Key, dialect: Dialect | None) -> list[ModelEntry]:
    """Every model that this key may reach in this dialect (None: in any); does not flap with rests."""
    found: dict[str, ModelEntry] = {}
    for account in reach(key, ACCOUNTS.current, dialect=dialect.name if dialect else ""):
        for entry in await upstream_models(run, account, now=time.time()):
            if not key.models or any(fnmatchcase(entry.id, pattern) for pattern in key.models):
                found.setdefault(entry.id, entry)
    return [found[model_id] for model_id in sorted(found)]


async def answer_models(request: HttpRequest, dialect_name: str) -> HttpResponseBase:
    """The whole list, paged as the dialect pages."""
    dialect, call_id = DIALECTS[dialect_name], new_call_id()
    try:
        run, key = await known_key(request)
        permit(key, family=dialect.family, model="")
        answer = dialect.render_models(await reachable(run, key, dialect), query=request.GET.dict())
    except RelayError as error:
        return error_response(dialect, error, call_id)
    response = with_headers(HttpResponse(answer.body), answer)
    response["x-request-id"] = call_id
    return response


async def answer_model(request: HttpRequest, dialect_name: str, model_id: str) -> HttpResponseBase:
    """One model, 404 where this key can't reach it."""
    dialect, call_id = DIALECTS[dialect_name], new_call_id()
    try:
        run, key = await known_key(request)
        permit(key, family=dialect.family, model="")
        entry = next((entry for entry in await reachable(run, key, dialect) if entry.id == model_id), None)
        if entry is None:
            raise ModelNotFound(f"model: {model_id[:100]}")
        answer = dialect.render_model(entry)
    except RelayError as error:
        return error_response(dialect, error, call_id)
    response = with_headers(HttpResponse(answer.body), answer)
    response["x-request-id"] = call_id
    return response


@router.get("/v1/models", operation_id="v1_models")
async def models(request: HttpRequest) -> HttpResponseBase:
    """List models in the shape that the request's headers ask for."""
    return await answer_models(request, shape_of(request).name)


@router.get("/v1/models/{path:model_id}", operation_id="v1_model")
async def model(request: HttpRequest, model_id: str) -> HttpResponseBase:
    """One model in the shape that the request's headers ask for."""
    return await answer_model(request, shape_of(request).name, model_id)
