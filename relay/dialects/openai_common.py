"""What OpenAI's formats share: errors, who is calling, and the usage object."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec

from relay.call import Quantity, RateLimit, Usage
from relay.dialects.base import Answer, Dialect, ModelEntry
from relay.dialects.body import with_field
from relay.errors import InvalidRequest, RelayError, UpstreamError

JsonObject = dict[str, Any]
T = TypeVar("T")
Opening = tuple[str, str | bytes]  # what it is, and the text

# kind of our error -> OpenAI's error type and code; what is missing here is a `server_error`
NATIVE = {
    "authentication_error": ("invalid_request_error", "invalid_api_key"),
    "permission_error": ("invalid_request_error", "permission_denied"),
    "model_not_found": ("invalid_request_error", "model_not_found"),
    "not_found_error": ("invalid_request_error", None),
    "method_not_allowed": ("invalid_request_error", None),
    "invalid_request_error": ("invalid_request_error", None),
    "request_too_large": ("invalid_request_error", "request_too_large"),
    "rate_limit_error": ("requests", "rate_limit_exceeded"),
    "billing_error": ("insufficient_quota", "insufficient_quota"),
    "upstream_rejected": ("invalid_request_error", None),
}
# The status that an error inside a stream would have had; unknown ones are the server's (500).
STATUS_BY_CODE = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "server_is_overloaded": 503,
    "slow_down": 503,
    "invalid_api_key": 401,
    "model_not_found": 404,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "content_filter": 400,
    "content_policy_violation": 400,
    "bio_policy": 400,
    "cyber_policy": 400,
    "misalignment_policy_violation": 400,
    "data_residency_mismatch": 400,
}
# Names of the vendor's organisations and projects: ours, not the client's business.
OURS = re.compile(rb"\b(?:org|proj)[-_][A-Za-z0-9]{6,}\b")
PATIENCE_SECONDS = 60  # a longer wait is not for a client to sleep through
LONGEST_WAIT_SECONDS = 1800  # that is told of an upstream

MAX_NAME = 200
LARGEST = 2**53
DEARER_TIERS = ("priority", "fast", "ultrafast", "scale")
SESSION_HEADERS = (b"x-session-id", b"session_id", b"session-id")
JSON_HEADERS = ((b"content-type", b"application/json"),)
OTHER_INPUT = (
    "audio_input_tokens",
    "audio_cache_read_input_tokens",
    "image_input_tokens",
    "image_cache_read_input_tokens",
    "video_input_tokens",
)
OTHER_OUTPUT = ("audio_output_tokens", "image_output_tokens", "video_output_tokens")
CACHE_WRITES = {"30m": "cache_creation_30m_input_tokens", "12h": "cache_creation_12h_input_tokens"}


class OpenAIDialect(Dialect):
    """Chat Completions and Responses differ in bodies and streams, not in what is here."""

    family: ClassVar = "openai"
    # One line end only: the SDK takes the blank line after a comment for an event once the upstream has sent an `id:`.
    keep_alive: ClassVar = b": keep-alive\n"

    def set_model(self, body: bytes, model: str) -> bytes:
        return with_field(body, "model", model)

    def render_error(self, error: RelayError, request_id: str) -> Answer:
        headers = [*JSON_HEADERS, *retry_headers(error)]
        passed = passed_body(error)
        if passed is not None:
            return Answer(status_of(error), tuple(headers), passed)
        body = msgspec.json.encode({"error": native_error(error)})
        return Answer(status_of(error), tuple(headers), body)

    def rate_headers(self, rates: Sequence[RateLimit], *, now: float) -> list[tuple[bytes, bytes]]:
        """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; the reset is a wait, such as `6m0s`
        (platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers)."""
        headers: list[tuple[bytes, bytes]] = []
        for rate in rates:
            metric = rate.metric.encode()
            headers += (
                (b"x-ratelimit-limit-" + metric, b"%d" % rate.amount),
                (b"x-ratelimit-remaining-" + metric, b"%d" % rate.remaining),
                (b"x-ratelimit-reset-" + metric, duration(rate.resets_at - now)),
            )
        return headers

    def render_models(self, models: Sequence[ModelEntry], *, query: Mapping[str, str]) -> Answer:
        """The whole list: OpenAI does not page it."""
        listed = {"object": "list", "data": [model_object(model) for model in models]}
        return Answer(200, JSON_HEADERS, msgspec.json.encode(listed))

    def render_model(self, model: ModelEntry) -> Answer:
        return Answer(200, JSON_HEADERS, msgspec.json.encode(model_object(model)))

    def in_band_status(self, error_type: str) -> int:
        if error_type.isdigit() and 400 <= int(error_type) <= 599:
            return int(error_type)
        return STATUS_BY_CODE.get(error_type, 400 if "invalid" in error_type or "image" in error_type else 500)


def model_object(model: ModelEntry) -> JsonObject:
    """One model in OpenAI's shape. Who owns it upstream may be the name of an organisation, and is not told."""
    return {"id": model.id, "object": "model", "created": int(model.created_at), "owned_by": "baton"}


