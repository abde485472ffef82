"""Anthropic's own API, with an API key or a given access token."""

from __future__ import annotations

import re
from typing import ClassVar

from relay.call import Account, Call, Endpoint
from relay.dialects import DIALECTS
from relay.errors import (
    AccountRejected,
    ModelUnavailable,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
)
from relay.providers.base import Framer, Headers, Provider, UpstreamRequest
from relay.providers.headers import first, forwarded, retry_after_seconds
from relay.sse import SseFramer

# An account's own empty budget, quota or organisation: reference/clients.md section 2, Anthropic "errors" page.
ACCOUNT_400 = re.compile(
    rb"You have reached your specified|credit balance is too low|organization has been disabled|"
    rb"enforced_spend_limit_reached|contract_spend_limit_reached|workspace_spend_limit_reached",
    re.IGNORECASE,
)
ABOUT_MODEL = re.compile(rb'"message"\s*:\s*"(?:model:|[^"]*\bmodel\b)', re.IGNORECASE)


class ClaudeOfficial(Provider):
    kind: ClassVar = "claude_official"
    label: ClassVar = "Claude (official)"
    provider: ClassVar = "anthropic"
    dialects: ClassVar = frozenset({"anthropic"})
    default_base_url: ClassVar = "https://api.anthropic.com"
    credential_fields: ClassVar = ("api_key", "access_token", "refresh_token")

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

    def adjust(self, headers: Headers, account: Account) -> Headers:
        """An OAuth token adds its one beta (DESIGN section 3); nothing else is changed."""
        if not account.credential.get("access_token"):
            return headers
        beta = b"oauth-2025-04-20"
        given = b",".join(value for name, value in headers if name == b"anthropic-beta")
        if beta in given:
            return headers
        rest = tuple(item for item in headers if item[0] != b"anthropic-beta")
        return (*rest, (b"anthropic-beta", given + b"," + beta if given else beta))

    def framer(self, call: Call, model: str) -> Framer:
        return SseFramer()

    def classify(self, status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
        wait = retry_after_seconds(headers, now=now)
        said = {"status": status, "headers": headers, "body": body}
        if status == 401 or (status in {400, 402, 403, 429} and ACCOUNT_400.search(body)) or status == 402:
            return AccountRejected(
                "The upstream account can't be used.", reason="credential", rest="credential", **said
            )
        if status in {403, 404} and ABOUT_MODEL.search(body):
            return ModelUnavailable("The upstream account lacks the model.", reason="model", rest="model", **said)
        if status == 403:
            return AccountRejected(
                "The upstream account can't be used.", reason="credential", rest="credential", **said
            )
        if status in {429, 503, 529}:
            return UpstreamOverloaded(
                "The upstream is busy.", reason=str(status), rest=str(status), retry_after=wait, **said
            )
        if status >= 500:
            return UpstreamFailed("The upstream failed.", reason=str(status), rest="5xx", **said)
        return UpstreamRejected("The upstream rejected the request.", reason=f"upstream_{status}", **said)


def request_id(headers: Headers) -> str:
    return first(headers, b"request-id").decode("latin1")
