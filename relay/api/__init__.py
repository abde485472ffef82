"""What clients can call: one thin async view per endpoint, one router per dialect."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from ninja import NinjaAPI

from relay.api import anthropic, azure, baton, gemini, internal, models, openai

NEVER_SENT = HttpResponse()


class RelayAPI(NinjaAPI):
    """Ninja makes a response for each request that a view might set headers on; no view here asks for it."""

    def create_temporal_response(self, request: HttpRequest) -> HttpResponse:
        return NEVER_SENT


api = RelayAPI(
    title="Baton",
    description="A self-hosted relay for LLM APIs. Point an official SDK at it: same paths, same bodies, one key.",
    docs_url="/api/docs",
    openapi_url="/api/openapi.json",
    urls_namespace="relay",
)
api.add_router("", anthropic.router)
api.add_router("", openai.router)
api.add_router("", azure.router)
api.add_router("", gemini.router)
api.add_router("", models.router)
api.add_router("", baton.router)
api.add_router("/internal", internal.router)
