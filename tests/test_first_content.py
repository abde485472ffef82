"""Up to the first content of a stream another account can take the call; after it, none (DESIGN section 2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from relay.call import Endpoint
from relay.dialects import DIALECTS
from tests.canned import canned, stream_of
from tests.harness import Installation, Server, wait_for
from tests.openai_sdk import post
from tests.providers.case import fixture
from tests.test_api_messages import leave_after

ONE = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
FAULTS = ("fail=503@opened", "fail=429@opened", "reset=opened", "cut=opened", "eof=opened")


@dataclass(frozen=True)
class Asked:
    """One streamed call, and what its answer has exactly once where it is whole."""

    kind: str
    path: str
    body: Mapping[str, Any]
    once: tuple[bytes, bytes]
    settings: Mapping[str, str] = field(default_factory=dict)


VERSION = {"anthropic-version": "2023-06-01"}
HELLO = [{"role": "user", "content": "Say hello."}]
MESSAGE = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": HELLO, "stream": True}
WHOLE_MESSAGE = (b'"message_start"', b'"message_stop"')
ASKED = {
    "anthropic": Asked("claude_console", "/v1/messages", MESSAGE, WHOLE_MESSAGE),
    "bedrock": Asked("bedrock", "/v1/messages", MESSAGE, WHOLE_MESSAGE, {"region": "us-east-1"}),
    "chat": Asked(
        "openai",
        "/v1/chat/completions",
        {"model": "gpt-4o", "messages": HELLO, "stream": True},
        (b'"role":"assistant"', b'"finish_reason":"stop"'),
    ),
    "responses": Asked(
        "openai",
        "/v1/responses",
        {"model": "gpt-4o", "input": "Say hello.", "stream": True},
        (b'"type":"response.created"', b'"type":"response.completed"'),
    ),
}
EACH = pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)


def ask(server: Server, asked: Asked, key: str) -> tuple[int, bytes]:
    status, _, body = post(server, asked.path, json.dumps(asked.body).encode(), key, **VERSION)
    return status, body


@ONE
@EACH
@pytest.mark.parametrize("fault", FAULTS)
def test_a_stream_that_fails_before_its_first_content_goes_to_another_account(
    server: Server, installation: Installation, asked: Asked, fault: str
) -> None:
    given: dict[str, Any] = {"kind": asked.kind, "settings": dict(asked.settings)}
    installation.account(**given, name="sick", priority=1, credential={"api_key": f"key~{fault}"})
    installation.account(**given, name="well", priority=2)
    key = installation.key()
    status, body = ask(server, asked, key)
    assert (status, [body.count(mark) for mark in asked.once]) == (200, [1, 1])
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("ok", "provider")
    assert [attempt["account"] for attempt in record.attempts] == ["sick", "well"]


@ONE
@EACH
def test_alone_it_is_an_honest_status_and_costs_nothing(
    server: Server, installation: Installation, asked: Asked
) -> None:
    installation.account(kind=asked.kind, settings=dict(asked.settings), credential={"api_key": "key~fail=500@opened"})
    key = installation.key()
    status, body = ask(server, asked, key)
    assert (status, "error" in json.loads(body)) == (502, True)
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source, record.cost_nanos) == ("upstream_error", "none", 0)


@ONE
@EACH
def test_after_the_first_content_no_account_takes_over(
    server: Server, installation: Installation, asked: Asked
) -> None:
    given: dict[str, Any] = {"kind": asked.kind, "settings": dict(asked.settings)}
    installation.account(**given, priority=1, credential={"api_key": "key~chunks=5~delay=0.05~fail=503@3"})
    installation.account(**given, priority=2)
    key = installation.key()
    status, body = ask(server, asked, key)
    assert (status, asked.once[1] in body) == (200, False)
    (record,) = installation.records(key=key)
    assert (record.status, len(record.attempts)) == ("upstream_error", 1)


@ONE
def test_a_response_that_failed_by_the_caller_s_fault_passes_as_it_came(
    server: Server, installation: Installation
) -> None:
    installation.account(kind="openai", priority=1, credential={"api_key": "key~fail=toolong@opened"})
    installation.account(kind="openai", priority=2)
    key = installation.key()
    status, body = ask(server, ASKED["responses"], key)
    assert (status, body.count(b'"type":"response.created"'), body.count(b'"type":"response.failed"')) == (200, 1, 1)
    (record,) = installation.records(key=key)
    assert (record.status, record.error, len(record.attempts)) == ("upstream_error", "context_length_exceeded", 1)


@ONE
def test_a_failure_that_is_all_there_is_has_an_honest_status(server: Server, installation: Installation) -> None:
    installation.account(kind="openai", credential={"api_key": "key~fail=toolong@first"})
    key = installation.key()
    status, body = ask(server, ASKED["responses"], key)
    assert (status, json.loads(body)["error"]["code"]) == (400, "context_length_exceeded")


def test_silence_after_the_opening_events_is_the_idle_timer_s(start_server: Any, installation: Installation) -> None:
    server = start_server(RELAY_IDLE_TIMEOUT="0.5", RELAY_FIRST_BYTE_TIMEOUT="60")
    installation.account(kind="openai", priority=1, name="sick", credential={"api_key": "key~hang=opened"})
    installation.account(kind="openai", priority=2, name="well")
    key = installation.key()
    status, body = ask(server, ASKED["responses"], key)
    assert (status, body.count(b'"type":"response.created"')) == (200, 1)
    (record,) = installation.records(key=key)
    assert [(attempt["account"], attempt["error"]) for attempt in record.attempts] == [
        ("sick", "idle_timeout"),
        ("well", ""),
    ]


def test_a_late_stream_begins_with_keep_alives_and_still_changes_accounts(
    start_server: Any, installation: Installation
) -> None:
    server = start_server(RELAY_COMMIT_AFTER="0.3", RELAY_KEEP_ALIVE_AFTER="0.2")
    installation.account(kind="openai", priority=1, name="sick", credential={"api_key": "key~wait=1~fail=503@opened"})
    installation.account(kind="openai", priority=2, name="well")
    key = installation.key()
    status, body = ask(server, ASKED["responses"], key)
    assert (status, body[:13]) == (200, b": keep-alive\n")
    assert [body.count(mark) for mark in ASKED["responses"].once] == [1, 1]
    (record,) = installation.records(key=key)
    assert [attempt["account"] for attempt in record.attempts] == ["sick", "well"]


@ONE
def test_a_model_that_thinks_long_has_its_opening_events_shown(server: Server, installation: Installation) -> None:
    """Held back for two seconds at most: a client should see that its answer has begun."""
    installation.account(priority=1, credential={"api_key": "key~hang=opened"})
    key = installation.key()
    leave_after(server, key, dict(MESSAGE), b'"message_start"')
    wait_for(lambda: installation.simulator.open() == 0, seconds=2, what="upstream closed")
    (record,) = installation.records(key=key)
    assert (record.status, record.time_to_first_token_ms) == ("client_disconnected", None)


@ONE
def test_a_client_that_leaves_before_the_first_content_ends_the_upstream(
    server: Server, installation: Installation
) -> None:
    key = installation.key()
    installation.account(credential={"api_key": "key~hang=opened"})
    leave_after(server, key, dict(MESSAGE), b"", wait=0.3)
    wait_for(lambda: installation.simulator.open() == 0, seconds=2, what="upstream closed")
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("client_disconnected", "partial")


@ONE
@pytest.mark.parametrize(
    ("kind", "path", "name"),
    [
        ("claude_console", "/v1/messages", "anthropic/thinking.sse"),
        ("openai", "/v1/responses", "openai/responses_stream.sse"),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 300])
def test_what_was_held_back_comes_first_and_unchanged(
    server: Server, installation: Installation, kind: str, path: str, name: str, size: int
) -> None:
    events = fixture(name)
    body = json.dumps({"model": "m", "stream": True, "messages": HELLO, "max_tokens": 9, "input": "x"}).encode()
    with canned(stream_of(events, size=size)) as upstream:
        installation.account(kind=kind, base_url=upstream.url)
        status, _, got = post(server, path, body, installation.key())
    assert (status, got) == (200, events)


OPENINGS = {
    "anthropic": [
        b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n',
        b"event: ping\ndata: {}\n\n",
    ],
    "openai_chat": [
        b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null}}]}\n\n',
    ],
    "openai_responses": [
        b'data: {"type":"response.created","response":{"id":"r"}}\n\n',
        b'data: {"type":"response.queued","response":{"id":"r"}}\n\n',
        b'data: {"type":"response.in_progress","response":{"id":"r"}}\n\n',
    ],
}
CONTENTS = [
    ("anthropic", b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'),
    ("openai_chat", b'data: {"choices":[{"index":0,"delta":{"content":"H"}}]}\n\n'),
    ("openai_chat", b'data: {"choices":[{"index":0,"delta":{"reasoning_details":[{"text":"H"}]}}]}\n\n'),
    ("openai_chat", b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a"}]}}]}\n\n'),
    ("openai_chat", b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'),
    ("openai_responses", b'data: {"type":"response.output_item.added","item":{}}\n\n'),
    ("openai_responses", b'data: {"type":"response.of_tomorrow"}\n\n'),
    ("gemini", b'data: {"candidates":[{"content":{"parts":[{"text":"H"}]}}]}\n\n'),
]


@pytest.mark.parametrize(("dialect", "content"), CONTENTS)
def test_content_is_what_follows_the_opening_events(dialect: str, content: bytes) -> None:
    meter = DIALECTS[dialect].meter(Endpoint("e", dialect))
    for event in OPENINGS.get(dialect, []):
        assert meter.feed(event) == -1 and not meter.content_seen
    meter.feed(content)
    assert meter.content_seen
