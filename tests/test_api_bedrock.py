"""Claude on Bedrock through Baton: the SDK can't tell it from Anthropic's own API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.harness import Installation, Server, wait_for
from tests.test_api_messages import ASKED, PATHS, client_of, create, leave_after, post

MODEL = "claude-sonnet-5-5"
SIGNED = {"access_key_id": "AKIASIM0001", "secret_access_key": "sim-secret", "session_token": "token"}
RECORDED = Path(__file__).parent / "fixtures" / "bedrock" / "claude-code.json"


def bedrock(installation: Installation, **fields: Any) -> Any:
    given = {"settings": {"region": "us-east-1"}, "credential": SIGNED, **fields}
    return installation.account(kind="bedrock", **given)


@pytest.mark.parametrize("credential", [SIGNED, {"api_key": "bedrock-key"}], ids=["sigv4", "bearer"])
def test_a_stream_reads_like_anthropic_s_own(
    server: Server, installation: Installation, credential: dict[str, str]
) -> None:
    account = bedrock(installation, credential=credential)
    key = installation.key()
    with client_of(server, key) as client, client.messages.stream(**{**ASKED, "model": MODEL}) as stream:  # type: ignore[arg-type]
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert (kinds[0], kinds[-1], message.model) == ("message_start", "message_stop", MODEL)
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source, record.provider) == ("ok", "provider", "aws")
    assert (record.output_tokens, record.account_name) == (message.usage.output_tokens, account.name)
    assert record.upstream_model == "us.anthropic.claude-sonnet-5-5"
    assert record.cost_nanos > 0 and not record.unpriced
    (request,) = installation.simulator.requests()
    assert request["target"] == "/model/us.anthropic.claude-sonnet-5-5/invoke-with-response-stream"
    assert not {"model", "stream"} & set(json.loads(request["body"]))


def test_metrics_of_bedrock_s_own_do_not_reach_the_client(server: Server, installation: Installation) -> None:
    bedrock(installation)
    body = json.dumps({**ASKED, "model": MODEL, "stream": True}).encode()
    _, headers, answer = post(server, PATHS[0], body, {"x-api-key": installation.key()})
    assert b"invocationMetrics" not in answer
    assert answer.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert headers["content-type"].startswith("text/event-stream")


def test_a_whole_answer_and_a_count_come_in_anthropic_s_shape(server: Server, installation: Installation) -> None:
    bedrock(installation)
    key = installation.key()
    with client_of(server, key) as client:
        message = client.messages.create(**{**ASKED, "model": MODEL})  # type: ignore[call-overload]
        counted = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
    assert (message.model, counted.input_tokens) == (MODEL, 1)
    records = installation.records(key=key, count=2)
    assert [record.endpoint for record in records] == ["messages", "count_tokens"]
    assert records[1].cost_nanos == 0


def test_claude_code_s_betas_are_mapped_and_the_dropped_ones_named(server: Server, installation: Installation) -> None:
    recorded = json.loads(RECORDED.read_text())
    bedrock(installation)
    key = installation.key()
    sent = {name: value for name, value in recorded["headers"].items() if name.startswith(("anthropic", "x-", "user"))}
    body = json.dumps({**recorded["body"], "model": MODEL}).encode()
    status, headers, answer = post(server, f"{PATHS[0]}?beta=true", body, {**sent, "x-api-key": key})
    assert (status, b"message_stop" in answer) == (200, True)
    (request,) = installation.simulator.requests()
    got = json.loads(request["body"])
    assert got["anthropic_version"] == "bedrock-2023-05-31"
    assert "tool-search-tool-2025-10-19" in got["anthropic_beta"]
    assert "claude-code-20250219" in headers["x-relay-dropped"]
    assert "messages[].output_config" in headers["x-relay-dropped"]
    assert got["system"] == recorded["body"]["system"]
    (record,) = installation.records(key=key)
    assert record.status == "ok" and record.session == recorded["headers"]["x-claude-code-session-id"]


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("400", 400, "invalid_request_error"),
        ("401", 502, "api_error"),
        ("404", 404, "not_found_error"),
        ("429", 429, "rate_limit_error"),
        ("quota", 502, "api_error"),
        ("408", 504, "timeout_error"),
        ("424", 502, "api_error"),
        ("500", 502, "api_error"),
        ("503", 503, None),
    ],
)
@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
@pytest.mark.parametrize("stream", [False, True])
def test_aws_exceptions_come_as_anthropic_s_errors(
    server: Server, installation: Installation, *, fault: str, status: int, kind: str | None, stream: bool
) -> None:
    bedrock(installation)
    key = installation.key()
    body = json.dumps({**ASKED, "model": f"{MODEL}~error={fault}", "stream": stream}).encode()
    got, _, answer = post(server, PATHS[0], body, {"x-api-key": key})
    error = json.loads(answer)
    assert (got, error["type"]) == (status, "error")
    assert kind is None or error["error"]["type"] == kind
    (record,) = installation.records(key=key)
    assert (record.status, record.http_status, record.cost_nanos) == ("upstream_error", status, 0)


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_an_exception_as_first_frame_fails_over(server: Server, installation: Installation) -> None:
    bedrock(installation, priority=1, credential={"api_key": "sim~fail=429"})
    well = bedrock(installation, priority=2)
    key = installation.key()
    with client_of(server, key) as client, client.messages.stream(**{**ASKED, "model": MODEL}) as stream:  # type: ignore[arg-type]
        assert stream.get_final_message().stop_reason == "end_turn"
    (record,) = installation.records(key=key)
    assert (record.account_name, [attempt["status"] for attempt in record.attempts]) == (well.name, [429, 200])


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
@pytest.mark.parametrize("fault", ["fail=500@3", "reset=3", "cut=3", "eof=3"])
def test_a_stream_cut_on_bedrock_never_looks_whole(server: Server, installation: Installation, fault: str) -> None:
    bedrock(installation)
    key = installation.key()
    body = json.dumps({**ASKED, "stream": True}).encode()
    script = f"chunks=9,size=40,delay=0.01,{fault}"
    status, _, answer = post(server, PATHS[0], body, {"x-api-key": key, "x-sim": script})
    assert (status, b"message_stop" in answer) == (200, False)
    assert answer.rstrip().split(b"\n\n")[-1].startswith(b"event: error\n")
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("upstream_error", "partial")
    assert record.input_tokens and record.output_tokens and record.cost_nanos


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_client_that_leaves_a_bedrock_stream_is_booked(server: Server, installation: Installation) -> None:
    key = installation.key()
    bedrock(installation, credential={"api_key": "sim~chunks=500~delay=0.02~size=40"})
    leave_after(server, key, {**ASKED, "stream": True}, b"content_block_delta")
    wait_for(lambda: installation.simulator.open() == 0, seconds=1, what="upstream closed")
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("client_disconnected", "partial")
    assert record.cost_nanos


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_wrong_signature_is_our_fault_not_the_caller_s(server: Server, installation: Installation) -> None:
    bedrock(installation, credential={**SIGNED, "secret_access_key": "not it"})
    with pytest.raises(anthropic.InternalServerError) as caught:
        create(server, installation.key(), model=MODEL)
    assert caught.value.status_code == 502
