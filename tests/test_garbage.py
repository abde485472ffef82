"""A call that has ended is freed at once, however it ended: the collector seldom looks at what has lived a while."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.request import urlopen

import pytest

from tests.collecting import PATH
from tests.harness import Installation, Server
from tests.openai_sdk import post
from tests.test_api_messages import leave_after

MODEL = "claude-sonnet-5-5"
ENDS = {
    "ok": "key",
    "an error of the caller's": "key~fail=400",
    "an upstream that fails": "key~fail=500",
    "an upstream that fails in its stream": "key~fail=503@3",
    "a connection that breaks": "key~reset=3",
}
CALLS = 5


def body(*, stream: bool) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 9, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]}


def collected(server: Server) -> dict[str, int]:
    server.wait_idle()
    with urlopen(server.url + PATH, timeout=10) as response:
        found: dict[str, int] = json.loads(response.read())
    return found


def flights(found: dict[str, int]) -> int:
    """Of all that a call makes these hold the rest; what the server's clients leave behind is not ours to free."""
    return found.get("Flight", 0) + found.get("Reply", 0) + found.get("Call", 0) + found.get("Record", 0)


@pytest.mark.parametrize("credential", ENDS.values(), ids=ENDS)
def test_an_ended_call_leaves_the_collector_nothing(
    start_server: Callable[..., Server], installation: Installation, credential: str
) -> None:
    server = start_server("collecting")
    installation.account(credential={"api_key": credential})
    key = installation.key()

    def ask(*, stream: bool) -> None:
        post(server, "/v1/messages", json.dumps(body(stream=stream)).encode(), key)

    ask(stream=True)
    ask(stream=False)
    collected(server)
    for stream in (True, False):
        for _ in range(CALLS):
            ask(stream=stream)
        assert flights(found := collected(server)) == 0, found


def test_nor_does_one_whose_client_left(start_server: Callable[..., Server], installation: Installation) -> None:
    server = start_server("collecting")
    installation.account(credential={"api_key": "key~chunks=50~delay=0.05"})
    key = installation.key()
    leave_after(server, key, body(stream=True), b"content_block_delta")
    collected(server)
    for _ in range(CALLS):
        leave_after(server, key, body(stream=True), b"content_block_delta")
    assert flights(found := collected(server)) == 0, found
