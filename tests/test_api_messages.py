"""The Messages API through real servers: what clients send and get, and the record that each call leaves."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import anthropic
import pytest

from tests.canned import canned, json_of, stream_of
from tests.harness import Installation, Server, wait_for

MODEL = "claude-sonnet-5-5"
ASKED = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Say hello."}]}
JSON_HEADERS = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
PATHS = ("/v1/messages", "/api/v1/messages", "/claude/v1/messages")

EVENTS = (
    b'event: message_start\r\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message",'
    b'"role":"assistant","model":"claude-sonnet-5-5","content":[],"usage":{"input_tokens":10,"cache_read_input_tokens":4,'
    b'"cache_creation_input_tokens":0,"output_tokens":1}}}\r\n\r\n'
    b": a comment\n\n"
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n'
    b'event:content_block_delta\rdata:{"type":"content_block_delta","index":0,"delta":{"type":"text_delta",\r'
    b'data:"text":"a\xe2\x80\xa8b\xc2\x85c \\ud83d\\ude00"}}\r\r'
    b'event: future_event\ndata: {"type":"future_event","x":[1e400]}\n\n'
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":7}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)


def client_of(server: Server, key: str, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, **options)


def create(server: Server, key: str, **changes: Any) -> Any:
    """One call by the official SDK."""
    with client_of(server, key) as client:
        return client.messages.create(**{**ASKED, **changes})


def post(server: Server, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """One raw request; header names in lower case."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    try:
        connection.request("POST", path, body, {**JSON_HEADERS, **headers})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_arrives_event_by_event_and_is_booked(server: Server, installation: Installation, path: str) -> None:
    account, key = installation.account(), installation.key()
    status, headers, body = post(server, path, json.dumps({**ASKED, "stream": True}).encode(), {"x-api-key": key})
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
    lines = [line for line in body.decode().split("\n") if line]
    names, data = lines[::2], lines[1::2]
    assert names[0] == "event: message_start" and names[-1] == "event: message_stop"
    kinds = [json.loads(value.removeprefix("data: "))["type"] for value in data]
    assert names == [f"event: {kind}" for kind in kinds]
    (record,) = installation.records(key=key)
    assert str(record.id) == headers["x-request-id"]
    assert (record.status, record.usage_source, record.http_status) == ("ok", "provider", 200)
    assert (record.account_name, record.requested_model, record.endpoint) == (account.name, MODEL, "messages")
    assert record.stream and record.cost_nanos > 0 and not record.unpriced
    assert record.time_to_first_token_ms <= record.duration_ms


@pytest.mark.parametrize("size", [0, 1, 7])
def test_answer_bytes_come_back_unchanged(server: Server, installation: Installation, size: int) -> None:
    key = installation.key()
    with canned(stream_of(EVENTS, size=size)) as upstream:
        installation.account(base_url=upstream.url)
        _, headers, body = post(server, PATHS[0], json.dumps({**ASKED, "stream": True}).encode(), {"x-api-key": key})
    assert body == EVENTS
    assert headers["request-id"] == "req_canned"
    (record,) = installation.records(key=key)
    assert (record.input_tokens, record.cache_read_input_tokens, record.output_tokens) == (10, 4, 7)
    assert (record.upstream_request_id, record.response_id) == ("req_canned", "msg_1")


def test_request_bytes_go_up_unchanged(server: Server, installation: Installation) -> None:
    body = b'{ "max_tokens":5,\n "model" : "claude-sonnet-5-5", "x":[1.0,1e3,"\\u00e9\xc3\xa9"],"messages":[] }'
    key = installation.key()
    with canned(
        json_of(b'{"id":"msg_2","type":"message","model":"m","usage":{"input_tokens":1,"output_tokens":2}}')
    ) as up:
        installation.account(base_url=up.url, credential={"api_key": "sk-ant-upstream"})
        sent = {
            "authorization": f"Bearer {key}",
            "anthropic-version": "2026-10-21",
            "anthropic-beta": "a-1,b-2",
            "x-unknown": "kept",
            "cookie": "no=1",
            "x-forwarded-for": "10.0.0.1",
            "x-relay-tags": "team=a, job=b",
        }
        status, headers, answer = post(server, f"{PATHS[0]}?beta=true&key={key}&x=%20y", body, sent)
    head, _, received = up.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    names = {line.split(":")[0].lower(): line.split(":", 1)[1].strip() for line in lines[1:]}
    assert received == body
    assert lines[0] == "POST /v1/messages?beta=true&x=%20y HTTP/1.1"
    assert names["x-api-key"] == "sk-ant-upstream"
    assert (names["anthropic-version"], names["anthropic-beta"], names["x-unknown"]) == (
        "2026-10-21",
        "a-1,b-2",
        "kept",
    )
    assert not {"authorization", "cookie", "x-forwarded-for", "x-relay-tags"} & set(names)
    assert key not in up.requests[0].decode("latin1")
    assert (status, answer, headers["content-length"]) == (
        200,
        json_of(answer)[0].partition(b"\r\n\r\n")[2],
        str(len(answer)),
    )
    (record,) = installation.records(key=key)
    assert record.tags == {"team": "a", "job": "b"}


