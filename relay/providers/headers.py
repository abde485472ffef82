"""Which headers go up and which come down (DESIGN section 3): open lists with named exceptions."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

from relay.providers.base import Headers

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
NEVER_UP = HOP_BY_HOP | frozenset(
    b"authorization x-api-key x-goog-api-key api-key cookie host content-length accept-encoding expect "
    b"forwarded via x-real-ip true-client-ip cf-connecting-ip cf-ray cf-visitor cdn-loop "
    b"openai-organization openai-project x-goog-user-project".split()
)
NEVER_DOWN = HOP_BY_HOP | frozenset(
    b"set-cookie content-length content-encoding strict-transport-security alt-svc anthropic-workspace-id "
    b"openai-project x-request-id server date nel report-to".split()
)
RATE_LIMIT = re.compile(rb"^(?:x-|anthropic-)?(?:ratelimit|priority|fast)-|^ratelimit$|^retry-after-ms$")
NONE: frozenset[bytes] = frozenset()
NUMBER = re.compile(r"\s*\d{1,9}(?:\.\d{1,9})?\s*")
BATON_USER_AGENT = (b"user-agent", b"baton")


def forwarded(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The client's headers as they go upstream, in order; `accept-encoding: identity` so that bytes stay readable."""
    named = connection_named(headers)
    kept = [(name, value) for name, value in headers if goes_up(name) and name not in named]
    if not any(name == b"user-agent" for name, _ in kept):
        kept.append(BATON_USER_AGENT)
    kept.append((b"accept-encoding", b"identity"))
    return kept


def returned(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The upstream's headers, their names in lower case, as they go to the client."""
    named = connection_named(headers)
    return [(name, value) for name, value in headers if comes_down(name) and name not in named]


# Names repeat from call to call, so each is judged once; they come from outside, so not all are kept.
@lru_cache(maxsize=1024)
def goes_up(name: bytes) -> bool:
    return name not in NEVER_UP and not name.startswith((b"x-relay-", b"x-forwarded-"))


@lru_cache(maxsize=1024)
def comes_down(name: bytes) -> bool:
    return name not in NEVER_DOWN and b"organization" not in name and not RATE_LIMIT.search(name)


def connection_named(headers: Headers) -> frozenset[bytes]:
    """Header names that a Connection header makes hop-by-hop (RFC 9110, section 7.6.1)."""
    values = [value for name, value in headers if name == b"connection"]
    if not values or values == [b"keep-alive"]:
        return NONE
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


def first(headers: Headers, name: bytes) -> bytes:
    """The first value of a header, b"" without it."""
    return next((value for key, value in headers if key.lower() == name), b"")


def retry_after_seconds(headers: Headers, *, now: float) -> float | None:
    """Seconds that the upstream asks to wait: `retry-after-ms`, `retry-after` (seconds or a date), or a reset time."""
    try:
        if value := first(headers, b"retry-after-ms"):
            return max(0.0, float(value) / 1000)
        if value := first(headers, b"retry-after"):
            text = value.decode("latin1")
            return max(0.0, float(text) if NUMBER.fullmatch(text) else parsedate_to_datetime(text).timestamp() - now)
        if value := first(headers, b"anthropic-ratelimit-unified-reset"):
            return max(0.0, float(value) - now)
    except (ValueError, OverflowError):
        return None
    resets = [
        value
        for kind in (b"requests", b"tokens", b"input-tokens", b"output-tokens")
        if first(headers, b"anthropic-ratelimit-" + kind + b"-remaining") == b"0"
        and (value := first(headers, b"anthropic-ratelimit-" + kind + b"-reset"))
    ]
    moments = [moment for value in resets if (moment := rfc3339(value)) is not None]
    return max(0.0, max(moments) - now) if moments else None


def rfc3339(value: bytes) -> float | None:
    """Unix seconds of an RFC 3339 time, None where it is none."""
    try:
        moment = datetime.fromisoformat(value.decode("ascii"))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
