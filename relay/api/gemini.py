"""Gemini's endpoints, with and without their prefix, in each version of the API."""

from __future__ import annotations

from urllib.parse import quote

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from ninja import Router

from apikeys.authentication import permit
from relay.api.common import error_response, known_key, not_served, relay
from relay.api.models import add_models
from relay.api.models import router as shared_models
from relay.call import Endpoint, new_call_id
from relay.dialects import DIALECTS
from relay.errors import RelayError

GENERATE = Endpoint("generate_content", "gemini")
ENDPOINTS = {
    "generateContent": GENERATE,
    "streamGenerateContent": Endpoint("stream_generate_content", "gemini"),
    "countTokens": Endpoint("count_tokens", "gemini", metered=False),
    "embedContent": Endpoint("embed_content", "gemini"),
    "batchEmbedContents": Endpoint("batch_embed_contents", "gemini"),
}
SUMMARIES = {
    "generateContent": "Generate an answer.",
    "streamGenerateContent": "Generate an answer as a stream: events with `?alt=sse`, else one JSON array.",
    "countTokens": "Count the tokens of a prompt.",
    "embedContent": "Turn one content into a vector.",
    "batchEmbedContents": "Turn contents into vectors.",
}
VERSIONS = ("v1", "v1beta", "v1alpha")

router = Router(tags=["Gemini"])


async def unknown_verb(request: HttpRequest, model_id: str) -> HttpResponseBase:
    """Google has more verbs than this relay: a native 404 that says where to look."""
    try:
        _, key = await known_key(request)
        permit(key, family=DIALECTS[GENERATE.dialect].family, model="")
    except RelayError as error:
        return error_response(DIALECTS[GENERATE.dialect], error, new_call_id())
    return await not_served(request)


def add_verb(prefix: str, version: str, verb: str, *, name: str) -> None:
    """One of Google's verbs on models, under a prefix."""

    async def view(request: HttpRequest, model: str) -> HttpResponseBase:
        path = f"{version}/models/{quote(model, safe='')}:{verb}"
        return await relay(request, ENDPOINTS[verb], path=path, path_model=f"{model}:{verb}")

    operation = f"{name}_{ENDPOINTS[verb].name}"
    router.post(f"{prefix}/models/{{model}}:{verb}", operation_id=operation, summary=SUMMARIES[verb])(view)


for version in VERSIONS:
    for prefix in (f"/gemini/{version}", f"/{version}"):
        name = prefix.strip("/").replace("/", "_")
        for verb in ENDPOINTS:
            add_verb(prefix, version, verb, name=name if name != "v1" else "gemini_at_v1")
        # `/v1/models` is shared: there the request's headers tell whose list it is.
        shared = prefix == "/v1"
        if not shared:
            add_models(router, prefix, GENERATE.dialect)
        (shared_models if shared else router).post(f"{prefix}/models/{{path:model_id}}", include_in_schema=False)(
            unknown_verb
        )
