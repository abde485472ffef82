"""OpenAI's endpoints through real servers, with the official SDK: what clients get, and the record of each call."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.canned import canned, json_of, stream_of
from tests.harness import Installation, Server, wait_for
from tests.providers.case import fixture

MODEL = "gpt-5.6-luna"
HI: list[Any] = [{"role": "user", "content": "Say hello."}]
PREFIXES = ("/v1", "/openai/v1", "/openai")
ONE = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Closes every client that a test makes."""
    with ExitStack() as opened:
        yield opened


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


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": HI, **fields}).encode()


# -- Chat Completions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_chat_is_answered_and_booked(server: Server, installation: Installation, prefix: str) -> None:
    account, key = installation.account(kind="openai"), installation.key()
    with client_of(server, key, prefix=prefix) as client:
        answer = client.chat.completions.create(model=f"{MODEL}~cache_read=100~cache_30m=20", messages=HI, user="u1")
    assert answer.choices[0].message.content == "You said: Say hello."
    assert answer.usage is not None
    (record,) = installation.records(key=key)
    assert (record.status, record.account_name, record.provider) == ("ok", account.name, "openai")
    assert (record.dialect, record.endpoint, record.end_user) == ("openai_chat", "chat_completions", "u1")
    assert record.input_tokens == answer.usage.prompt_tokens - 120
    assert (record.cache_read_input_tokens, record.output_tokens) == (100, answer.usage.completion_tokens)
    assert {line["meter"] for line in record.lines} >= {"cache_creation_30m_input_tokens", "cache_read_input_tokens"}
    assert record.cost_nanos == sum(line["cost"] for line in record.lines) > 0 and not record.unpriced
    assert (record.response_id, record.upstream_request_id[:8]) == (answer.id, "req_sim_")


