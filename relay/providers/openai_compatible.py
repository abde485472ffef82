"""Anything that speaks OpenAI's format at some base URL: a row in the admin, no code."""

from __future__ import annotations

from typing import ClassVar

from relay.call import Account
from relay.providers.openai import OpenAI


class OpenAICompatible(OpenAI):
    kind: ClassVar = "openai_compatible"
    label: ClassVar = "OpenAI-compatible"
    provider: ClassVar = "openai_compatible"
    default_base_url: ClassVar = ""

    def authentication(self, account: Account) -> list[tuple[bytes, bytes]]:
        """Servers of one's own often need no key."""
        key = account.credential.get("api_key", "")
        return [(b"authorization", b"Bearer " + key.encode())] if key else []

    def check(self, account: Account) -> list[str]:
        return [] if account.base_url else ["base_url is missing"]
