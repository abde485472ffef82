"""The registry of upstream kinds. A new provider is one file and one line here."""

from __future__ import annotations

from relay.providers.azure_openai import AzureOpenAI
from relay.providers.base import Provider
from relay.providers.bedrock import Bedrock
from relay.providers.ccr import Ccr
from relay.providers.claude_console import ClaudeConsole
from relay.providers.claude_official import ClaudeOfficial
from relay.providers.gemini import Gemini
from relay.providers.openai import OpenAI
from relay.providers.openai_compatible import OpenAICompatible
from relay.providers.vertex import Vertex

PROVIDERS: dict[str, Provider] = {
    provider.kind: provider
    for provider in (
        ClaudeOfficial(),
        ClaudeConsole(),
        Ccr(),
        Bedrock(),
        Gemini(),
        OpenAI(),
        AzureOpenAI(),
        OpenAICompatible(),
        Vertex(),
    )
}

FAMILIES = ("claude", "gemini", "openai")