def test_a_mapped_model_changes_that_field_alone(server: Server, installation: Installation) -> None:
    body = b'{ "max_tokens":5, "model" : "fast", "messages":[ 1.0 ] }'
    key = installation.key()
    with canned(
        json_of(b'{"id":"m","type":"message","model":"claude-haiku-4-5","usage":{"input_tokens":1,"output_tokens":1}}')
    ) as up:
        installation.account(base_url=up.url, model_map={"fast": "claude-haiku-4-5"})
        post(server, PATHS[0], body, {"x-api-key": key})
    assert up.requests[0].partition(b"\r\n\r\n")[2] == b'{"max_tokens":5,"model":"claude-haiku-4-5","messages":[ 1.0 ]}'
    (record,) = installation.records(key=key)
    assert (record.requested_model, record.upstream_model) == ("fast", "claude-haiku-4-5")


def test_a_call_without_stream_answers_json(server: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key()
    message = create(server, key)
    (record,) = installation.records(key=key)
    assert (record.input_tokens, record.output_tokens) == (message.usage.input_tokens, message.usage.output_tokens)
    assert (record.status, record.stream, record.response_id) == ("ok", False, message.id)


@pytest.mark.parametrize("header", ["x-api-key", "authorization", "bearer", "x-goog-api-key", "api-key", "query"])
def test_a_key_works_in_every_header(server: Server, installation: Installation, header: str) -> None:
    installation.account()
    key = installation.key()
    headers = {"authorization": f"Bearer {key}"} if header == "bearer" else {} if header == "query" else {header: key}
    path = f"{PATHS[0]}?key={key}" if header == "query" else PATHS[0]
    status, _, _ = post(server, path, json.dumps(ASKED).encode(), headers)
    assert status == 200


def test_a_query_that_no_upstream_would_take_rests_no_account(server: Server, installation: Installation) -> None:
    """It was every account's own failure: three of them, and nobody could use the model for five minutes."""
    installation.account()
    key = installation.key()
    for _ in range(4):
        path = f"{PATHS[0]}?beta={'x' * 10_000}"
        status, _, body = post(server, path, json.dumps(ASKED).encode(), {"x-api-key": key})
        assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")
    assert create(server, key).type == "message"


def test_a_stream_needs_a_valid_key(server: Server, installation: Installation) -> None:
    installation.account()
    for headers in ({}, {"x-api-key": "rk_nobody_knows"}):
        status, got, body = post(server, PATHS[0], json.dumps({**ASKED, "stream": True}).encode(), headers)
        error = json.loads(body)
        assert (status, error["type"], error["error"]["type"]) == (401, "error", "authentication_error")
        assert got["x-should-retry"] == "false"
        assert got["x-request-id"] == error["request_id"]
        assert "rk_nobody_knows" not in body.decode()


def test_a_disabled_key_is_told_the_same_as_an_unknown_one(server: Server, installation: Installation) -> None:
    key = installation.key(active=False)
    with pytest.raises(anthropic.AuthenticationError) as disabled:
        create(server, key)
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        create(server, "rk_x_y")
    assert disabled.value.body["error"] == unknown.value.body["error"]  # type: ignore[index]


def test_a_key_of_another_family_is_refused_and_recorded(server: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key(families=["gemini"])
    with pytest.raises(anthropic.PermissionDeniedError):
        create(server, key)
    (record,) = installation.records(key=key)
    assert (record.status, record.http_status, record.cost_nanos) == ("refused", 403, 0)


def test_a_model_outside_the_key_s_patterns_is_refused(server: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key(model_patterns=["claude-haiku-*"])
    with pytest.raises(anthropic.PermissionDeniedError):
        create(server, key)


def test_a_model_that_no_account_has_is_not_found(server: Server, installation: Installation) -> None:
    installation.account(model_map={"claude-haiku-4-5": "claude-haiku-4-5"})
    with pytest.raises(anthropic.NotFoundError):
        create(server, installation.key())


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "JSON"),
        (b"[]", "JSON"),
        (b'{"model": 1}', "model"),
        (b'{"messages": []}', "model"),
        (b'{"model": "m", "stream": "yes"}', "stream"),
    ],
)
def test_a_malformed_body_names_the_field(server: Server, installation: Installation, body: bytes, field: str) -> None:
    installation.account()
    status, _, answer = post(server, PATHS[0], body, {"x-api-key": installation.key()})
    error = json.loads(answer)["error"]
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert field in error["message"]


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_body_larger_than_the_limit_is_refused_while_it_comes(server: Server, installation: Installation) -> None:
    key = installation.key()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        try:
            for _ in range(40):
                connection.sendall(chunk)
        except OSError:
            pass  # it was refused already
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"request_too_large"' in answer


