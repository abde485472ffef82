"""Google's Gemini format: the dialect's face, its errors, and its lists of models."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import msgspec

from relay.call import Call, Endpoint, Envelope
from relay.dialects import body as json_body
from relay.dialects import gemini_envelope
from relay.dialects.base import Answer, Dialect, Meter, ModelEntry
from relay.dialects.gemini_meter import GeminiMeter
from relay.errors import InvalidRequest, RelayError, UpstreamError

# kind of a RelayError -> status, Google's name of it. 402 stops Gemini's clients at the first answer (clients.md).
ERRORS = {
    "authentication_error": (401, "UNAUTHENTICATED"),
    "billing_error": (402, "FAILED_PRECONDITION"),
    "permission_error": (403, "PERMISSION_DENIED"),
    "model_not_found": (404, "NOT_FOUND"),
    "not_found_error": (404, "NOT_FOUND"),
    "invalid_request_error": (400, "INVALID_ARGUMENT"),
    "request_too_large": (413, "INVALID_ARGUMENT"),
    "rate_limit_error": (429, "RESOURCE_EXHAUSTED"),
    "upstream_timeout": (504, "DEADLINE_EXCEEDED"),
    "api_error": (500, "INTERNAL"),
}
# google.rpc.Code and its HTTP mapping.
STATUSES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
NAMES = {status: name for name, status in reversed(STATUSES.items())}
# Errors that carry the upstream's own answer to the client.
PASSED_ON = frozenset({"upstream_rejected", "overloaded_error"})
KEPT_HEADERS = (b"content-type", b"x-should-retry")
# Our own project at Google is not the client's business.
OURS = re.compile(rb"\bprojects/[a-z0-9][a-z0-9:.-]*|\bproject_number:\d+")
JSON_HEADERS = ((b"content-type", b"application/json; charset=UTF-8"),)
RPC = "type.googleapis.com/google.rpc."
PATIENCE = 60  # seconds that a client may sit out
LONGEST_WAIT = 1800
PAGE, LARGEST_PAGE = 50, 1000
MODEL_KEY = re.compile(rb'"model"\s*:|\\u00')


class Gemini(Dialect):
    name: ClassVar = "gemini"
    family: ClassVar = "gemini"
    # A comment breaks Google's clients; a bare newline may stand between events and between elements.
    keep_alive: ClassVar = b"\n"
    models_marker: ClassVar = b"x-goog-api-key"
    entrance: ClassVar = ("generate_content", "/v1beta/models/{model}:generateContent")
    roots: ClassVar = frozenset({"gemini", "v1beta", "v1beta1", "v1alpha"})
    max_output_field: ClassVar = "generationConfig.maxOutputTokens"

    def __init__(self, *, array: bool = False, answers: int = 1, tier: str = "") -> None:
        self._array, self._answers, self._tier = array, answers, tier
        self.stream_type = b"application/json" if array else b"text/event-stream"

    def spoken(self, call: Call) -> Gemini:
        """Streams are events with `?alt=sse`, else one JSON array."""
        alt = next((value for name, value in parse_qsl(call.query) if name.lstrip("$") == "alt"), "")
        tier = gemini_envelope.asked_tier(call.body)
        return Gemini(array=call.envelope.stream and alt != "sse", answers=call.envelope.answers, tier=tier)

    def read_envelope(self, body: bytes, *, headers: dict[bytes, bytes], path_model: str = "") -> Envelope:
        return gemini_envelope.read(body, headers, path_model)

    def bounded(self, body: bytes, envelope: Envelope) -> Envelope:
        return gemini_envelope.bounded(body, envelope)

    def canonical(self, body: bytes, envelope: Envelope) -> bytes:
        return gemini_envelope.canonical(body) if envelope.repeats else body

    def set_model(self, body: bytes, model: str) -> bytes:
        """The model stands in the path; bodies that name it once more must name the same one."""
        if MODEL_KEY.search(body) is None:
            return body
        fields = json_body.fields(body)
        changed = {**fields, **renamed(fields, f"models/{model}")}
        return body if changed == fields else json_body.join(changed)

    def meter(self, endpoint: Endpoint) -> Meter:
        return GeminiMeter(metered=endpoint.metered, answers=self._answers, tier=self._tier)

    def probe(self, model: str) -> tuple[str, str, tuple[tuple[bytes, bytes], ...], bytes]:
        body = {
            "contents": [{"role": "user", "parts": [{"text": "ping"}]}],
            "generationConfig": {"maxOutputTokens": 16},
        }
        path = f"v1beta/models/{model}:generateContent"
        return "generate_content", path, ((b"content-type", b"application/json"),), msgspec.json.encode(body)

    # -- errors --------------------------------------------------------------------------------------

    def render_error(self, error: RelayError, request_id: str) -> Answer:
        headers = retry_headers(error)
        if isinstance(error, UpstreamError) and error.kind in PASSED_ON and error.upstream_status and error.body:
            kept = tuple(item for item in error.headers if item[0] in KEPT_HEADERS)
            own = {name for name, _ in headers}
            return Answer(
                error.upstream_status, (*(item for item in kept if item[0] not in own), *headers), passed(error)
            )
        status = status_of(error)[0]
        return Answer(status, (*JSON_HEADERS, *headers), msgspec.json.encode({"error": native(error, request_id)}))

    def error_event(self, error: RelayError, request_id: str) -> bytes:
        """In events Google's own error is plain JSON, the one thing that its JavaScript SDK raises on; everyone else
        reads events, and gets one behind it."""
        said = msgspec.json.encode({"error": native(error, request_id)})
        return b"[" + said + b"]" if self._array else said + b"\n\ndata: " + said + b"\n\n"

    def last_event(self, error: RelayError, request_id: str, *, meter: Meter) -> bytes:
        """Where the upstream's array began, it goes on and is closed."""
        if isinstance(meter, GeminiMeter) and meter.array:
            said = msgspec.json.encode({"error": native(error, request_id)})
            return b"" if meter.closed else b",\n" + said + b"]"
        return self.error_event(error, request_id)

    def in_band_status(self, error_type: str) -> int:
        if error_type.isdigit() and 400 <= int(error_type) <= 599:
            return int(error_type)
        return STATUSES.get(error_type, 500)

    # -- lists of models -----------------------------------------------------------------------------

    def render_models(self, models: Sequence[ModelEntry], *, query: Mapping[str, str]) -> Answer:
        ids = [entry.id for entry in models]
        start = ids.index(after) + 1 if (after := last_of(query.get("pageToken", ""))) in ids else 0
        page = models[start : start + page_size(query.get("pageSize", ""))]
        listed: dict[str, Any] = {"models": [model_info(entry) for entry in page]}
        if start + len(page) < len(models):
            listed["nextPageToken"] = base64.urlsafe_b64encode(page[-1].id.encode()).decode()
        return Answer(200, JSON_HEADERS, msgspec.json.encode(listed))

    def render_model(self, model: ModelEntry) -> Answer:
        return Answer(200, JSON_HEADERS, msgspec.json.encode(model_info(model)))


