"""Anthropic's own API, with an API key or an OAuth access token, given or got by a refresh token."""

from __future__ import annotations

import re
from typing import ClassVar

import msgspec

from relay.call import Account, Call, Endpoint
from relay.dialects import DIALECTS
from relay.dialects.base import ModelEntry
from relay.errors import (
    AccountRejected,
    ModelUnavailable,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
)
from relay.providers.base import Framer, Headers, Provider, UpstreamRequest
from relay.providers.headers import BATON_USER_AGENT, forwarded, retry_after_seconds, rfc3339
from relay.sse import SseFramer

# An account's own empty budget, quota or organisation: reference/clients.md section 2, Anthropic "errors" page.
NO_QUOTA_TEXT = re.compile(
    r"^You have reached your specified|credit balance is too low|organization has been disabled", re.IGNORECASE
)
NO_QUOTA_CODE = re.compile(r"_spend_limit_reached$|^linked_organization_")
OAUTH_BETA = b"oauth-2025-04-20"
TOKEN_PATH = "/v1/oauth/token"  # noqa: S105 - a path
ABOUT_MODEL = re.compile(r"\bmodel\b", re.IGNORECASE)


class ErrorDetails(msgspec.Struct):
    error_code: str | None = None


class ErrorItem(msgspec.Struct):
    message: str = ""
    details: ErrorDetails | None = None


class ErrorBody(msgspec.Struct):
    error: ErrorItem


class ModelItem(msgspec.Struct):
    id: str
    display_name: str = ""
    created_at: str = ""


class ModelList(msgspec.Struct):
    data: list[ModelItem]


class ClaudeOfficial(Provider):
    kind: ClassVar = "claude_official"
    label: ClassVar = "Claude (official)"
    provider: ClassVar = "anthropic"
    dialects: ClassVar = frozenset({"anthropic"})
    default_base_url: ClassVar = "https://api.anthropic.com"
    credential_fields: ClassVar[tuple[str, ...]] = ("api_key", "access_token", "refresh_token")
    setting_fields: ClassVar[tuple[str, ...]] = ("token_url", "client_id")

    def serves(self, account: Account, endpoint: Endpoint, model: str) -> bool:
        return endpoint.dialect in self.dialects and (not account.model_map or model in account.model_map)

    def upstream_model(self, account: Account, model: str) -> str:
        return account.model_map.get(model) or model

    def request(self, call: Call, account: Account, model: str) -> UpstreamRequest:
        body = call.body
        if body and model != call.envelope.model:
            body = DIALECTS[call.endpoint.dialect].set_model(body, model)
        root = (account.base_url or self.default_base_url).rstrip("/")
        url = f"{root}{self.path(call)}" + (f"?{call.query}" if call.query else "")
        headers = [*forwarded(call.headers), *self.authentication(account)]
        return UpstreamRequest(call.method, url, self.adjust(tuple(headers), account), body)

    def path(self, call: Call) -> str:
        return f"/v1/{call.path}"

    def authentication(self, account: Account) -> list[tuple[bytes, bytes]]:
        if token := account.credential.get("access_token"):
            return [(b"authorization", b"Bearer " + token.encode())]
        return [(b"x-api-key", account.credential.get("api_key", "").encode())]

    def renews(self, account: Account) -> bool:
        return bool(account.credential.get("refresh_token"))

    def token_request(self, account: Account, *, now: float) -> UpstreamRequest:
        """The refresh grant as Anthropic's own SDK sends it; `client_id` is whose login the refresh token is of."""
        root = (account.base_url or self.default_base_url).rstrip("/")
        url = str(account.settings.get("token_url") or f"{root}{TOKEN_PATH}")
        grant = {"grant_type": "refresh_token", "refresh_token": account.credential["refresh_token"]}
        if client_id := account.settings.get("client_id"):
            grant["client_id"] = str(client_id)
        headers = (
            (b"content-type", b"application/json"),
            (b"accept-encoding", b"identity"),
            (b"anthropic-beta", OAUTH_BETA),
            BATON_USER_AGENT,
        )
        return UpstreamRequest("POST", url, headers, msgspec.json.encode(grant))

    def adjust(self, headers: Headers, account: Account) -> Headers:
        """An OAuth token adds its one beta (DESIGN section 3); nothing else is changed."""
        if not account.credential.get("access_token"):
            return headers
        given = b",".join(value for name, value in headers if name == b"anthropic-beta")
        if OAUTH_BETA in given:
            return headers
        rest = tuple(item for item in headers if item[0] != b"anthropic-beta")
        return (*rest, (b"anthropic-beta", given + b"," + OAUTH_BETA if given else OAUTH_BETA))

    def models_request(self, account: Account) -> UpstreamRequest | None:
        root = (account.base_url or self.default_base_url).rstrip("/")
        headers = ((b"anthropic-version", b"2023-06-01"), (b"accept-encoding", b"identity"), BATON_USER_AGENT)
        return UpstreamRequest("GET", f"{root}/v1/models?limit=1000", (*headers, *self.authentication(account)), b"")

    def read_models(self, body: bytes) -> tuple[ModelEntry, ...]:
        try:
            items = msgspec.json.decode(body, type=ModelList).data
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ()
        return tuple(
            ModelEntry(item.id, item.display_name or item.id, rfc3339(item.created_at.encode()) or 0.0)
            for item in items
        )

    def framer(self, call: Call, model: str) -> Framer:
        return SseFramer()

    def classify(self, status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
        text, code = said_in(body)
        if status == 402 or (status in {400, 403, 429} and (NO_QUOTA_TEXT.search(text) or NO_QUOTA_CODE.search(code))):
            return rejected_account("quota", status, headers, body)
        if status in {403, 404} and ABOUT_MODEL.search(text):
            message = "The upstream account lacks the model."
            return ModelUnavailable(message, reason="model", rest="model", status=status, headers=headers, body=body)
        if status in {401, 403}:
            return rejected_account("credential", status, headers, body)
        if status in {429, 503, 529}:
            return UpstreamOverloaded(
                "The upstream is busy.",
                reason=str(status),
                rest=str(status),
                retry_after=retry_after_seconds(headers, now=now),
                status=status,
                headers=headers,
                body=body,
            )
        if status >= 500 or status < 400:
            message = "The upstream failed."
            return UpstreamFailed(message, reason=str(status), rest="5xx", status=status, headers=headers, body=body)
        message = "The upstream rejected the request."
        return UpstreamRejected(message, reason=f"upstream_{status}", status=status, headers=headers, body=body)

    def check(self, account: Account) -> list[str]:
        enough = any(account.credential.get(name) for name in ClaudeOfficial.credential_fields)
        wrong = [] if enough else ["credential is missing: api_key, access_token or refresh_token"]
        url = str(account.settings.get("token_url") or "")
        if url and not url.startswith(("https://", "http://")):
            wrong.append("token_url: http or https, please")
        return wrong


def rejected_account(reason: str, status: int, headers: Headers, body: bytes) -> AccountRejected:
    message = "The upstream account can't be used."
    return AccountRejected(message, reason=reason, rest="credential", status=status, headers=headers, body=body)


def said_in(body: bytes) -> tuple[str, str]:
    """The message and the error code of an error body; the whole text where it is no Anthropic error."""
    try:
        error = msgspec.json.decode(body, type=ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:1000].decode("utf-8", "replace"), ""
    return error.message, (error.details.error_code if error.details else None) or ""
