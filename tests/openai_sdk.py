"""The official openai SDK over canned answers: what it makes of the bytes that Baton sends."""

from __future__ import annotations

import httpx2
from openai import OpenAI

SSE = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}


def answering(body: bytes, *, status: int = 200, stream: bool = False, headers: dict[str, str] | None = None) -> OpenAI:
    """A client whose every request gets this answer; it does not retry."""
    given = {**(SSE if stream else JSON), **(headers or {})}

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers=given, content=body)

    transport = httpx2.MockTransport(answer)
    return OpenAI(
        api_key="k", base_url="http://relay/v1", max_retries=0, http_client=httpx2.Client(transport=transport)
    )
