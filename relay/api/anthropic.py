"""Anthropic's endpoints, under each prefix that clients are configured with."""

from __future__ import annotations

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from ninja import Router

from relay.api.common import relay
from relay.api.models import answer_model, answer_models
from relay.call import Endpoint

MESSAGES = Endpoint("messages", "anthropic")
COUNT_TOKENS = Endpoint("count_tokens", "anthropic", metered=False)
PREFIXES = ("/v1", "/api/v1", "/claude/v1")

router = Router(tags=["Anthropic"])


async def messages(request: HttpRequest) -> HttpResponseBase:
    """Create a message, streamed or not."""
    return await relay(request, MESSAGES, path="messages")


async def count_tokens(request: HttpRequest) -> HttpResponseBase:
    """Count the tokens of a message."""
    return await relay(request, COUNT_TOKENS, path="messages/count_tokens")


async def models(request: HttpRequest) -> HttpResponseBase:
    """List the models that this key can reach."""
    return await answer_models(request, "anthropic")


async def model(request: HttpRequest, model_id: str) -> HttpResponseBase:
    """One model that this key can reach."""
    return await answer_model(request, "anthropic", model_id)


for prefix in PREFIXES:
    name = prefix.strip("/").replace("/", "_")
    router.post(f"{prefix}/messages", operation_id=f"{name}_messages")(messages)
    router.post(f"{prefix}/messages/count_tokens", operation_id=f"{name}_count_tokens")(count_tokens)
    if prefix != "/v1":
        router.get(f"{prefix}/models", operation_id=f"{name}_models")(models)
        router.get(f"{prefix}/models/{{path:model_id}}", operation_id=f"{name}_model")(model)
