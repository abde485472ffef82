"""Anthropic's Messages format: the dialect's face, how it says that something went wrong, and its lists of models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar

import msgspec

from relay.call import Endpoint, Envelope, RateLimit
from relay.dialects import anthropic_envelope
from relay.dialects import body as json_body
from relay.dialects.anthropic_meter import AnthropicMeter
from relay.dialects.base import Answer, Dialect, Meter, ModelEntry
from relay.errors import InvalidRequest, RelayError, UpstreamError

# kind of a RelayError -> status, native type (reference/clients.md section 2)
ERRORS = {
    "authentication_error": (401, "authentication_error"),
    "billing_error": (402, "billing_error"),
    "permission_error": (403, "permission_error"),
    "model_not_found": (404, "not_found_error"),
    "not_found_error": (404, "not_found_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "invalid_request_error": (400, "invalid_request_error"),
    "request_too_large": (413, "request_too_large"),
    "rate_limit_error": (429, "rate_limit_error"),
    "no_account_available": (503, "overloaded_error"),
    "upstream_timeout": (504, "timeout_error"),
}
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
STATUSES = {kind: status for status, kind in TYPES.items()}
# Errors that carry the upstream's own answer to the client.
PASSED_ON = frozenset({"upstream_rejected", "overloaded_error"})
KEPT_HEADERS = (b"content-type", b"request-id", b"x-should-retry")
MAX_RETRY_AFTER = 1800
# Above this a client must not sit the wait out: it would sleep through it.
PATIENCE = 60


def type_of(status: int) -> str:
    """The error type that the vendor gives with a status."""
    return TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


class _Error(msgspec.Struct):
    type: str = "api_error"
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _Error


_error_body = msgspec.json.Decoder(_ErrorBody)
_UNREADABLE = (ValueError, RecursionError, msgspec.MsgspecError)


class Anthropic(Dialect):
    name: ClassVar = "anthropic"
    family: ClassVar = "claude"
    keep_alive: ClassVar = b'event: ping\ndata: {"type": "ping"}\n\n'
    models_marker: ClassVar = b"anthropic-version"
    entrance: ClassVar = ("messages", "/v1/messages")
    roots: ClassVar = frozenset({"claude"})
    resources: ClassVar = frozenset({"messages"})

    def read_envelope(self, body: bytes, *, headers: dict[bytes, bytes], path_model: str = "") -> Envelope:
        return anthropic_envelope.read(body, headers)

    def bounded(self, body: bytes, envelope: Envelope) -> Envelope:
        return anthropic_envelope.bounded(body, envelope)

    def canonical(self, body: bytes, envelope: Envelope) -> bytes:
        return json_body.canonical(body) if envelope.repeats else body

    def set_model(self, body: bytes, model: str) -> bytes:
        return json_body.with_field(body, "model", model)

    def render_error(self, error: RelayError, request_id: str) -> Answer:
        headers = _retry_headers(error)
        if isinstance(error, UpstreamError) and error.kind in PASSED_ON and error.upstream_status and error.body:
            kept = tuple((name, value) for name, value in error.headers if name in KEPT_HEADERS)
            own = {name for name, _ in headers}
            headers = (*(item for item in kept if item[0] not in own), *headers)
            return Answer(error.upstream_status, headers, error.body)
        status, kind = _status_and_type(error)
        head = ((b"content-type", b"application/json"), (b"request-id", request_id.encode()), *headers)
        return Answer(status, head, _body(kind, error.message, request_id))

    def rate_headers(self, rates: Sequence[RateLimit], *, now: float) -> list[tuple[bytes, bytes]]:
        """`anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}`; the reset in RFC 3339
        (platform.claude.com/docs/en/api/rate-limits#response-headers)."""
        headers: list[tuple[bytes, bytes]] = []
        for rate in rates:
            prefix = f"anthropic-ratelimit-{rate.metric}-".encode()
            headers += (
                (prefix + b"limit", b"%d" % rate.amount),
                (prefix + b"remaining", b"%d" % rate.remaining),
                (prefix + b"reset", rfc3339(rate.resets_at)),
            )
        return headers

    def error_event(self, error: RelayError, request_id: str) -> bytes:
        kind, message = _status_and_type(error)[1], error.message
        if isinstance(error, UpstreamError) and error.kind in PASSED_ON:
            try:
                said = _error_body.decode(error.body).error
                kind, message = said.type, said.message
            except _UNREADABLE:
                pass  # not the vendor's shape: our own words then
        return b"event: error\ndata: " + _body(kind, message, request_id) + b"\n\n"

    def meter(self, endpoint: Endpoint) -> Meter:
        return AnthropicMeter(metered=endpoint.metered)

    def in_band_status(self, error_type: str) -> int:
        return STATUSES.get(error_type, 500)

    def render_models(self, models: Sequence[ModelEntry], *, query: Mapping[str, str]) -> Answer:
        names = [entry.id for entry in models]
        after, before = query.get("after_id", ""), query.get("before_id", "")
        start = names.index(after) + 1 if after in names else 0
        stop = names.index(before) if before in names else len(names)
        limit = _limit(query.get("limit", ""))
        # With `before_id` the page is the one that ends there.
        first = max(start, stop - limit) if before in names else start
        page = models[first : min(stop, first + limit)]
        more = first > start if before in names else first + len(page) < stop
        return _json(
            {
                "data": [_model_info(entry) for entry in page],
                "has_more": more,
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
            }
        )

    def render_model(self, model: ModelEntry) -> Answer:
        return _json(_model_info(model))

    def probe(self, model: str) -> tuple[str, str, tuple[tuple[bytes, bytes], ...], bytes]:
        body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "ping"}]}
        headers = ((b"content-type", b"application/json"), (b"anthropic-version", b"2023-06-01"))
        return "messages", "messages", headers, msgspec.json.encode(body)