def duration(seconds: float) -> bytes:
    """A wait as the vendor writes it: `59s`, `6m0s`, `1h0m0s`."""
    minutes, rest = divmod(max(0, math.ceil(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
    return text.encode()


# -- errors ------------------------------------------------------------------------------------------


def status_of(error: RelayError) -> int:
    """The HTTP status: ours, except where the upstream's own answer is passed on and for a spent budget (429)."""
    if error.kind == "billing_error":
        return 429
    if error.kind in {"upstream_rejected", "overloaded_error"} and isinstance(error, UpstreamError):
        return error.upstream_status or error.status
    return error.status


def passed_body(error: RelayError) -> bytes | None:
    """The upstream's own error body where it goes to the client, None where Baton writes its own."""
    if not isinstance(error, UpstreamError) or not error.body:
        return None
    if error.kind == "upstream_rejected":
        return error.body if not error.try_next_account else OURS.sub(b"(hidden)", error.body)
    if error.kind == "overloaded_error" and error_object(error.body) is not None:
        return OURS.sub(b"(hidden)", error.body)
    return None


def native_error(error: RelayError) -> JsonObject:
    """The `error` object of OpenAI's bodies: message, type, param, code."""
    passed = passed_body(error)
    upstream = error_object(passed) if passed else None
    if upstream is not None:
        return upstream
    if error.kind == "overloaded_error" and status_of(error) == 429:
        kind, code = NATIVE["rate_limit_error"]
    else:
        kind, code = NATIVE.get(error.kind, ("server_error", error.kind))
    return {"message": error.message, "type": kind, "param": getattr(error, "field", None) or None, "code": code}


def error_object(body: bytes) -> JsonObject | None:
    """The error in a body: OpenAI's `{"error": {...}}`, or the flat object that some compatible servers send."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not isinstance(data, dict):
        return None
    error = data.get("error", data if "message" in data else None)
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return None
    return {"message": "", "type": None, "param": None, "code": None, **error}


def error_name(error: JsonObject) -> str:
    """The most telling short name of an error object: its code, else its type."""
    return str(error.get("code") or error.get("type") or "error")[:100]


def retry_headers(error: RelayError) -> list[tuple[bytes, bytes]]:
    """`retry-after`, and `x-should-retry: false` where a retry is of no use or the wait too long to sit out."""
    headers = []
    should_retry = error.should_retry
    if error.retry_after is not None:
        wait = max(1, math.ceil(error.retry_after))
        if isinstance(error, UpstreamError):
            wait = min(wait, LONGEST_WAIT_SECONDS)
        headers.append((b"retry-after", str(wait).encode()))
        if wait > PATIENCE_SECONDS:
            should_retry = False
    if should_retry is not None:
        headers.append((b"x-should-retry", b"true" if should_retry else b"false"))
    return headers


# -- reading a request -------------------------------------------------------------------------------


def decoded(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Read the fields that the decoder's type names; raises `InvalidRequest` that names the wrong one."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        field = where.rstrip("`")
        raise invalid(field, f"{field}: {what}" if field else "The request body is not a JSON object.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("The request body is not valid JSON.") from error


def invalid(field: str, message: str) -> InvalidRequest:
    """An `InvalidRequest` whose body names the field in `param` too."""
    error = InvalidRequest(message)
    error.field = field
    return error


def readable_model(model: str | None) -> str:
    """The model's name as it can stand in a record and in a path; raises `InvalidRequest`."""
    if model is None:
        raise invalid("model", "you must provide a model parameter")
    if not model.strip(" .") or len(model) > MAX_NAME or not model.isprintable():
        raise invalid("model", f"model: expected 1 to {MAX_NAME} printable characters")
    return model


def ruled_out(*, service_tier: object, text_in: bool, text_out: bool, cache_ttl: object) -> tuple[str, ...]:
    """Price tiers and meters that can't apply: a project's own default tier counts unless the request names one, and
    each modality, or cache of half a day, that the request does not ask for is left out."""
    out = ["batch", *(DEARER_TIERS if service_tier in {"default", "flex"} else ())]
    out += OTHER_INPUT if text_in else ()
    out += OTHER_OUTPUT if text_out else ()
    out += () if cache_ttl == "12h" else (CACHE_WRITES["12h"],)
    return tuple(out)


def text(value: object) -> str:
    """A client's or vendor's name for something, as it can stand in a record."""
    return value[:MAX_NAME] if isinstance(value, str) else ""


def session_of(headers: dict[bytes, bytes]) -> str:
    """The session that the client names in a header, "" without one."""
    return next((headers[name].decode("latin1")[:MAX_NAME] for name in SESSION_HEADERS if headers.get(name)), "")


def conversation(candidates: Iterable[Opening]) -> str:
    """A hash of the first text that names the conversation; `candidates` are best first."""
    for kind, text in candidates:
        if text:
            raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
            return hashlib.sha256(kind.encode() + b"\0" + raw).hexdigest()
    return ""


# -- usage -------------------------------------------------------------------------------------------


def count(value: object) -> int | None:
    """A token count as it was reported, a whole float too; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST else None


def first_count(fields: JsonObject, *names: str, flags: list[str]) -> int | None:
    """The count under the first name that is there; a flag where that is no count."""
    name = next((name for name in names if fields.get(name) is not None), "")
    found = count(fields.get(name))
    if name and found is None:
        flags.append(f"unreadable_{name}")
    return found


def as_object(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}


def read_usage(raw: bytes, *, cache_ttl: str = "") -> Usage | None:
    """The usage object of either format as disjoint counts, None where it is none.

    OpenAI's input includes cache reads, cache writes and audio, its output includes audio: all taken out of the plain
    counts here, because they have rates of their own. Images in a prompt are billed as plain input and stay there.
    """
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not isinstance(data, dict):
        return None
    into = as_object(data.get("input_tokens_details", data.get("prompt_tokens_details")))
    out = as_object(data.get("output_tokens_details", data.get("completion_tokens_details")))
    writes, flags = cache_writes(into, cache_ttl)
    whole_in = first_count(data, "input_tokens", "prompt_tokens", flags=flags)
    whole_out = first_count(data, "output_tokens", "completion_tokens", flags=flags)
    cached = first_count(into, "cached_tokens", flags=flags)
    audio = [
        Quantity("audio_input_tokens", count(into.get("audio_tokens")) or 0),
        Quantity("audio_output_tokens", count(out.get("audio_tokens")) or 0),
    ]
    written = sum(item.quantity for item in writes)
    plain_in = less(whole_in, (cached or 0) + written + audio[0].quantity, "cached_exceeds_input", flags)
    plain_out = less(whole_out, audio[1].quantity, "audio_exceeds_output", flags)
    reasoning = count(out.get("reasoning_tokens"))
    if reasoning is not None and plain_out is not None and reasoning > plain_out:
        flags.append("reasoning_exceeds_output")  # some compatible servers count it beside the output
        reasoning = plain_out
    if count(data.get("total_tokens")) not in {None, (whole_in or 0) + (whole_out or 0)}:
        flags.append("usage_mismatch")
    return Usage(
        input_tokens=plain_in,
        cache_read_input_tokens=cached,
        output_tokens=plain_out,
        reasoning_tokens=reasoning,
        extra=tuple(item for item in (*writes, *audio) if item.quantity),
        flags=tuple(flags),
        raw=bytes(raw),
    )


def less(whole: int | None, part: int, flag: str, flags: list[str]) -> int | None:
    """`whole` without `part`, never below zero; where it would be, `flag` joins the flags."""
    if whole is None:
        return None
    if part > whole:
        flags.append(flag)
    return max(0, whole - part)


def cache_writes(details: JsonObject, ttl: str) -> tuple[list[Quantity], list[str]]:
    """What was written to a cache, by lifetime. Without a split it is all of the request's lifetime, OpenAI's default
    being 30 minutes. Also returns flags for what does not add up."""
    written = count(details.get("cache_write_tokens")) or 0
    split = as_object(details.get("cache_write_tokens_details"))
    by_ttl = {name: count(split.get(f"ttl_{name}_tokens")) or 0 for name in CACHE_WRITES}
    known = sum(by_ttl.values())
    flags = ["cache_write_mismatch"] if known and known != written else []
    by_ttl[ttl if ttl in by_ttl else "30m"] += max(0, written - known)
    return [Quantity(CACHE_WRITES[name], quantity) for name, quantity in by_ttl.items() if quantity], flags