def test_a_caller_s_fault_passes_through_untouched(server: Server, installation: Installation) -> None:
    body = b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 1 > 0"} }'
    key = installation.key()
    with canned(json_of(body, status=b"400 Bad Request", headers=b"request-id: req_up\r\n")) as upstream:
        installation.account(base_url=upstream.url)
        status, headers, answer = post(server, PATHS[0], json.dumps(ASKED).encode(), {"x-api-key": key})
    assert (status, answer, headers["request-id"]) == (400, body, "req_up")
    (record,) = installation.records(key=key)
    assert (record.status, record.http_status, record.cost_nanos) == ("upstream_error", 400, 0)


def test_failover_before_the_first_content_leaves_both_attempts(server: Server, installation: Installation) -> None:
    sick = installation.account(priority=1, credential={"api_key": "sk-ant-sim~error=529"})
    well = installation.account(priority=2)
    key = installation.key()
    create(server, key)
    (record,) = installation.records(key=key)
    assert record.account_name == well.name
    assert [(attempt["account"], attempt["status"]) for attempt in record.attempts] == [
        (sick.name, 529),
        (well.name, 200),
    ]


def test_an_error_event_as_first_frame_is_an_honest_status(server: Server, installation: Installation) -> None:
    installation.account()
    with pytest.raises(anthropic.APIStatusError) as caught:
        create(server, installation.key(), model=f"{MODEL}~fail=overloaded_error", stream=True)
    assert caught.value.status_code == 529


@pytest.mark.parametrize("fault", ["reset=3", "cut=3", "eof=3"])
def test_a_stream_cut_upstream_never_looks_whole(server: Server, installation: Installation, fault: str) -> None:
    installation.account()
    key = installation.key()
    body = json.dumps({**ASKED, "model": f"{MODEL}~chunks=9~size=40~delay=0.01~{fault}", "stream": True}).encode()
    status, _, answer = post(server, PATHS[0], body, {"x-api-key": key})
    assert status == 200
    assert b"message_stop" not in answer
    last = answer.rstrip().split(b"\n\n")[-1]
    assert last.startswith(b"event: error\n")
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("upstream_error", "partial")
    assert record.input_tokens and record.output_tokens and record.cost_nanos


def test_an_upstream_that_can_t_be_reached_is_502(server: Server, installation: Installation) -> None:
    installation.account(base_url="http://127.0.0.1:1")
    with pytest.raises(anthropic.InternalServerError) as caught:
        create(server, installation.key())
    assert caught.value.status_code == 502


def test_a_rejected_credential_is_502_and_rests_the_account(server: Server, installation: Installation) -> None:
    installation.account(credential={"api_key": "sk-ant-bad"})
    key = installation.key()
    with pytest.raises(anthropic.APIStatusError) as first:
        create(server, key)
    with pytest.raises(anthropic.APIStatusError) as second:
        create(server, key)
    assert (first.value.status_code, second.value.status_code) == (502, 503)
    assert first.value.response.headers["x-should-retry"] == "false"


