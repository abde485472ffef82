"""The registry of wire formats that clients speak."""

from __future__ import annotations

from relay.dialects.anthropic import Anthropic
from relay.dialects.base import Dialect
from relay.dialects.gemini import Gemini
from relay.dialects.openai_chat import OpenAIChat
from relay.dialects.openai_responses import OpenAIResponses

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect for dialect in (Anthropic(), OpenAIChat(), OpenAIResponses(), Gemini())
}
