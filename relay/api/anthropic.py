"""Anthropic's endpoints, under each prefix that clients are configured with."""

from __future__ import annotations

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from ninja import Router

from relay.api.common import relay
from relay.api.models import add_models
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


for prefix in PREFIXES:
    name = prefix.strip("/").replace("/", "_")
    router.post(f"{prefix}/messages", operation_id=f"{name}_messages")(messages)
    router.post(f"{prefix}/messages/count_tokens", operation_id=f"{name}_count_tokens")(count_tokens)
    if prefix != "/v1":
        add_models(router, prefix, "anthropic")
