"""The official google-genai SDK over canned answers: what it makes of the bytes that Baton sends."""

from __future__ import annotations

import httpx2
from google import genai
from google.genai import types

JSON = {"content-type": "application/json; charset=UTF-8"}
SSE = {"content-type": "text/event-stream"}


def answering(body: bytes, *, status: int = 200, stream: bool = False) -> genai.Client:
    """A client as it is configured by default, whose every request gets this answer."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers=SSE if stream else JSON, content=body)

    transport = httpx2.MockTransport(answer)
    options = types.HttpOptions(base_url="http://relay", httpx_client=httpx2.Client(transport=transport))
    return genai.Client(api_key="k", http_options=options)
