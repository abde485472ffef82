"""Responses: requests, counts, hosted tools and errors, as the official SDK and Codex take them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import ResponseCompletedEvent, ResponseFailedEvent

from relay.call import Endpoint, Envelope, Outcome, Quantity, UsageSource, new_call_id
from relay.dialects.openai_responses import OpenAIResponses
from relay.errors import (
    BudgetExceeded,
    InvalidRequest,
    RelayError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
)
from tests.dialects.case import outcome_of, whole_outcome
from tests.openai_sdk import answering
from tests.providers.case import fixture

DIALECT = OpenAIResponses()
RESPONSES = Endpoint("responses", "openai_responses")
RETRIEVE = Endpoint("responses_retrieve", "openai_responses", metered=False)
NOW = 1_795_388_612.0


def body_of(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-5.6-luna", "input": "Hi", **fields}).encode()


def envelope_of(**fields: Any) -> Envelope:
    return DIALECT.read_envelope(body_of(**fields), headers={})


def bounds_of(**fields: Any) -> Envelope:
    return DIALECT.bounded(body_of(**fields), envelope_of(**fields))


def folded(name: str, endpoint: Endpoint = RESPONSES) -> Outcome:
    return outcome_of(DIALECT, endpoint, name)


def whole(name: str, endpoint: Endpoint = RESPONSES) -> Outcome:
    return whole_outcome(DIALECT, endpoint, fixture(name))


# -- the envelope --------------------------------------------------------------------------------------


def test_it_reads_codex_recorded_request() -> None:
    recorded = json.loads(fixture("openai/codex_request.json"))
    headers = {name.encode(): value.encode() for name, value in recorded["headers"].items()}
    envelope = DIALECT.read_envelope(json.dumps(recorded["body"]).encode(), headers=headers)

    assert (envelope.model, envelope.stream, envelope.session) == (
        "gpt-5.6-luna",
        True,
        "01a20580-1fad-7770-af02-720f5a85abff",
    )
    bounds = DIALECT.bounded(json.dumps(recorded["body"]).encode(), envelope)
    assert (bounds.inline_text, bounds.unbounded, bounds.tied, bounds.stored) == (True, (), False, False)


@pytest.mark.parametrize(
    "fields, field",
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"max_output_tokens": "9"}, "max_output_tokens"),
        ({"stream": 1}, "stream"),
        ({"model": None}, "model"),
        ({"previous_response_id": 5}, "previous_response_id"),
    ],
)
def test_it_refuses_what_can_not_be_booked_and_names_the_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        envelope_of(**fields)

    answer = DIALECT.render_error(caught.value, "id")
    assert (answer.status, json.loads(answer.body)["error"]["param"]) == (400, field)


def test_null_is_as_good_as_nothing() -> None:
    nothing = dict.fromkeys(("background", "conversation", "stream", "tools", "previous_response_id", "prompt"))

    assert envelope_of(**nothing).model == "gpt-5.6-luna"


@pytest.mark.parametrize(
    "fields, inline",
    [
        ({}, True),
        ({"input": [{"role": "user", "content": "Hi"}]}, True),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]}, True),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "42"}]}, True),
        ({"input": [{"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "gAAA"}]}, True),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x"}]}]}, False),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]}, False),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}]},
            False,
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, False),
        ({"input": [{"type": "compaction", "encrypted_content": "gAAA"}]}, False),
        ({"input": {"not": "a list"}}, True),
        ({"input": ["odd"]}, False),
        ({"previous_response_id": "resp_1"}, False),
        ({"prompt": {"id": "pmpt_1"}}, False),
    ],
)
def test_only_text_in_the_body_is_bounded_by_it(fields: dict[str, Any], inline: bool) -> None:
    assert bounds_of(**fields).inline_text is inline


@pytest.mark.parametrize(
    "fields, unbounded",
    [
        ({"tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "c"}]}, ()),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]}]}, ()),
        ({"tools": [{"type": "shell", "environment": {"type": "local"}}]}, ()),
        ({"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}, ("tools",)),
        ({"tools": [{"type": "web_search"}]}, ("tools",)),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, ("tools",)),
        ({"tools": [{"type": "namespace", "tools": [{"type": "file_search"}]}]}, ("tools",)),
        ({"tools": {"type": "web_search"}}, ("tools",)),
        ({"input": [{"type": "additional_tools", "tools": [{"type": "code_interpreter"}]}]}, ("tools",)),
        ({"context_management": [{"type": "compaction"}]}, ("context_management",)),
    ],
)
def test_what_runs_at_the_vendor_can_not_be_bounded(fields: dict[str, Any], unbounded: tuple[str, ...]) -> None:
    assert bounds_of(**fields).unbounded == unbounded


def test_encrypted_reasoning_ties_a_conversation_to_its_account() -> None:
    items = [{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}]

    assert envelope_of(input=items).tied
    assert not envelope_of(input=[{**items[0], "encrypted_content": None}]).tied


def test_the_conversation_is_named_by_the_best_that_exists() -> None:
    def affinity(session: str = "", **fields: Any) -> str:
        return str(DIALECT.read_envelope(body_of(**fields), headers={b"session-id": session.encode()}).affinity)

    assert affinity("s", prompt_cache_key="a") == affinity("s", prompt_cache_key="b")
    assert affinity(prompt_cache_key="a") == affinity(prompt_cache_key="a", previous_response_id="resp_2")
    assert affinity(previous_response_id="resp_1") != affinity(previous_response_id="resp_2")
    assert affinity(instructions="Be terse.") == affinity(instructions="Be terse.", input="Other")
    assert affinity() != affinity(input="Other")
    assert envelope_of(previous_response_id="resp_1").previous_response_id == "resp_1"


def test_a_response_is_stored_unless_the_request_says_no() -> None:
    assert envelope_of().stored
    assert not envelope_of(store=False).stored


def test_the_end_user_is_the_safety_identifier_else_the_user() -> None:
    assert envelope_of(user="u", safety_identifier="s").end_user == "s"
    assert envelope_of(user="u").end_user == "u"


# -- counting ------------------------------------------------------------------------------------------


def test_cache_writes_and_searches_are_lines_of_their_own() -> None:
    outcome = folded("openai/responses_stream.sse")
    usage = outcome.usage

    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (800, 3000, 210)
    assert usage.reasoning_tokens == 128
    assert usage.extra == (
        Quantity("cache_creation_30m_input_tokens", 200),
        Quantity("cache_creation_12h_input_tokens", 1000),
        Quantity("web_searches", 2),
    )
    assert usage.flags == ()
    assert json.loads(usage.raw)["total_tokens"] == 5210
    assert (outcome.source, outcome.terminal, outcome.error) == (UsageSource.PROVIDER, True, "")
    assert (outcome.response_model, outcome.response_id) == ("gpt-5.6-luna-2026-07-30", "resp_01a2058020027e62")
    assert usage.service_tier == "default"


def test_an_image_is_billed_by_the_model_that_drew_it() -> None:
    usage = whole("openai/responses_tools.json").usage

    assert usage.service_tier == "flex"
    assert usage.extra == (
        Quantity("file_searches", 1),
        Quantity("code_interpreter_sessions", 1),
        Quantity("input_tokens", 15, "gpt-image-2", run=1),
        Quantity("cache_read_input_tokens", 5, "gpt-image-2", run=1),
        Quantity("image_input_tokens", 75, "gpt-image-2", run=1),
        Quantity("image_cache_read_input_tokens", 25, "gpt-image-2", run=1),
        Quantity("output_tokens", 56, "gpt-image-2", run=1),
        Quantity("image_output_tokens", 1000, "gpt-image-2", run=1),
    )


def test_searches_are_counted_where_the_vendor_does_not_report_them() -> None:
    response = json.loads(fixture("openai/responses_tools.json"))
    response["tool_usage"] = None
    response["output"] = [
        {"type": "web_search_call", "status": "completed", "action": {"type": "search"}},
        {"type": "web_search_call", "status": "completed", "action": {"type": "open_page"}},
        {"type": "web_search_call", "status": "failed", "action": {"type": "search"}},
    ]
    meter = DIALECT.meter(RESPONSES)
    meter.whole(json.dumps(response).encode())

    assert meter.outcome().usage.extra == (Quantity("web_searches", 1),)
    assert meter.outcome().usage.flags == ("web_searches_counted",)


@pytest.mark.parametrize(
    "details, ttl, want, flags",
    [
        ({"cache_write_tokens": 50}, None, {"cache_creation_30m_input_tokens": 50}, ()),
        ({"cache_write_tokens": 50}, "12h", {"cache_creation_12h_input_tokens": 50}, ()),
        ({"cache_write_tokens": 50}, "99d", {"cache_creation_30m_input_tokens": 50}, ()),
        (
            {"cache_write_tokens": 50, "cache_write_tokens_details": {"ttl_30m_tokens": 0, "ttl_12h_tokens": 40}},
            "12h",
            {"cache_creation_12h_input_tokens": 50},
            ("cache_write_mismatch",),
        ),
    ],
)
def test_cache_writes_without_a_split_have_the_requests_lifetime(
    details: dict[str, Any], ttl: str | None, want: dict[str, int], flags: tuple[str, ...]
) -> None:
    usage = {"input_tokens": 100, "input_tokens_details": details, "output_tokens": 1, "total_tokens": 101}
    response = {"id": "resp_1", "status": "completed", "usage": usage, "prompt_cache_options": ttl and {"ttl": ttl}}
    meter = DIALECT.meter(RESPONSES)
    meter.whole(json.dumps(response).encode())
    counted = meter.outcome().usage

    assert {item.meter: item.quantity for item in counted.extra} == want
    assert (counted.input_tokens, counted.flags) == (50, flags)


def test_an_incomplete_answer_is_an_end_like_any_other() -> None:
    outcome = folded("openai/responses_incomplete.sse")

    assert (outcome.usage.output_tokens, outcome.terminal, outcome.error) == (16, True, "")


def test_a_failed_answer_is_an_error_in_the_vendors_words() -> None:
    stream = fixture("openai/responses_failed.sse")
    meter = DIALECT.meter(RESPONSES)

    assert meter.feed(stream) == stream.index(b"event: response.failed")
    assert (meter.error, meter.content_seen) == ("rate_limit_exceeded", False)
    assert json.loads(meter.error_body)["error"]["code"] == "rate_limit_exceeded"
    assert meter.outcome().source is UsageSource.NONE


def test_an_answer_without_usage_is_estimated_and_says_so() -> None:
    said = [{"type": "message", "content": [{"text": "12345678"}]}, {"type": "function_call", "arguments": "1234"}]
    body = json.dumps({"id": "resp_1", "status": "completed", "usage": None, "output": said}).encode()
    outcome = whole_outcome(DIALECT, RESPONSES, body)

    assert (outcome.source, outcome.usage.output_tokens) == (UsageSource.ESTIMATED, 3)
    assert outcome.usage.flags == ("no_usage",)


def test_a_rejected_answer_without_usage_bills_nothing() -> None:
    body = b'{"id":"resp_1","status":"failed","error":{"code":"invalid_prompt","message":"No."},"usage":null}'
    outcome = whole_outcome(DIALECT, RESPONSES, body)

    assert (outcome.source, outcome.usage.flags, outcome.error) == (UsageSource.NONE, (), "")


def test_a_bare_error_event_ends_the_stream() -> None:
    meter = DIALECT.meter(RESPONSES)
    event = {"type": "error", "code": None, "message": "Broken.", "param": None, "sequence_number": 3}

    assert meter.feed(b"event: error\ndata: " + json.dumps(event).encode() + b"\n\n") == 0
    assert (meter.error, meter.error_message, meter.terminal) == ("error", "Broken.", True)


def test_a_cut_stream_is_estimated_from_its_tool_arguments() -> None:
    outcome = folded("openai/responses_cut.sse")

    # '{"cmd":' + '"ls"}' = 12 bytes
    assert (outcome.usage.output_tokens, outcome.source, outcome.terminal) == (3, UsageSource.ESTIMATED, False)
    assert outcome.response_id == "resp_01a2058020027e62"


@pytest.mark.parametrize("name, error", [("responses_failed.json", "server_error"), ("responses_rejected.json", "")])
def test_a_failed_whole_answer_is_ours_to_retry_only_when_the_vendor_failed(name: str, error: str) -> None:
    assert whole(f"openai/{name}").error == error


def test_a_compaction_is_metered_like_a_response() -> None:
    usage = whole("openai/compact.json").usage

    assert (usage.input_tokens, usage.output_tokens) == (75, 438)
    assert usage.extra == (Quantity("cache_creation_30m_input_tokens", 64),)


@pytest.mark.parametrize("name", ["responses_stream.sse", "responses_tools.json", "input_tokens.json"])
def test_reading_a_stored_response_again_books_nothing(name: str) -> None:
    outcome = (folded if name.endswith("sse") else whole)(f"openai/{name}", RETRIEVE)

    assert (outcome.source, outcome.usage.input_tokens, outcome.usage.extra) == (UsageSource.NONE, None, ())


@pytest.mark.parametrize(
    "data",
    [
        b"data: nonsense\n\n",
        b'data: {"type":5}\n\n',
        b'data: {"type":"response.output_text.delta","delta":{"a":1}}\n\n',
        b'data: {"type":"response.in_progress","response":[1]}\n\n',
        b"\xff",
    ],
)
def test_what_can_not_be_read_counts_as_nothing(data: bytes) -> None:
    meter = DIALECT.meter(RESPONSES)

    assert meter.feed(data) == -1
    assert meter.outcome().source is UsageSource.NONE


def test_an_unreadable_end_is_still_the_end() -> None:
    meter = DIALECT.meter(RESPONSES)

    assert meter.feed(b'data: {"type":"response.completed","response":{"usage":7,"output":{},"tools":5}}\n\n') == 0
    assert meter.terminal


# -- errors, as SDK and Codex take them ------------------------------------------------------------------


def test_the_sdk_reads_the_stream() -> None:
    events = list(
        answering(fixture("openai/responses_stream.sse"), stream=True).responses.create(input="x", stream=True)
    )

    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent)
    assert last.response.output_text == "Sunny in\u2028Oslo."
    assert last.response.usage is not None and last.response.usage.input_tokens_details.cache_write_tokens == 1200


@pytest.mark.parametrize(
    "error, code",
    [
        (UpstreamFailed("The upstream's stream ended before its end."), "server_error"),
        (UpstreamOverloaded("Busy.", status=503, body=fixture("openai/error_503.json")), "server_is_overloaded"),
        (UpstreamOverloaded("Busy.", status=429), "rate_limit_exceeded"),
        (UpstreamOverloaded("Busy.", status=429, body=fixture("openai/error_429_rate.json")), "rate_limit_exceeded"),
        (BudgetExceeded("Spent."), "insufficient_quota"),
        (UpstreamRejected("x", status=400, body=fixture("openai/error_400_context.json")), "context_length_exceeded"),
    ],
)
def test_a_stream_that_breaks_ends_with_a_failed_response(error: RelayError, code: str) -> None:
    began = fixture("openai/responses_cut.sse")
    meter = DIALECT.meter(RESPONSES)
    meter.feed(began)
    event = DIALECT.last_event(error, new_call_id(NOW), meter=meter)

    *_, before, last = answering(began + event, stream=True).responses.create(input="x", stream=True)

    assert isinstance(last, ResponseFailedEvent)
    assert last.sequence_number == before.sequence_number + 1
    assert (last.response.id, last.response.model) == ("resp_01a2058020027e62", "gpt-5.6-luna-2026-07-30")
    assert (last.response.status, last.response.created_at) == ("failed", NOW)
    assert last.response.error is not None and last.response.error.code == code
    assert b"AbCdEf123456" not in event
    assert DIALECT.meter(RESPONSES).feed(event) == 0


def test_a_stream_that_never_began_fails_too() -> None:
    event = DIALECT.error_event(UpstreamFailed("No."), new_call_id(NOW))

    (only,) = answering(event, stream=True).responses.create(input="x", stream=True)

    assert isinstance(only, ResponseFailedEvent)
    assert only.response.id.startswith("resp_")


def test_the_sdk_reads_a_compaction_and_a_token_count() -> None:
    compacted = answering(fixture("openai/compact.json")).responses.compact(model="gpt-5.6-luna", input="x")
    counted = answering(fixture("openai/input_tokens.json")).responses.input_tokens.count(model="m", input="x")

    assert (compacted.usage.total_tokens, counted.input_tokens) == (577, 11)
