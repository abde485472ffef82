"""What clients can call: one thin async view per endpoint, one router per dialect."""

from __future__ import annotations

from ninja import NinjaAPI

from relay.api import anthropic, azure, baton, gemini, internal, models, openai

api = NinjaAPI(
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
