"""What every relay view does: who calls, may they, what do they want; then the pipeline. No view goes around it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote_from_bytes

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from apikeys.authentication import authenticate, permit
from relay import metrics, ownership, pipeline
from relay.call import Call, Endpoint, Envelope, Key, new_call_id
from relay.dialects import DIALECTS
from relay.dialects.base import Answer, Dialect
from relay.errors import (
    AnswerNotFound,
    BodyTooLarge,
    InvalidRequest,
    MethodNotServed,
    NotAuthenticated,
    NotPermitted,
    NotServed,
    RelayError,
)
from relay.providers.base import Headers
from relay.reply import Reply
from relay.response import RelayedResponse, RelayedStream
from relay.runtime import Runtime, get_runtime
from relay.settlement import refuse_early
from relay.slim import Body

MAX_TAGS = 20
MAX_QUERY_BYTES = 8192
URL_CHARACTERS = "".join(chr(code) for code in range(0x21, 0x7F))


async def relay(
    request: HttpRequest, endpoint: Endpoint, *, path: str, path_model: str = "", answer_id: str = ""
) -> HttpResponseBase:
    """Authenticate, read, permit, and carry one client call; errors come in the endpoint's dialect.

    `answer_id`: the path names a stored answer, and the call is about nothing else.
    """
    now = time.time()
    dialect = DIALECTS[endpoint.dialect]
    call_id = new_call_id(now)
    run = await get_runtime()
    headers = scope_headers(request)
    try:
        key = await authenticated(request, headers, now=now)
    except RelayError as error:
        metrics.UNAUTHENTICATED.inc()
        return error_response(dialect, error, call_id)
    try:
        permit(key, family=dialect.family, model="")
        call = await read_call(
            request, endpoint, key, headers, path=path, path_model=path_model, answer_id=answer_id, call_id=call_id
        )
        call = await tied_to_owner(run, call, named_by_path=bool(answer_id))
    except RelayError as error:
        refuse_early(run, key, endpoint, error, call_id=call_id, created_at=now)
        return error_response(dialect, error, call_id)
    return await respond(pipeline.launch(run, call).reply)


async def authenticated(request: HttpRequest, headers: Headers, *, now: float) -> Key:
    """The key of this request; raises `NotAuthenticated`."""
    return await authenticate(headers, getattr(request, "query_key", ""), client_ip=client_ip(request), now=now)


async def read_call(
    request: HttpRequest,
    endpoint: Endpoint,
    key: Key,
    headers: Headers,
    *,
    path: str,
    path_model: str,
    answer_id: str,
    call_id: str,
) -> Call:
    """The request as a `Call`; raises `InvalidRequest`, `BodyTooLarge`, `NotPermitted`."""
    named = dict(headers)
    body = await read_body(request, named)
    dialect = DIALECTS[endpoint.dialect]
    if answer_id:
        envelope = Envelope("", stream=request.GET.get("stream") == "true", previous_response_id=answer_id)
    else:
        envelope = dialect.read_envelope(body, headers=named, path_model=path_model)
    try:
        permit(key, family=dialect.family, model=envelope.model)
    except NotPermitted as error:
        error.model = envelope.model
        raise
    return Call(
        id=call_id,
        created_at=time.time(),
        key=key,
        endpoint=endpoint,
        envelope=envelope,
        method=request.method or "POST",
        path=path,
        query=query_of(request),
        headers=headers,
        body=dialect.canonical(body, envelope),
        client_ip=client_ip(request),
        tags=read_tags(named.get(b"x-relay-tags", b"")),
    )


async def tied_to_owner(run: Runtime, call: Call, *, named_by_path: bool) -> Call:
    """The call, bound to the account that holds the answer it names; raises `AnswerNotFound` for another key's."""
    answer_id = call.envelope.previous_response_id
    if not answer_id:
        return call
    try:
        account_id = await ownership.account_of(run, call.key, answer_id, now=call.created_at)
    except AnswerNotFound as error:
        error.field = "" if named_by_path else "previous_response_id"
        raise
    return replace(call, account_id=account_id) if named_by_path else call


async def read_body(request: HttpRequest, named: Mapping[bytes, bytes], *, most: int | None = None) -> bytes:
    """The whole body, refused as soon as it is larger than `most` bytes (None = what calls may have)."""
    limit: int = settings.RELAY_MAX_BODY_BYTES if most is None else most
    announced = named.get(b"content-length", b"")
    if int(announced or 0) > limit:
        raise BodyTooLarge(f"The request body is larger than {limit / 2**20:g} MiB, this relay's limit.")
    unread: Body | None = getattr(request, "relay_body", None)
    # Without the slim entry (Django's own handler, its test client) the body is here already.
    body = await unread.read(limit=limit) if unread is not None else request.read()
    if len(body) > limit:
        raise BodyTooLarge(f"The request body is larger than {limit / 2**20:g} MiB, this relay's limit.")
    if not body and announced and b"upgrade" in named:
        # uvicorn's parser skips the body of such a request; Java's own client sends one unless told HTTP_1_1.
        raise InvalidRequest("upgrade: h2c is not served here and the body was lost; send HTTP/1.1 without it.")
    return body


