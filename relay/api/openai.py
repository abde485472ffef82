"""OpenAI's endpoints, under each prefix that clients are configured with; Azure's are made of the same parts."""

from __future__ import annotations

from urllib.parse import quote

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from ninja import Router

from apikeys.authentication import permit
from relay.api.common import error_response, known_key, relay
from relay.api.models import add_models
from relay.call import Endpoint, new_call_id
from relay.dialects import DIALECTS
from relay.errors import RelayError

CHAT = Endpoint("chat_completions", "openai_chat")
EMBEDDINGS = Endpoint("embeddings", "openai_chat")
RESPONSES = Endpoint("responses", "openai_responses")
COMPACT = Endpoint("responses_compact", "openai_responses")
INPUT_TOKENS = Endpoint("responses_input_tokens", "openai_responses", metered=False)
RETRIEVE = Endpoint("responses_retrieve", "openai_responses", metered=False)
DELETE = Endpoint("responses_delete", "openai_responses", metered=False)
CANCEL = Endpoint("responses_cancel", "openai_responses", metered=False)
INPUT_ITEMS = Endpoint("responses_input_items", "openai_responses", metered=False)
PREFIXES = ("/v1", "/openai/v1", "/openai")
UPGRADE = b'{"error":{"message":"WebSocket is not served here; use HTTP.","type":"invalid_request_error","code":null}}'

router = Router(tags=["OpenAI"])


async def upgrade_required(request: HttpRequest) -> HttpResponseBase:
    """426: a client that wanted a WebSocket falls back to HTTP at once (reference/clients.md, section 3)."""
    dialect, call_id = DIALECTS[RESPONSES.dialect], new_call_id()
    try:
        _, key = await known_key(request)
        permit(key, family=dialect.family, model="")
    except RelayError as error:
        return error_response(dialect, error, call_id)
    headers = {"upgrade": "HTTP/1.1", "connection": "upgrade", "x-request-id": call_id}
    return HttpResponse(UPGRADE, status=426, content_type="application/json", headers=headers)


def add_completions(router: Router, prefix: str, *, name: str, path: str = "") -> None:
    """Chat Completions and Embeddings under a prefix; `path` stands in front of the operation on its way upstream."""

    async def chat_completions(request: HttpRequest) -> HttpResponseBase:
        """Create a chat completion, streamed or not."""
        return await relay(request, CHAT, path=f"{path}chat/completions")

    async def embeddings(request: HttpRequest) -> HttpResponseBase:
        """Turn text into vectors."""
        return await relay(request, EMBEDDINGS, path=f"{path}embeddings")

    router.post(f"{prefix}/chat/completions", operation_id=f"{name}_chat_completions")(chat_completions)
    router.post(f"{prefix}/embeddings", operation_id=f"{name}_embeddings")(embeddings)


def add_responses(router: Router, prefix: str, *, name: str, path: str = "") -> None:
    """Making responses under a prefix."""

    async def responses(request: HttpRequest) -> HttpResponseBase:
        """Create a response, streamed or not."""
        return await relay(request, RESPONSES, path=f"{path}responses")

    async def compact(request: HttpRequest) -> HttpResponseBase:
        """Compact a conversation."""
        return await relay(request, COMPACT, path=f"{path}responses/compact")

    async def input_tokens(request: HttpRequest) -> HttpResponseBase:
        """Count the tokens of an input."""
        return await relay(request, INPUT_TOKENS, path=f"{path}responses/input_tokens")

    router.post(f"{prefix}/responses", operation_id=f"{name}_responses")(responses)
    router.post(f"{prefix}/responses/compact", operation_id=f"{name}_responses_compact")(compact)
    router.post(f"{prefix}/responses/input_tokens", operation_id=f"{name}_responses_input_tokens")(input_tokens)
    router.get(f"{prefix}/responses", operation_id=f"{name}_responses_upgrade")(upgrade_required)


def add_stored_responses(router: Router, prefix: str, *, name: str, path: str = "") -> None:
    """Calls on stored responses under a prefix; only the key that made one, or its team, reaches it."""

    async def retrieve(request: HttpRequest, response_id: str) -> HttpResponseBase:
        """A stored response."""
        return await relay(request, RETRIEVE, path=stored(path, response_id), answer_id=response_id)

    async def delete(request: HttpRequest, response_id: str) -> HttpResponseBase:
        """Delete a stored response."""
        return await relay(request, DELETE, path=stored(path, response_id), answer_id=response_id)

    async def cancel(request: HttpRequest, response_id: str) -> HttpResponseBase:
        """Cancel a response."""
        return await relay(request, CANCEL, path=f"{stored(path, response_id)}/cancel", answer_id=response_id)

    async def input_items(request: HttpRequest, response_id: str) -> HttpResponseBase:
        """The input of a stored response."""
        return await relay(request, INPUT_ITEMS, path=f"{stored(path, response_id)}/input_items", answer_id=response_id)

    at = f"{prefix}/responses/{{response_id}}"
    router.get(at, operation_id=f"{name}_responses_retrieve")(retrieve)
    router.delete(at, operation_id=f"{name}_responses_delete")(delete)
    router.post(f"{at}/cancel", operation_id=f"{name}_responses_cancel")(cancel)
    router.get(f"{at}/input_items", operation_id=f"{name}_responses_input_items")(input_items)


def stored(path: str, response_id: str) -> str:
    return f"{path}responses/{quote(response_id, safe='')}"


for prefix in PREFIXES:
    name = f"openai{prefix.replace('/', '_')}"
    add_completions(router, prefix, name=name)
    add_responses(router, prefix, name=name)
    add_stored_responses(router, prefix, name=name)
    if prefix != "/v1":  # there the request's headers tell whose list it is
        add_models(router, prefix, CHAT.dialect)
