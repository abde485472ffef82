"""An Anthropic-compatible router, addressed as `ccr,<model>` or by binding; its errors pass verbatim."""

from __future__ import annotations

from typing import ClassVar

from relay.call import Account, Endpoint
from relay.errors import AccountRejected, UpstreamError, UpstreamRejected
from relay.providers.base import Headers
from relay.providers.claude_console import ClaudeConsole

PREFIX = "ccr,"


class Ccr(ClaudeConsole):
    kind: ClassVar = "ccr"
    label: ClassVar = "Claude Code Router"
    default_base_url: ClassVar = ""
    address_prefix: ClassVar = PREFIX

    def serves(self, account: Account, endpoint: Endpoint, model: str) -> bool:
        return super().serves(account, endpoint, model.removeprefix(PREFIX))

    def upstream_model(self, account: Account, model: str) -> str:
        return super().upstream_model(account, model.removeprefix(PREFIX))

    def classify(self, status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
        error = super().classify(status, headers, body, now=now)
        if status in {401, 403}:
            return error
        return UpstreamRejected(
            "The router answered with an error.",
            status=status,
            headers=headers,
            body=body,
            retry_after=error.retry_after,
            reason=f"upstream_{status}",
            # An account behind the router is not the router: what it lacks or can't pay rests for that model only.
            rest="model" if isinstance(error, AccountRejected) else error.rest,
        )

    def check(self, account: Account) -> list[str]:
        return [*super().check(account), *([] if account.base_url else ["base_url is missing"])]
