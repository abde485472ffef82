"""The registry of upstream kinds. A new provider is one file and one line here."""

from __future__ import annotations

from relay.providers.base import Provider
from relay.providers.ccr import Ccr
from relay.providers.claude_console import ClaudeConsole
from relay.providers.claude_official import ClaudeOfficial

PROVIDERS: dict[str, Provider] = {provider.kind: provider for provider in (ClaudeOfficial(), ClaudeConsole(), Ccr())}

FAMILIES = ("claude", "gemini", "openai")