def renamed(fields: json_body.Fields, model: str) -> dict[str, msgspec.Raw]:
    """The fields of a body that name the model, with this name."""
    name = msgspec.Raw(msgspec.json.encode(model))
    found: dict[str, msgspec.Raw] = {}
    for key, raw in fields.items():
        try:
            if key == "model":
                found[key] = name
            elif key in {"generateContentRequest", "generate_content_request"}:
                found[key] = msgspec.Raw(json_body.with_field(bytes(raw), "model", model))
            elif key == "requests":
                items = msgspec.json.decode(raw, type=list[msgspec.Raw])
                joined = b",".join(json_body.with_field(bytes(item), "model", model) for item in items)
                found[key] = msgspec.Raw(b"[" + joined + b"]")
        except (InvalidRequest, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # not the shape it has where it means something: the vendor's to judge
    return found


# -- errors ------------------------------------------------------------------------------------------


def status_of(error: RelayError) -> tuple[int, str]:
    """HTTP status and Google's name of it."""
    if isinstance(error, UpstreamError) and error.kind in PASSED_ON and error.upstream_status:
        status = error.upstream_status
        return status, NAMES.get(status, "INVALID_ARGUMENT" if status < 500 else "UNAVAILABLE")
    return ERRORS.get(error.kind, (error.status, NAMES.get(error.status, "UNAVAILABLE")))


def native(error: RelayError, request_id: str) -> Any:
    """The `error` object: the upstream's own where it may be told, else ours with Google's details."""
    if isinstance(error, UpstreamError) and error.kind in PASSED_ON and (said := upstream_error(passed(error))):
        return said
    status, name = status_of(error)
    return {"code": status, "message": error.message, "status": name, "details": details(error, status, request_id)}


def details(error: RelayError, status: int, request_id: str) -> list[dict[str, Any]]:
    """What clients read beside the message: Gemini CLI stops at a quota by the day and sits `retryDelay` out."""
    found: list[dict[str, Any]] = [
        {"@type": f"{RPC}ErrorInfo", "reason": error.kind.upper(), "domain": "baton"},
        {"@type": f"{RPC}RequestInfo", "requestId": request_id},
    ]
    field = getattr(error, "field", "")
    if field:
        violation = {"field": field, "description": error.message}
        found.append({"@type": f"{RPC}BadRequest", "fieldViolations": [violation]})
    if status == 429:
        wait = wait_of(error) or 0
        by = "Day" if wait > PATIENCE else "Minute"
        quota = {"quotaMetric": "baton/limit", "quotaId": f"BatonLimitPer{by}", "description": error.message}
        found.append({"@type": f"{RPC}QuotaFailure", "violations": [quota]})
    delay = wait_of(error)
    if delay is not None:
        found.append({"@type": f"{RPC}RetryInfo", "retryDelay": f"{delay}s"})
    return found


def upstream_error(body: bytes) -> dict[str, Any]:
    """The error object of an upstream's body, which may be an array of one; {} where it is no such thing."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    said = said[0] if isinstance(said, list) and said else said
    error = said.get("error") if isinstance(said, dict) else None
    return error if isinstance(error, dict) else {}


def passed(error: UpstreamError) -> bytes:
    """The upstream's body as a client may read it: what is the caller's own fault, untouched."""
    return OURS.sub(b"projects/(hidden)", error.body) if error.try_next_account else error.body


def wait_of(error: RelayError) -> int | None:
    """Seconds to wait, whole ones."""
    if error.retry_after is None:
        return None
    wait = max(1, math.ceil(error.retry_after))
    return min(wait, LONGEST_WAIT) if isinstance(error, UpstreamError) else wait


def retry_headers(error: RelayError) -> tuple[tuple[bytes, bytes], ...]:
    wait, should_retry = wait_of(error), error.should_retry
    headers = [] if wait is None else [(b"retry-after", b"%d" % wait)]
    if wait is not None and wait > PATIENCE:
        should_retry = False
    if should_retry is not None:
        headers.append((b"x-should-retry", b"true" if should_retry else b"false"))
    return tuple(headers)


# -- lists of models ---------------------------------------------------------------------------------


def page_size(value: str) -> int:
    """Google's page: 50 unless asked, at most 1000; raises `InvalidRequest`."""
    if not value or value == "0":
        return PAGE
    if not value.isascii() or not value.isdigit():
        error = InvalidRequest("pageSize: a positive whole number is expected", reason="bad_pageSize")
        error.field = "pageSize"
        raise error
    return min(int(value[:6]), LARGEST_PAGE)


def last_of(token: str) -> str:
    """The last model of the page before, "" for a token that is none."""
    try:
        return base64.urlsafe_b64decode(token.encode()).decode()
    except ValueError:
        return ""


def model_info(entry: ModelEntry) -> dict[str, Any]:
    """The upstream's own entry where it has this shape, under the name by which this relay serves it."""
    known: dict[str, Any] = {}
    try:
        raw = msgspec.json.decode(entry.raw) if entry.raw else {}
        if isinstance(raw, dict) and str(raw.get("name", "")).startswith("models/"):
            known = raw
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # another vendor's shape: what Baton knows itself then
    own = {"displayName": entry.display_name or entry.id}
    return {**own, **known, "name": f"models/{entry.id}"}