@pytest.mark.parametrize("asked", [True, False])
def test_a_chat_stream_shows_usage_only_to_who_asked(server: Server, installation: Installation, asked: bool) -> None:
    installation.account(kind="openai")
    key = installation.key()
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    with client_of(server, key) as client:
        chunks = list(client.chat.completions.create(model=MODEL, messages=HI, stream=True, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "You said: Say hello."
    assert [chunk.usage is not None for chunk in chunks][-1] is asked
    assert all(chunk.choices for chunk in chunks) is not asked
    (record,) = installation.records(key=key)
    assert (record.usage_source, record.output_tokens, record.stream) == ("provider", 5, True)


def test_a_chat_stream_ends_with_done_and_nothing_else_is_added(server: Server, installation: Installation) -> None:
    key = installation.key()
    stream = fixture("openai/chat_stream.sse")
    with canned(stream_of(stream, size=7)) as upstream:
        installation.account(kind="openai", base_url=upstream.url)
        body = chat(stream=True, stream_options={"include_usage": True})
        status, headers, answer = post(server, "/v1/chat/completions", body, key)
    assert (status, answer) == (200, stream)
    assert headers["content-type"].startswith("text/event-stream")
    assert upstream.requests[0].partition(b"\r\n\r\n")[2] == body


def test_an_upstream_that_rejects_the_usage_option_is_asked_without_it(
    server: Server, installation: Installation
) -> None:
    installation.account(kind="openai_compatible", provider="openai")
    key = installation.key()
    with client_of(server, key) as client:
        chunks = list(client.chat.completions.create(model=f"{MODEL}~reject=stream_options", messages=HI, stream=True))
    assert chunks[-1].choices[0].finish_reason == "stop"
    first, second = installation.simulator.requests()
    assert b'"stream_options"' in first["body"] and b'"stream_options"' not in second["body"]
    (record,) = installation.records(key=key)
    # 20 bytes of answer; the input is estimated from the request's bytes.
    assert (record.status, record.usage_source, record.output_tokens) == ("ok", "estimated", 5)
    assert record.input_tokens == len(second["body"]) // 4 and record.cost_nanos > 0


@pytest.mark.parametrize("fault", ["reset=3", "cut=3", "eof=3", "eof=end"])
def test_a_chat_stream_cut_upstream_never_looks_whole(server: Server, installation: Installation, fault: str) -> None:
    installation.account(kind="openai")
    key = installation.key()
    body = chat(model=f"{MODEL}~chunks=9~size=40~delay=0.01~{fault}", stream=True)
    status, _, answer = post(server, "/v1/chat/completions", body, key)
    assert status == 200
    assert b"[DONE]" not in answer
    assert answer.rstrip().split(b"\n\n")[-1].startswith(b'data: {"error":{')
    (record,) = installation.records(key=key)
    assert (record.status, record.http_status) == ("upstream_error", 200)
    assert record.input_tokens and record.output_tokens and record.cost_nanos


def test_the_vendors_own_error_chunk_passes_and_is_an_error(server: Server, installation: Installation) -> None:
    installation.account(kind="openai")
    key = installation.key()
    with client_of(server, key) as client, pytest.raises(openai.APIError, match="had an error"):
        list(client.chat.completions.create(model=f"{MODEL}~chunks=9~delay=0.02~fail=500@4", messages=HI, stream=True))
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("upstream_error", "estimated")


def test_an_error_as_first_chunk_is_an_honest_status(server: Server, installation: Installation) -> None:
    installation.account(kind="openai")
    with client_of(server, installation.key()) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=f"{MODEL}~fail=500@first", messages=HI, stream=True)
    assert caught.value.status_code == 502


def test_a_client_that_leaves_a_chat_stream_pays_for_what_it_got(server: Server, installation: Installation) -> None:
    installation.account(kind="openai")
    key = installation.key()
    data = chat(model=f"{MODEL}~chunks=500~delay=0.02~size=40", stream=True)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\napi-key: {key}\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        received = b""
        while received.count(b'"content":') < 5:
            received += connection.recv(65536)
    left = time.time()
    wait_for(lambda: installation.simulator.open() == 0, seconds=1, what="upstream closed")
    (request,) = installation.simulator.requests()
    assert request["end"] == "client_closed" and request["ended_at"] < left + 1
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("client_disconnected", "estimated")
    assert record.input_tokens and 30 <= record.output_tokens < 500 * 10 and record.cost_nanos


def test_an_embedding_is_booked_by_its_input(server: Server, installation: Installation) -> None:
    installation.account(kind="openai")
    key = installation.key(limits=["cost 1 per day strict"])
    with client_of(server, key) as client:
        answer = client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    assert len(answer.data) == 2 and len(answer.data[0].embedding) == 8
    (record,) = installation.records(key=key)
    assert (record.endpoint, record.input_tokens, record.output_tokens) == ("embeddings", 2, None)
    assert record.cost_nanos > 0 and not record.unpriced


# -- Responses -------------------------------------------------------------------------------------------


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


# -- errors and limits -----------------------------------------------------------------------------------


@ONE
@pytest.mark.parametrize(
    ("name", "raised", "status"),
    [
        ("toolong", openai.BadRequestError, 400),
        ("nomodel", openai.NotFoundError, 404),
        ("model_forbidden", openai.PermissionDeniedError, 403),
        ("401", openai.InternalServerError, 502),
        ("region", openai.InternalServerError, 502),
        ("quota", openai.InternalServerError, 502),
        ("billing", openai.InternalServerError, 502),
        ("429", openai.RateLimitError, 429),
        ("500", openai.InternalServerError, 502),
        ("overloaded", openai.InternalServerError, 503),
        ("529", openai.InternalServerError, 529),
    ],
)
def test_upstream_errors_have_their_status(
    server: Server, installation: Installation, name: str, raised: type[openai.APIStatusError], status: int
) -> None:
    installation.account(kind="openai")
    key = installation.key()
    with client_of(server, key) as client, pytest.raises(raised) as caught:
        client.chat.completions.create(model=f"{MODEL}~error={name}", messages=HI)
    assert caught.value.status_code == status
    assert "org-simulated" not in caught.value.response.text and "proj_simulated" not in caught.value.response.text
    (record,) = installation.records(key=key)
    assert (record.status, record.http_status, record.cost_nanos) == ("upstream_error", status, 0)


def test_a_spent_budget_stops_the_sdk_at_the_first_answer(server: Server, installation: Installation) -> None:
    installation.account(kind="openai")
    key = installation.key(limits=["cost 0 per day"])
    with OpenAI(api_key=key, base_url=f"{server.url}/v1") as client, pytest.raises(openai.RateLimitError) as caught:
        client.responses.create(model=MODEL, input="Hi")
    assert (caught.value.code, caught.value.response.headers["x-should-retry"]) == ("insufficient_quota", "false")
    assert "retry-after" in caught.value.response.headers
    assert len(installation.records(key=key)) == 1


def test_no_key_is_told_in_openais_words(server: Server, installation: Installation) -> None:
    with client_of(server, "rk_x_y") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.responses.create(model=MODEL, input="Hi")
    assert (caught.value.code, caught.value.response.headers["x-should-retry"]) == ("invalid_api_key", "false")
    assert caught.value.request_id


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/openai/v1/images/generations", "/azure/openai/files"])
def test_a_path_that_is_not_served_is_openais_404(server: Server, installation: Installation, path: str) -> None:
    status, _, body = post(server, path, b"{}", installation.key())
    assert (status, json.loads(body)["error"]["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_models_are_listed_in_openais_shape(server: Server, installation: Installation, prefix: str) -> None:
    installation.account(kind="openai")
    with client_of(server, installation.key(), prefix=prefix) as client:
        listed = {model.id: model.owned_by for model in client.models.list()}
        assert client.models.retrieve(MODEL).id == MODEL
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nope")
    assert listed[MODEL] == "baton"


# -- WebSocket, which is not served ------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [*PREFIXES, "/azure/openai", "/azure/openai/v1"])
def test_a_get_for_a_websocket_is_426(server: Server, installation: Installation, prefix: str) -> None:
    status, headers, _ = post(server, f"{prefix}/responses", b"", installation.key(), method="GET")
    assert (status, headers["upgrade"]) == (426, "HTTP/1.1")


@ONE
def test_an_upgrade_to_a_websocket_is_426(server: Server, installation: Installation) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(
            b"GET /v1/responses HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"openai-beta: responses_websockets=2026-02-06\r\nauthorization: Bearer %s\r\n\r\n"
            % installation.key().encode()
        )
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 426 ")


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
