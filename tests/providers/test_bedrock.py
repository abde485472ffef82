"""Bedrock as an upstream: addresses, signatures, frames, the table of betas, and whose fault its errors are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from relay.call import Account, Call, Endpoint, UsageSource
from relay.dialects import DIALECTS
from relay.errors import (
    AccountRejected,
    ModelUnavailable,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
)
from relay.providers import PROVIDERS
from relay.providers.bedrock_claude import betas_for, version_for
from relay.simulator.bedrock import framed, message_frame
from tests.providers.case import NOW, call_of, fixture

BEDROCK = PROVIDERS["bedrock"]
MESSAGES = Endpoint("messages", "anthropic")
STREAM = fixture("bedrock/stream.sse")
ACCOUNT = Account(
    id=1,
    name="b",
    kind="bedrock",
    base_url="",
    provider="aws",
    credential={"access_key_id": "AKIA1", "secret_access_key": "s"},
    settings={"region": "eu-central-1"},
)


def call(headers: dict[str, str] | None = None, **fields: Any) -> Call:
    body = json.dumps({"model": "claude-sonnet-5-5", "max_tokens": 5, "messages": [], **fields}).encode()
    return call_of(MESSAGES, body=body, path="messages", headers=headers)


def frames() -> list[bytes]:
    events = [event + b"\n\n" for event in STREAM.split(b"\n\n") if event]
    return [framed(event, last=b"message_stop" in event) for event in events]


def ways() -> Iterator[tuple[str, list[bytes]]]:
    whole = b"".join(frames())
    yield "whole", [whole]
    yield "by frame", frames()
    yield "by byte", [whole[i : i + 1] for i in range(len(whole))]
    yield "by 3 bytes", [whole[i : i + 3] for i in range(0, len(whole), 3)]


@pytest.mark.parametrize(("how", "chunks"), list(ways()), ids=lambda value: value if isinstance(value, str) else "")
def test_frames_become_the_same_events_however_cut(how: str, chunks: list[bytes]) -> None:
    framer, meter = BEDROCK.framer(call(stream=True), "x"), DIALECTS["anthropic"].meter(MESSAGES)
    blocks = [block for block in (*(framer.feed(chunk) for chunk in chunks), framer.flush()) if block]
    for block in blocks:
        meter.feed(block)
    assert b"".join(blocks) == STREAM.replace(b"anthropic.claude-native", b"claude-sonnet-5-5")
    outcome = meter.outcome()
    assert (outcome.source, outcome.usage.input_tokens, outcome.usage.output_tokens) == (UsageSource.PROVIDER, 12, 6)


def test_a_flipped_bit_is_no_event() -> None:
    frame = bytearray(frames()[0])
    frame[-6] ^= 1
    with pytest.raises(UpstreamFailed) as caught:
        BEDROCK.framer(call(stream=True), "x").feed(bytes(frame))
    assert caught.value.reason == "bad_frame"


def test_a_stream_that_ends_inside_a_frame_is_cut() -> None:
    framer = BEDROCK.framer(call(stream=True), "x")
    framer.feed(frames()[0][:-1])
    with pytest.raises(UpstreamFailed) as caught:
        framer.flush()
    assert caught.value.reason == "cut_stream"


@pytest.mark.parametrize(
    ("name", "kind", "status"),
    [
        ("throttlingException", UpstreamOverloaded, 429),
        ("serviceUnavailableException", UpstreamOverloaded, 503),
        ("validationException", UpstreamRejected, 400),
        ("modelStreamErrorException", UpstreamFailed, 424),
        ("modelTimeoutException", UpstreamTimeout, 408),
        ("internalServerException", UpstreamFailed, 500),
    ],
)
def test_an_exception_frame_is_known_by_its_type(name: str, kind: type[UpstreamError], status: int) -> None:
    frame = message_frame({":message-type": "exception", ":exception-type": name}, b'{"message":"said"}')
    framer = BEDROCK.framer(call(stream=True), "x")
    assert framer.feed(frames()[0] + frame).startswith(b"event: message_start")
    with pytest.raises(kind) as caught:
        framer.flush()
    assert (caught.value.upstream_status, b"said" in caught.value.body) == (status, True)


@pytest.mark.parametrize("payload", [b'{"message":"said"}', b'"said"', b"said"])
def test_an_exception_says_what_it_says_in_whatever_shape(payload: bytes) -> None:
    frame = message_frame({":message-type": "exception", ":exception-type": "validationException"}, payload)
    with pytest.raises(UpstreamRejected) as caught:
        BEDROCK.framer(call(stream=True), "x").feed(frame)
    assert json.loads(caught.value.body)["error"] == {"type": "invalid_request_error", "message": "said"}


@pytest.mark.parametrize(
    ("status", "name", "message", "kind"),
    [
        (400, "ValidationException", "bad", UpstreamRejected),
        (400, "ServiceQuotaExceededException", "quota", AccountRejected),
        (403, "AccessDeniedException", "User is not authorized to perform: bedrock:InvokeModel", AccountRejected),
        (
            403,
            "AccessDeniedException",
            "You don't have access to the model with the specified model ID.",
            ModelUnavailable,
        ),
        (403, "UnrecognizedClientException", "The security token included in the request is invalid.", AccountRejected),
        (404, "ResourceNotFoundException", "no model", ModelUnavailable),
        (429, "ThrottlingException", "slow", UpstreamOverloaded),
        (429, "ModelNotReadyException", "soon", UpstreamOverloaded),
        (408, "ModelTimeoutException", "late", UpstreamTimeout),
        (424, "ModelErrorException", "oops", UpstreamFailed),
        (503, "ServiceUnavailableException", "busy", UpstreamOverloaded),
        (502, "", "<html>", UpstreamFailed),
    ],
)
def test_whose_fault_an_answer_is(status: int, name: str, message: str, kind: type[UpstreamError]) -> None:
    headers = ((b"x-amzn-errortype", f"{name}:http://x/".encode()),) if name else ()
    error = BEDROCK.classify(status, headers, json.dumps({"message": message}).encode(), now=NOW)
    assert type(error) is kind


def test_the_body_loses_model_and_stream_and_nothing_else() -> None:
    sent = call_of(
        MESSAGES,
        body=b'{"model":"claude-sonnet-5-5","stream":true,"messages":[ 1.0 ],"x":1e3,"max_tokens":5}',
        path="messages",
    )
    request = BEDROCK.request(sent, ACCOUNT, BEDROCK.upstream_model(ACCOUNT, "claude-sonnet-5-5"))
    assert request.content == b'{"anthropic_version":"bedrock-2023-05-31","messages":[ 1.0 ],"x":1e3,"max_tokens":5}'
    assert request.url == (
        "https://bedrock-runtime.eu-central-1.amazonaws.com/model/eu.anthropic.claude-sonnet-5-5/invoke-with-response-stream"
    )
    assert dict(request.headers)[b"authorization"].startswith(b"AWS4-HMAC-SHA256 Credential=AKIA1/")


def test_an_arn_is_one_segment_of_the_path() -> None:
    arn = "arn:aws:bedrock:eu-central-1:123456789012:application-inference-profile/abc"
    assert "/model/arn%3Aaws%3Abedrock%3Aeu-central-1%3A123456789012%3Aapplication-inference-profile%2Fabc/invoke" in (
        BEDROCK.request(call(), ACCOUNT, arn).url
    )


@pytest.mark.parametrize(
    ("asked", "model", "version"),
    [
        ("2023-06-01", "us.anthropic.claude-sonnet-5-5", "bedrock-2023-05-31"),
        ("2026-10-21", "us.anthropic.claude-sonnet-5-5", "2026-10-21"),
        ("2026-10-21", "us.anthropic.claude-opus-4-7-v1:0", "2026-10-21"),
        ("2026-10-21", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "bedrock-2023-05-31"),
        ("", "us.anthropic.claude-sonnet-5-5", "bedrock-2023-05-31"),
    ],
)
def test_the_version_is_the_one_that_the_model_takes(asked: str, model: str, version: str) -> None:
    assert version_for(asked, model) == version


def test_betas_are_kept_renamed_or_dropped_by_the_table() -> None:
    asked = ["effort-2025-11-24", "advanced-tool-use-2025-11-20", "tool-search-tool-2025-10-19", "files-api-2025-04-14"]
    assert betas_for(asked) == (["effort-2025-11-24", "tool-search-tool-2025-10-19"], ["files-api-2025-04-14"])


def test_a_dropped_beta_takes_its_field_along() -> None:
    sent = call(
        {"anthropic-beta": "thinking-display-updates-2026-08-18, per-turn-control-2026-07-01"},
        thinking={"type": "adaptive", "display": "updates"},
        messages=[{"role": "user", "content": "a"}, {"role": "system", "content": "b", "output_config": {}}],
        fallbacks=[],
    )
    request = BEDROCK.request(sent, ACCOUNT, "eu.anthropic.claude-sonnet-5-5")
    body = json.loads(request.content)
    assert (body["thinking"], body["messages"][1]) == ({"type": "adaptive"}, {"role": "system", "content": "b"})
    assert set(request.dropped) == {
        "thinking-display-updates-2026-08-18",
        "per-turn-control-2026-07-01",
        "thinking.display",
        "messages[].output_config",
        "fallbacks",
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"settings": {"region": "somewhere"}}, "region"),
        ({"credential": {"access_key_id": "a"}}, "credential"),
        ({"model_map": {"a": "gpt-4"}}, "model_map"),
        ({"model_map": {"a": "arn:aws:bedrock:us-east-1:123456789012:inference-profile/x"}}, "us-east-1"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_saved(fields: dict[str, Any], said: str) -> None:
    given = {"credential": ACCOUNT.credential, "settings": ACCOUNT.settings, **fields}
    wrong = BEDROCK.check(Account(id=1, name="b", kind="bedrock", base_url="", provider="aws", **given))
    assert len(wrong) == 1 and said in wrong[0]


def test_good_ids_and_profiles_pass() -> None:
    ids = [
        "anthropic.claude-3-haiku-20240307-v1:0",
        "global.anthropic.claude-opus-5-5",
        "apac.anthropic.claude-haiku-5-5",
    ]
    account = Account(
        id=1,
        name="b",
        kind="bedrock",
        base_url="",
        provider="aws",
        credential={"api_key": "k"},
        settings={"region": "us-gov-west-1"},
        model_map=dict.fromkeys(ids, "") | {name: name for name in ids},
    )
    assert BEDROCK.check(account) == []
    assert [BEDROCK.upstream_model(account, name) for name in ids] == ids
