"""Chat Completions and Embeddings through real servers, with the official SDK, and OpenAI's errors and lists."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import openai
import pytest
from django.test import override_settings
from openai import OpenAI

from relay import internal
from tests.canned import canned, stream_of
from tests.harness import Installation, Server, wait_for
from tests.openai_sdk import client_of, post
from tests.providers.case import fixture

MODEL = "gpt-5.6-luna"
HI: list[Any] = [{"role": "user", "content": "Say hello."}]
PREFIXES = ("/v1", "/openai/v1", "/openai")
ONE = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)


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


# -- test connection ---------------------------------------------------------------------------------------


@ONE
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("openai", {}),
        ("openai_compatible", {"credential": {"api_key": "k"}}),
        ("azure_openai", {"settings": {"api_version": "2024-10-21", "deployment_map": {"gpt-4o": "prod"}}}),
    ],
)
def test_an_account_is_tested_by_one_small_booked_call(
    server: Server, installation: Installation, kind: str, fields: dict[str, Any]
) -> None:
    account = installation.account(kind=kind, **fields)
    with override_settings(RELAY_INTERNAL_URL=server.url):
        answer = internal.test_connection(account.pk)
    assert (answer["ok"], answer["message"]) == (True, "The account answered.")
    (record,) = installation.records()
    assert (record.origin, record.account_name, record.endpoint) == ("operator", account.name, "chat_completions")