# --- Errors -----------------------------------------------------------------------------------------


def _status_and_type(error: RelayError) -> tuple[int, str]:
    if isinstance(error, UpstreamError) and error.kind in PASSED_ON and error.upstream_status:
        status = error.upstream_status
        return status, type_of(status)
    return ERRORS.get(error.kind, (error.status, "api_error"))


@lru_cache(maxsize=64)
def rfc3339(moment: float) -> bytes:
    """A moment in Unix seconds, as the vendor writes it."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()


def _retry_headers(error: RelayError) -> tuple[tuple[bytes, bytes], ...]:
    should_retry, headers = error.should_retry, []
    if error.retry_after is not None:
        wait = max(1, math.ceil(error.retry_after))
        if isinstance(error, UpstreamError):
            wait = min(wait, MAX_RETRY_AFTER)
        headers.append((b"retry-after", b"%d" % wait))
        if wait > PATIENCE:
            should_retry = False
    if should_retry is not None:
        headers.append((b"x-should-retry", b"true" if should_retry else b"false"))
    return tuple(headers)


def _body(kind: str, message: str, request_id: str) -> bytes:
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})


# --- Lists of models --------------------------------------------------------------------------------


def _limit(value: str) -> int:
    """The vendor's page size: 20 unless asked, 1 to 1000; raises `InvalidRequest`."""
    if not value:
        return 20
    if not value.isascii() or not value.isdigit() or not 1 <= int(value[:6]) <= 1000:
        raise InvalidRequest("limit: Input should be between 1 and 1000", reason="bad_limit")
    return int(value)


def _model_info(entry: ModelEntry) -> dict[str, Any]:
    """The upstream's own entry where it has this shape, under the name by which this relay serves it."""
    known: dict[str, Any] = {}
    try:
        raw = msgspec.json.decode(entry.raw) if entry.raw else {}
        if isinstance(raw, dict) and raw.get("type") == "model":
            known = raw
    except _UNREADABLE:
        pass  # another vendor's shape: what Baton knows itself then
    created = datetime.fromtimestamp(entry.created_at, UTC).isoformat().replace("+00:00", "Z")
    own = {
        "type": "model",
        "id": entry.id,
        "display_name": entry.display_name or entry.id,
        "created_at": created,
        "lifecycle": "active",
    }
    return {**own, **known, "id": entry.id}


def _json(value: object) -> Answer:
    return Answer(200, ((b"content-type", b"application/json"),), msgspec.json.encode(value))
