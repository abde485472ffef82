"""The official openai SDK: over canned answers, and as a client of a real server."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

import httpx2
from openai import OpenAI

if TYPE_CHECKING:
    from tests.harness import Server

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


def client_of(server: Server, key: str, *, prefix: str = "/v1") -> OpenAI:
    return OpenAI(api_key=key, base_url=f"{server.url}{prefix}", max_retries=0)


def post(
    server: Server, path: str, body: bytes, key: str, *, method: str = "POST", **more: str
) -> tuple[int, dict[str, str], bytes]:
    """One raw request; header names in lower case."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}", **more}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()
