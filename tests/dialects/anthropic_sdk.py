"""The official anthropic SDK over canned answers: what it makes of the bytes that Baton sends."""

from __future__ import annotations

import anthropic
import httpx2

JSON = {"content-type": "application/json"}


def sdk(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> anthropic.Anthropic:
    """A client whose every request gets this answer; it does not retry."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers=headers or JSON, content=body)

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    return anthropic.Anthropic(api_key="k", max_retries=0, http_client=client)
