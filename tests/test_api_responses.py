"""Responses through real servers, with the official SDK and Codex's request: what clients get, what is booked."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.canned import canned, json_of, stream_of
from tests.harness import Installation, Server
from tests.openai_sdk import client_of, post
from tests.providers.case import fixture

MODEL = "gpt-5.6-luna"
HI: list[Any] = [{"role": "user", "content": "Say hello."}]
PREFIXES = ("/v1", "/openai/v1", "/openai")
ONE = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_response_is_answered_and_booked(server: Server, installation: Installation, prefix: str) -> None:
    installation.account(kind="openai")
    key = installation.key()
    script = "cache_read=100~cache_30m=20~cache_12h=7~searches=2~thinking=16"
    with client_of(server, key, prefix=prefix) as client:
        answer = client.responses.create(model=f"{MODEL}~{script}", input="Say hello.")
    assert answer.output_text == "You said: Say hello."
    (record,) = installation.records(key=key)
    meters = {line["meter"]: line["quantity"] for line in record.lines}
    assert meters == {
        "input_tokens": 3,
        "cache_read_input_tokens": 100,
        "cache_creation_30m_input_tokens": 20,
        "cache_creation_12h_input_tokens": 7,
        "output_tokens": 21,
        "web_searches": 2,
    }
    assert (record.dialect, record.endpoint, record.reasoning_tokens) == ("openai_responses", "responses", 16)
    # Nobody has published a price for the half-day cache: the record says so.
    assert record.unpriced and record.cost_nanos > 0


def test_an_async_client_streams_a_response(server: Server, installation: Installation) -> None:
    installation.account(kind="openai")
    key = installation.key()

    async def ask() -> list[Any]:
        async with AsyncOpenAI(api_key=key, base_url=f"{server.url}/v1", max_retries=0) as client:
            return [event async for event in await client.responses.create(model=MODEL, input="Hi", stream=True)]

    events = asyncio.run(ask())
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source, record.response_id) == ("ok", "provider", events[-1].response.id)


def test_a_response_stream_passes_byte_by_byte(server: Server, installation: Installation) -> None:
    key = installation.key()
    stream = fixture("openai/responses_stream.sse")
    with canned(stream_of(stream, size=3)) as upstream:
        installation.account(kind="openai", base_url=upstream.url)
        _, _, answer = post(server, "/v1/responses", b'{"model":"gpt-5.6-luna","input":"x","stream":true}', key)
    assert answer == stream


def test_codex_recorded_request_goes_up_as_it_came(server: Server, installation: Installation) -> None:
    recorded = json.loads(fixture("openai/codex_request.json"))
    body = json.dumps(recorded["body"], separators=(",", ":")).encode()
    headers = {name: text for name, text in recorded["headers"].items() if name not in {"host", "content-length"}}
    installation.account(kind="openai", credential={"api_key": "sk-upstream"})
    key = installation.key()
    status, got, answer = post(server, "/v1/responses", body, key, **{**headers, "authorization": f"Bearer {key}"})
    assert status == 200 and b"event: response.completed" in answer
    (request,) = installation.simulator.requests()
    sent = dict(request["headers"])
    assert request["body"] == body
    assert sent["authorization"] == "Bearer sk-upstream"
    assert all(sent[name] == text for name, text in headers.items() if name != "authorization")
    assert not [
        name for name in got if "openai-organization" in name or "openai-project" in name or "ratelimit" in name
    ]
    (record,) = installation.records(key=key)
    assert (record.status, record.session) == ("ok", recorded["headers"]["session-id"])
    assert record.user_agent.startswith("codex_exec/0.169.0")


@pytest.mark.parametrize("fault", ["reset=3", "cut=3", "eof=3", "eof=end"])
def test_a_response_stream_cut_upstream_ends_as_failed(server: Server, installation: Installation, fault: str) -> None:
    installation.account(kind="openai")
    key = installation.key()
    with client_of(server, key) as client:
        model = f"{MODEL}~chunks=9~size=40~delay=0.01~{fault}"
        events = list(client.responses.create(model=model, input="Hi", stream=True))
    last: Any = events[-1]
    first: Any = events[0]
    assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", "server_error")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert last.response.id == first.response.id
    (record,) = installation.records(key=key)
    assert (record.status, record.response_id) == ("upstream_error", first.response.id)
    assert record.output_tokens and record.input_tokens and record.cost_nanos


def test_a_failed_response_as_first_event_is_an_honest_status(server: Server, installation: Installation) -> None:
    sick = installation.account(kind="openai", priority=1, credential={"api_key": "sk~fail=429@first"})
    well = installation.account(kind="openai", priority=2)
    key = installation.key()
    with client_of(server, key) as client:
        *_, last = client.responses.create(model=MODEL, input="Hi", stream=True)
    assert last.type == "response.completed"
    (record,) = installation.records(key=key)
    assert [(attempt["account"], attempt["error"]) for attempt in record.attempts] == [
        (sick.name, "429"),
        (well.name, ""),
    ]


def test_the_callers_fault_inside_a_stream_rests_no_account(server: Server, installation: Installation) -> None:
    installation.account(kind="openai", priority=1)
    installation.account(kind="openai", priority=2)
    key = installation.key()
    with client_of(server, key) as client:
        for _ in range(4):
            *_, last = client.responses.create(
                model=MODEL, input="Hi", stream=True, extra_headers={"x-sim": "chunks=5,delay=0.01,fail=toolong@3"}
            )
            assert last.type == "response.failed"
    records = installation.records(key=key, count=4)
    assert [(record.status, record.error) for record in records] == [("upstream_error", "context_length_exceeded")] * 4
    assert len({record.account_name for record in records}) == 1


@pytest.mark.parametrize(("field", "value"), [("background", True), ("conversation", "conv_1")])
def test_what_can_not_be_booked_is_400(server: Server, installation: Installation, field: str, value: object) -> None:
    installation.account(kind="openai")
    key = installation.key()
    with client_of(server, key) as client, pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="Hi", extra_body={field: value})
    assert caught.value.param == field
    (record,) = installation.records(key=key)
    assert (record.status, record.http_status) == ("refused", 400)
    assert installation.simulator.requests() == []


def test_compaction_is_booked_and_counting_is_free(server: Server, installation: Installation) -> None:
    installation.account(kind="openai")
    key = installation.key()
    with client_of(server, key) as client:
        client.responses.compact(model=MODEL, input="x" * 40)
        counted = client.responses.input_tokens.count(model=MODEL, input="x" * 40)
    assert counted.input_tokens == 10
    compact, count = installation.records(key=key, count=2)
    assert (compact.endpoint, compact.input_tokens) == ("responses_compact", 10)
    assert compact.cost_nanos > 0
    assert (count.endpoint, count.cost_nanos, count.usage_source) == ("responses_input_tokens", 0, "none")


def test_a_whole_answer_keeps_its_bytes(server: Server, installation: Installation) -> None:
    body = fixture("openai/responses_tools.json")
    key = installation.key()
    with canned(json_of(body)) as upstream:
        installation.account(kind="openai", base_url=upstream.url)
        status, headers, answer = post(server, "/v1/responses", b'{"model":"gpt-5.6-luna","input":"x"}', key)
    assert (status, answer, headers["content-length"]) == (200, body, str(len(body)))
    (record,) = installation.records(key=key)
    assert record.service_tier == "flex"
    assert {line["model"] for line in record.lines} == {"gpt-5.6-luna-2026-07-30", "gpt-image-2"}


# -- WebSocket, which is not served ------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [*PREFIXES, "/azure/openai", "/azure/openai/v1"])
def test_a_get_for_a_websocket_is_426(server: Server, installation: Installation, prefix: str) -> None:
    status, headers, _ = post(server, f"{prefix}/responses", b"", installation.key(), method="GET")
    assert (status, headers["upgrade"]) == (426, "HTTP/1.1")


def test_an_upgrade_to_a_websocket_is_426(server: Server, installation: Installation) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(
            b"GET /v1/responses HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"openai-beta: responses_websockets=2026-02-06\r\nauthorization: Bearer %s\r\n\r\n"
            % installation.key().encode()
        )
        with connection.makefile("rb") as answered:
            answer = answered.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 426 ")
    assert b"\r\nupgrade: HTTP/1.1" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