def read_tags(value: bytes) -> dict[str, str]:
    """`x-relay-tags: team=a,job=b`; raises `InvalidRequest` for anything else."""
    if not value:
        return {}
    pairs = [part.partition("=") for part in value.decode("latin1").split(",") if part.strip()]
    if len(pairs) > MAX_TAGS or any(not name.strip() or not sign for name, sign, _ in pairs):
        raise InvalidRequest(f"x-relay-tags: write it like team=a,job=b, at most {MAX_TAGS} tags.")
    return {name.strip()[:60]: text.strip()[:200] for name, _, text in pairs}


def scope_of(request: HttpRequest) -> dict[str, Any]:
    """What the server said of the request; {} where Django's own WSGI test client made it."""
    scope: dict[str, Any] = getattr(request, "scope", {})
    return scope


def scope_headers(request: HttpRequest) -> Headers:
    """The request's headers as they came, names in lower case."""
    scope = scope_of(request)
    if scope:
        return tuple(scope["headers"])
    return tuple((name.lower().encode(), value.encode("latin1")) for name, value in request.headers.items())


def client_ip(request: HttpRequest) -> str:
    """The client's address, "" where the server does not know it (a Unix socket)."""
    scope = scope_of(request)
    if scope:
        return str((scope.get("client") or ("",))[0])
    return str(request.META.get("REMOTE_ADDR", ""))


def query_of(request: HttpRequest) -> str:
    """The query as it came, percent-encoded where a client sent bytes that no URL may hold; raises `InvalidRequest`.

    What no account could be asked for must fail here: behind this it would count as every account's own failure.
    """
    scope = scope_of(request)
    query: bytes = scope.get("query_string", b"") if scope else request.META.get("QUERY_STRING", "").encode()
    if len(query) > MAX_QUERY_BYTES:
        raise InvalidRequest(f"The query is longer than {MAX_QUERY_BYTES} bytes.", reason="long_query")
    text = query.decode("latin1")
    return text if query.isascii() and text.isprintable() else quote_from_bytes(query, safe=URL_CHARACTERS)


async def respond(reply: Reply) -> HttpResponseBase:
    """The reply as a Django response; a client that leaves first is reported to the call."""
    try:
        head = await reply.head()
    except asyncio.CancelledError:
        reply.leave()
        raise
    if head.body is not None:
        return RelayedResponse(head.status, head.headers, head.body)
    # However the response ends before the reply's end, the client has gone.
    return RelayedStream(head.status, head.headers, reply.chunks(), on_close=reply.leave)


def error_response(dialect: Dialect, error: RelayError, call_id: str) -> HttpResponseBase:
    return as_response(dialect.render_error(error, call_id), call_id)


def as_response(answer: Answer, call_id: str) -> HttpResponseBase:
    return RelayedResponse(answer.status, (*answer.headers, (b"x-request-id", call_id.encode())), answer.body)


def json_response(value: object, *, status: int = 200, call_id: str = "") -> HttpResponse:
    response = HttpResponse(json.dumps(value).encode(), status=status, content_type="application/json")
    if call_id:
        response["x-request-id"] = call_id
    return response


async def known_key(request: HttpRequest) -> tuple[Runtime, Key]:
    """For views that answer themselves: the runtime and the key; raises `NotAuthenticated`."""
    run = await get_runtime()
    try:
        return run, await authenticated(request, scope_headers(request), now=time.time())
    except NotAuthenticated:
        metrics.UNAUTHENTICATED.inc()
        raise


async def not_served(request: HttpRequest, *args: str, **kwargs: str) -> HttpResponseBase:
    """A vendor's path that Baton does not relay: 404 in that vendor's dialect, saying what is served."""
    message = f"{request.method} {request.path[:200]} is not served by this relay; see /api/docs for what is."
    return error_response(dialect_of(request), NotServed(message), new_call_id())


async def method_not_served(request: HttpRequest, *, allow: str) -> HttpResponseBase:
    """405 in the path's dialect; `allow` names the methods that are served there."""
    message = f"{request.method} is not served on {request.path[:200]}; use {allow}."
    response = error_response(dialect_of(request), MethodNotServed(message), new_call_id())
    response["allow"] = allow
    return response


async def unreadable(request: HttpRequest) -> HttpResponseBase:
    """400 for a request that Django itself refuses to read."""
    return error_response(dialect_of(request), InvalidRequest("The request can't be read."), new_call_id())


async def failed(request: HttpRequest) -> HttpResponseBase:
    """500: Baton's own fault. What happened stands in the log."""
    return error_response(dialect_of(request), RelayError("Baton failed to answer this request."), new_call_id())


def dialect_of(request: HttpRequest) -> Dialect:
    """The dialect of a path or method that no route claims: by the path, else by the request's own headers."""
    root, resource = [*request.path.removeprefix("/api").split("/"), "", ""][1:3]
    names = {name for name, _ in scope_headers(request)}
    shared = resource if root == "v1" else ""
    by_path = (dialect for dialect in DIALECTS.values() if root in dialect.roots or shared in dialect.resources)
    by_header = (dialect for dialect in DIALECTS.values() if dialect.models_marker and dialect.models_marker in names)
    others = (dialect for dialect in DIALECTS.values() if not dialect.models_marker)
    return next(by_path, None) or next(by_header, None) or next(others)