def long_prompt(size: int) -> list[dict[str, str]]:
    """uvicorn stops reading at 64 KiB of a body; a socket that is not read does not tell that the client has left."""
    return [{"role": "user", "content": "x" * size}]


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_client_that_leaves_a_stream_stops_the_upstream(
    server: Server, installation: Installation, size: int
) -> None:
    installation.account()
    key = installation.key()
    model = f"{MODEL}~chunks=500~delay=0.02~size=40"
    body = {**ASKED, "model": model, "stream": True, "messages": long_prompt(size)}
    leave_after(server, key, body, b"content_block_delta")
    left = time.time()
    wait_for(lambda: installation.simulator.open() == 0, seconds=1, what="upstream closed")
    (record,) = installation.records(key=key)
    (request,) = installation.simulator.requests()
    assert request["end"] == "client_closed" and request["ended_at"] < left + 1
    assert (record.status, record.usage_source) == ("client_disconnected", "partial")
    assert record.input_tokens and 0 < record.output_tokens < 500 * 10 and record.cost_nanos


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_client_that_leaves_before_the_first_event_stops_the_upstream(
    server: Server, installation: Installation, size: int
) -> None:
    installation.account()
    key = installation.key()
    body = {**ASKED, "model": f"{MODEL}~hang=before", "stream": True, "messages": long_prompt(size)}
    leave_after(server, key, body, b"", wait=0.3)
    wait_for(lambda: installation.simulator.open() == 0, seconds=1, what="upstream closed")
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source, record.cost_nanos) == ("client_disconnected", "none", 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_drained_call_is_booked_in_full(server: Server, installation: Installation, stream: bool) -> None:
    installation.account(on_disconnect="drain")
    key = installation.key()
    body = {**ASKED, "model": f"{MODEL}~chunks=20~delay=0.02~out=77", "stream": stream}
    leave_after(server, key, body, b"content_block_delta" if stream else b"", wait=0.1)
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source, record.output_tokens) == ("client_disconnected", "provider", 77)


def test_a_client_that_closes_after_the_terminal_event_is_ok(server: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key()
    leave_after(server, key, {**ASKED, "stream": True}, b'"message_stop"}')
    (record,) = installation.records(key=key)
    assert record.status == "ok"


def leave_after(server: Server, key: str, body: dict[str, Any], mark: bytes, *, wait: float = 0.0) -> None:
    """Send a call, read until `mark` has come (or wait), and close the socket."""
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\nanthropic-version: 2023-06-01\r\n"
        head += f"content-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        received = b""
        while mark and mark not in received:
            received += connection.recv(65536)
        time.sleep(wait)


def test_count_tokens_is_free_and_recorded(server: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key(limits=["cost 0 per day"])
    with client_of(server, key) as client:
        counted = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
    assert counted.input_tokens > 0
    (record,) = installation.records(key=key)
    assert (record.endpoint, record.status, record.cost_nanos) == ("count_tokens", "ok", 0)


def test_a_spent_budget_is_402_and_says_which(server: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key(limits=["cost 0 per day"])
    with pytest.raises(anthropic.APIStatusError) as caught:
        create(server, key)
    assert (caught.value.status_code, caught.value.response.headers["x-should-retry"]) == (402, "false")
    assert caught.value.body["error"]["type"] == "billing_error"  # type: ignore[index]


def test_a_rate_limit_is_429_with_retry_after(server: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key(limits=["requests 1 per minute"])
    create(server, key)
    with pytest.raises(anthropic.RateLimitError) as caught:
        create(server, key)
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 60


def test_models_are_listed_in_anthropic_s_shape(server: Server, installation: Installation) -> None:
    installation.account(model_map={"claude-b": "x", "claude-a": "y"})
    with client_of(server, installation.key()) as client:
        listed = client.models.list()
        assert [model.id for model in listed.data] == ["claude-a", "claude-b"]
        assert client.models.retrieve("claude-b").id == "claude-b"
        with pytest.raises(anthropic.NotFoundError):
            client.models.retrieve("claude-c")


@pytest.mark.parametrize("path", ["/", "/api", "/api/hello", "/api/api/hello", "/claude", "/v1", "/v1/messages"])
def test_probes_are_answered_without_a_credential(server: Server, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    connection.request("HEAD", path)
    assert connection.getresponse().status == 200
    connection.close()


def test_a_path_that_is_not_served_is_a_native_404(server: Server, installation: Installation) -> None:
    status, _, body = post(server, "/claude/v1/messages/batches", b"{}", {"x-api-key": installation.key()})
    assert (status, json.loads(body)["error"]["type"]) == (404, "not_found_error")
