"""Model lists: what this key may reach, in the shape of the dialect that asks; authenticated, not recorded."""

from __future__ import annotations

import time
from collections.abc import Collection
from fnmatch import fnmatchcase

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from ninja import Router

from accounts.snapshot import ACCOUNTS
from apikeys.authentication import permit
from relay.api.common import as_response, error_response, known_key, scope_headers
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
    unclaimed = (dialect for dialect in DIALECTS.values() if not dialect.models_marker)
    return next(claimed, None) or next(unclaimed, None) or next(iter(DIALECTS.values()))


async def reachable(run: Runtime, key: Key, speaking: Collection[Dialect]) -> list[ModelEntry]:
    """Every model that this key may reach in one of these dialects; does not flap with rests."""
    found: dict[str, ModelEntry] = {}
    for account in reach(key, ACCOUNTS.current, dialects={dialect.name for dialect in speaking}):
        for entry in await upstream_models(run, account, now=time.time()):
            if not key.models or any(fnmatchcase(entry.id, pattern) for pattern in key.models):
                found.setdefault(entry.id, entry)
    return [found[model_id] for model_id in sorted(found)]


def permitted(key: Key, speaking: Collection[Dialect]) -> list[Dialect]:
    """Those of the dialects that the key may speak; raises `NotPermitted` where it is none of them."""
    able = [dialect for dialect in speaking if not key.families or dialect.family in key.families]
    if not able:
        permit(key, family=next(iter(speaking)).family, model="")
    return able


async def answer_models(
    request: HttpRequest, shape: Dialect, speaking: Collection[Dialect], *, model_id: str = ""
) -> HttpResponseBase:
    """The list, paged as the shape's vendor pages; or one model of it, 404 where this key can't reach it."""
    call_id = new_call_id()
    try:
        run, key = await known_key(request)
        entries = await reachable(run, key, permitted(key, speaking))
        if model_id:
            entry = next((entry for entry in entries if entry.id == model_id), None)
            if entry is None:
                raise ModelNotFound(f"model: {model_id[:100]}")
            answer = shape.render_model(entry)
        else:
            answer = shape.render_models(entries, query=request.GET.dict())
    except RelayError as error:
        return error_response(shape, error, call_id)
    return as_response(answer, call_id)


def add_models(router: Router, prefix: str, dialect_name: str) -> None:
    """Serve one dialect's list and its single models under a prefix."""
    dialect, name = DIALECTS[dialect_name], prefix.strip("/").replace("/", "_").replace(".", "_")

    async def models(request: HttpRequest) -> HttpResponseBase:
        """List the models that this key can reach."""
        return await answer_models(request, dialect, [dialect])

    async def model(request: HttpRequest, model_id: str) -> HttpResponseBase:
        """One model that this key can reach."""
        return await answer_models(request, dialect, [dialect], model_id=model_id)

    router.get(f"{prefix}/models", operation_id=f"{name}_models")(models)
    router.get(f"{prefix}/models/{{path:model_id}}", operation_id=f"{name}_model")(model)


@router.get("/v1/models", operation_id="v1_models")
async def models(request: HttpRequest) -> HttpResponseBase:
    """List the models that this key can reach, of every family, in the shape that the request's headers ask for."""
    return await answer_models(request, shape_of(request), DIALECTS.values())


@router.get("/v1/models/{path:model_id}", operation_id="v1_model")
async def model(request: HttpRequest, model_id: str) -> HttpResponseBase:
    """One model in the shape that the request's headers ask for."""
    return await answer_models(request, shape_of(request), DIALECTS.values(), model_id=model_id)
