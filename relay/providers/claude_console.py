"""Any Anthropic-compatible base URL with a key."""

from __future__ import annotations

from typing import ClassVar

from relay.call import Account
from relay.providers.claude_official import ClaudeOfficial


class ClaudeConsole(ClaudeOfficial):
    kind: ClassVar = "claude_console"
    label: ClassVar = "Claude (console or compatible)"
    credential_fields: ClassVar = ("api_key",)
    setting_fields: ClassVar = ()

    def authentication(self, account: Account) -> list[tuple[bytes, bytes]]:
        """Anthropic's keys go as `x-api-key`, everyone else's as a bearer token."""
        key = account.credential.get("api_key", "").encode()
        return [(b"x-api-key", key)] if key.startswith(b"sk-ant-") else [(b"authorization", b"Bearer " + key)]

    def check(self, account: Account) -> list[str]:
        return [] if account.credential.get("api_key") else ["credential is missing: api_key"]
