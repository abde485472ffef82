"""OpenAI's own API; the other OpenAI-shaped upstreams differ from it in addresses and credentials."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar
from urllib.parse import parse_qsl, urlencode

import msgspec

from relay.call import Account, Call, Endpoint
from relay.dialects import DIALECTS
from relay.dialects.base import ModelEntry
from relay.dialects.openai_chat import asks_for_usage, with_usage
from relay.dialects.openai_common import JsonObject, error_object
from relay.dialects.openai_meter import without_usage_chunk
from relay.errors import (
    AccountRejected,
    ModelUnavailable,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
)
from relay.providers.base import Framer, Headers, Provider, UpstreamRequest
from relay.providers.headers import BATON_USER_AGENT, first, forwarded, retry_after_seconds
from relay.sse import SseFramer

CHAT = "chat/completions"
VERSION = re.compile(r"/v\d+[a-z0-9]*(?:/|$)")
# An Azure client's path carries its family: what stands behind it is the same everywhere.
AZURE_FAMILY = re.compile(r"^openai/(?:v1/|deployments/[^/]+/)?")

# The account's own empty balance or spent quota; OpenAI says so with 429, others with 400, 402 or 403.
NO_QUOTA = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded", "insufficient_balance"}
)
NO_QUOTA_TEXT = re.compile(r"exceeded your current quota|out of call volume quota|insufficient balance", re.IGNORECASE)
BAD_KEY = frozenset({"invalid_api_key", "account_deactivated"})
BAD_KEY_TEXT = re.compile(r"incorrect api key|invalid api key|api key (?:is )?not valid", re.IGNORECASE)
NO_MODEL = frozenset({"model_not_found", "DeploymentNotFound", "model_not_available", "invalid_model"})
ABOUT_MODEL = re.compile(r"\b(?:model|deployment)\b", re.IGNORECASE)
# 403 for what the request says or asks for, not for who we are.
POLICY = re.compile(r"policy|moderation|content_filter|flagged|access_program", re.IGNORECASE)
STREAM_OPTIONS = re.compile(rb"stream_options|include_usage")
DURATION = re.compile(rb"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:([\d.]+)ms)?")
UNITS = (86400.0, 3600.0, 60.0, 1.0, 0.001)


class ModelItem(msgspec.Struct):
    id: str
    created: float = 0.0


class ModelList(msgspec.Struct):
    data: list[msgspec.Raw]


class OpenAI(Provider):
    kind: ClassVar = "openai"
    label: ClassVar = "OpenAI"
    provider: ClassVar = "openai"
    dialects: ClassVar = frozenset({"openai_chat", "openai_responses"})
    default_base_url: ClassVar = "https://api.openai.com"

    def serves(self, account: Account, endpoint: Endpoint, model: str) -> bool:
        return endpoint.dialect in self.dialects and (not account.model_map or not model or model in account.model_map)

    def upstream_model(self, account: Account, model: str) -> str:
        return account.model_map.get(model) or model

    def request(self, call: Call, account: Account, model: str) -> UpstreamRequest:
        body = self.named(call, account, model)
        return self.sent(call, account, with_usage(body) if self.adds_usage(call, account) else body)

    def named(self, call: Call, account: Account, model: str) -> bytes:
        """The body with the model as this account calls it."""
        return renamed(call, model)

    def sent(self, call: Call, account: Account, body: bytes) -> UpstreamRequest:
        headers = (*forwarded(call.headers), *self.authentication(account))
        return UpstreamRequest(call.method, self.url(call, account), headers, body)

    def url(self, call: Call, account: Account) -> str:
        kept = [(name, value) for name, value in parse_qsl(call.query, keep_blank_values=True) if name != "api-version"]
        query = call.query if "api-version" not in call.query else urlencode(kept)
        return f"{self.root(account)}/{operation(call.path)}" + (f"?{query}" if query else "")

    def root(self, account: Account) -> str:
        """The address in front of the paths; a base URL that names its API's version has said all."""
        base = (account.base_url or self.default_base_url).rstrip("/")
        path = base.partition("://")[2].partition("/")[2]
        return base if VERSION.search(f"/{path}") else f"{base}/v1"

    def authentication(self, account: Account) -> list[tuple[bytes, bytes]]:
        return [(b"authorization", b"Bearer " + account.credential.get("api_key", "").encode())]

    # -- usage, which a chat stream reports only when asked ----------------------------------------------

    def adds_usage(self, call: Call, account: Account) -> bool:
        """Whether this request asks for usage although its client did not."""
        return call.envelope.stream and operation(call.path) == CHAT and not asks_for_usage(call.body)

    def hidden(self, call: Call, account: Account) -> Callable[[bytes], bytes] | None:
        return without_usage_chunk if self.adds_usage(call, account) else None

    def without_additions(self, call: Call, account: Account, error: UpstreamError) -> UpstreamRequest | None:
        if not (self.adds_usage(call, account) and names_stream_options(error)):
            return None
        model = self.upstream_model(account, call.envelope.model)
        return self.sent(call, account, self.named(call, account, model))

    # -- answers -----------------------------------------------------------------------------------------

    def framer(self, call: Call, model: str) -> Framer:
        return SseFramer()

    def classify(self, status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
        return classify(status, headers, body, now=now)

    def request_id(self, headers: Headers) -> str:
        return first(headers, b"x-request-id").decode("latin1")

    def probe_dialect(self, account: Account) -> str:
        return "openai_chat"

    def models_request(self, account: Account) -> UpstreamRequest | None:
        headers = ((b"accept-encoding", b"identity"), BATON_USER_AGENT, *self.authentication(account))
        return UpstreamRequest("GET", f"{self.root(account)}/models", headers, b"")

    def read_models(self, body: bytes) -> tuple[ModelEntry, ...]:
        try:
            items = msgspec.json.decode(body, type=ModelList).data
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ()
        return tuple(entry for raw in items if (entry := model_entry(bytes(raw))) is not None)


def renamed(call: Call, model: str) -> bytes:
    """The body with another name for the model; a call on a stored response names none."""
    return DIALECTS[call.endpoint.dialect].set_model(call.body, model) if call.body and model else call.body


def operation(path: str) -> str:
    """A client's path without what names its vendor's family: `chat/completions`, `responses/{id}` ..."""
    return AZURE_FAMILY.sub("", path)


def model_entry(raw: bytes) -> ModelEntry | None:
    try:
        item = msgspec.json.decode(raw, type=ModelItem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return ModelEntry(item.id, item.id, item.created, raw)


# -- whose fault an error answer is; the same for all OpenAI-shaped upstreams -----------------------


def classify(status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
    """The error of an answer that is no success."""
    error = error_object(body) or {}
    code = str(error.get("code") or error.get("type") or "")
    text = str(error.get("message") or "")
    if is_quota(status, error, text):
        return AccountRejected(
            "The upstream account can't be used.",
            reason="quota",
            rest="credential",
            status=status,
            headers=headers,
            body=body,
        )
    if status == 401 or code in BAD_KEY or (status in {400, 403} and BAD_KEY_TEXT.search(text)):
        return rejected_account(status, headers, body)
    if code in NO_MODEL or (status in {403, 404} and is_about_model(error, text)):
        return ModelUnavailable(
            "The upstream account lacks the model.",
            reason="model",
            rest="model",
            status=status,
            headers=headers,
            body=body,
        )
    if status == 403 and not (error.get("param") or POLICY.search(f"{code} {text}")):
        return rejected_account(status, headers, body)
    return by_status(status, headers, body, now=now)


def by_status(status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
    """What is left says all by its status."""
    if status in {429, 503, 529}:
        return UpstreamOverloaded(
            "The upstream is busy.",
            reason=str(status),
            rest=str(status),
            retry_after=wait_seconds(headers, now=now),
            status=status,
            headers=headers,
            body=body,
        )
    if status == 408:
        return UpstreamTimeout(
            "The upstream took too long.", reason="408", rest="timeout", status=status, headers=headers, body=body
        )
    if status >= 500 or status < 400:
        return UpstreamFailed(
            "The upstream failed.", reason=str(status), rest="5xx", status=status, headers=headers, body=body
        )
    return UpstreamRejected(
        "The upstream rejected the request.", reason=f"upstream_{status}", status=status, headers=headers, body=body
    )


def rejected_account(status: int, headers: Headers, body: bytes) -> UpstreamError:
    return AccountRejected(
        "The upstream account can't be used.",
        reason="credential",
        rest="credential",
        status=status,
        headers=headers,
        body=body,
    )


def is_quota(status: int, error: JsonObject, text: str) -> bool:
    named = {str(error.get("code")), str(error.get("type"))}
    return status == 402 or bool(named & NO_QUOTA) or (status in {400, 403, 429} and bool(NO_QUOTA_TEXT.search(text)))


def is_about_model(error: JsonObject, text: str) -> bool:
    """Whether the account lacks the model; a missing stored response is no such thing."""
    return error.get("param") == "model" or bool(ABOUT_MODEL.search(text))


def names_stream_options(error: UpstreamError) -> bool:
    """Whether the upstream rejected the option that asks for usage."""
    return error.upstream_status in {400, 422} and bool(STREAM_OPTIONS.search(error.body))


def wait_seconds(headers: Headers, *, now: float) -> float | None:
    """Seconds until the upstream takes calls again, as it says; None where it does not."""
    asked = retry_after_seconds(headers, now=now)
    if asked is not None:
        return asked
    resets = [
        duration(first(headers, b"x-ratelimit-reset-" + kind))
        for kind in (b"requests", b"tokens")
        if first(headers, b"x-ratelimit-remaining-" + kind) == b"0"
    ]
    return max((seconds for seconds in resets if seconds is not None), default=None)


def duration(value: bytes) -> float | None:
    """Seconds of OpenAI's `6m0s`, `1.5s`, `120ms`; None for anything else."""
    match = DURATION.fullmatch(value.strip())
    if match is None or not any(match.groups()):
        return None
    try:
        return sum(float(part) * unit for part, unit in zip(match.groups(), UNITS, strict=True) if part)
    except ValueError:
        return None
