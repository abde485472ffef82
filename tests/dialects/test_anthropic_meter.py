"""What an answer used, from recorded streams: the same counts however they arrive, and those that the SDK reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.call import Endpoint, Outcome, Quantity, Usage, UsageSource
from relay.dialects.anthropic import Anthropic
from tests.dialects.anthropic_sdk import sdk
from tests.dialects.case import metered, outcome_of, whole_outcome
from tests.providers.case import FIXTURES, fixture

DIALECT = Anthropic()
MESSAGES = Endpoint("messages", "anthropic")
MODEL = "claude-sonnet-5-5-20260901"
PROVIDER, PARTIAL = UsageSource.PROVIDER, UsageSource.PARTIAL
STREAMS = sorted(path.name for path in (FIXTURES / "anthropic").glob("*.sse"))


def outcome(name: str) -> Outcome:
    return outcome_of(DIALECT, MESSAGES, f"anthropic/{name}")


def counts(usage: Usage) -> tuple[int | None, ...]:
    """Input, cache read, cache write 5 m and 1 h, output."""
    return (
        usage.input_tokens,
        usage.cache_read_input_tokens,
        usage.cache_creation_5m_input_tokens,
        usage.cache_creation_1h_input_tokens,
        usage.output_tokens,
    )


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("text.sse", PROVIDER, (25, 0, 0, 0, 21)),
        ("crlf.sse", PROVIDER, (25, 0, 0, 0, 21)),
        ("unnamed.sse", PROVIDER, (25, 0, 0, 0, 21)),
        ("tight.sse", PROVIDER, (25, 0, 0, 0, 21)),
        ("pretty.sse", PROVIDER, (25, 0, 0, 0, 21)),
        ("tools.sse", PROVIDER, (472, 0, 0, 0, 89)),
        # BerriAI/litellm#9812, envoyproxy/ai-gateway#2290, maximhq/bifrost#5354: fields in one event, the other, both
        ("cache_in_start.sse", PROVIDER, (12, 9000, 300, 40, 15)),
        ("cache_in_delta.sse", PROVIDER, (12, 9000, None, None, 15)),
        ("cache_grows.sse", PROVIDER, (20, 18000, 0, 140, 15)),
        ("delta_reports_zero.sse", PROVIDER, (9312, 0, 0, 0, 15)),
        ("delta_reports_null.sse", PROVIDER, (12, 9000, 0, 0, 15)),
        ("fast_in_the_us.sse", PROVIDER, (1000, 0, 0, 0, 100)),
        # cut: what the provider reported stays, 7 x 12 bytes of text are 21 tokens, never the placeholder
        ("cut.sse", PARTIAL, (2000, 500, 0, 0, 21)),
        ("cut_before_content.sse", PARTIAL, (2000, 0, 0, 0, 0)),
        ("cut_after_the_count.sse", PROVIDER, (25, 0, 0, 0, 15)),
        ("error_after_content.sse", PARTIAL, (40, 0, 0, 0, 4)),
        ("error_first.sse", UsageSource.NONE, (None, None, None, None, None)),
        ("no_usage.sse", UsageSource.ESTIMATED, (None, None, None, None, 4)),
    ],
)
def test_a_stream_is_counted(name: str, source: UsageSource, expected: tuple[int | None, ...]) -> None:
    found = outcome(name)
    assert (found.source, counts(found.usage)) == (source, expected)


def test_names_and_the_usage_objects_are_kept_as_they_came() -> None:
    found = outcome("cache_in_start.sse")
    assert (found.response_model, found.response_id, found.terminal) == (MODEL, "msg_01XFDUDYJgAACzvnptvVoYEL", True)
    sent = [
        json.loads(line[6:]) for line in fixture("anthropic/cache_in_start.sse").split(b"\n") if line[:5] == b"data:"
    ]
    assert json.loads(found.usage.raw) == {
        "message_start": sent[0]["message"]["usage"],
        "message_delta": sent[-2]["usage"],
    }
    assert b'"cache_creation":{"ephemeral_5m_input_tokens":300,' in found.usage.raw


def test_thinking_is_a_part_of_the_output() -> None:
    usage = outcome("thinking.sse").usage
    assert (usage.output_tokens, usage.reasoning_tokens) == (310, 295)


def test_compaction_and_advisor_are_billed_beside_the_totals() -> None:
    usage = outcome("compaction_advisor.sse").usage
    assert counts(usage) == (45, 100, 0, 0, 12)
    assert usage.extra == (
        Quantity("input_tokens", 180000, "", 1),
        Quantity("cache_creation_1h_input_tokens", 7, "", 1),
        Quantity("output_tokens", 3500, "", 1),
        Quantity("input_tokens", 823, "claude-opus-5-5", 2),
        Quantity("cache_read_input_tokens", 50, "claude-opus-5-5", 2),
        Quantity("output_tokens", 1612, "claude-opus-5-5", 2),
    )
    assert usage.longest_prompt == 122


def test_a_fallback_is_billed_as_the_model_that_answered_and_the_declined_run_as_its_own() -> None:
    found = outcome("fallback.sse")
    assert (found.response_model, counts(found.usage)) == ("claude-opus-4-8", (110, 0, 0, 0, 9))
    assert found.usage.extra == (
        Quantity("input_tokens", 106, "claude-fable-5-2", 1),
        Quantity("output_tokens", 4, "claude-fable-5-2", 1),
    )
    assert found.usage.flags == ("fallback",)


def test_searches_are_counted_and_fetches_cost_nothing() -> None:
    assert outcome("web_search.sse").usage.extra == (Quantity("web_searches", 2),)


def test_speed_and_place_come_from_the_first_event() -> None:
    usage = outcome("fast_in_the_us.sse").usage
    assert (usage.service_tier, usage.speed, usage.geo) == ("standard", "fast", "us")


def test_a_refusal_before_any_output_is_marked() -> None:
    assert outcome("refusal.sse").usage.flags == ("refused_without_output",)


@pytest.mark.parametrize(
    ("name", "error", "terminal", "content"),
    [
        ("text.sse", "", True, True),
        ("cut.sse", "", False, True),
        ("cut_before_content.sse", "", False, False),
        ("error_first.sse", "rate_limit_error", True, False),
        ("error_after_content.sse", "overloaded_error", True, True),
    ],
)
def test_how_a_stream_ended(name: str, error: str, terminal: bool, content: bool) -> None:
    meter, _, _ = metered(DIALECT, MESSAGES, [fixture(f"anthropic/{name}")])
    assert (meter.error, meter.terminal, meter.content_seen) == (error, terminal, content)
    if error:
        assert json.loads(meter.error_body)["error"]["type"] == error


def test_the_last_bytes_begin_with_the_terminal_event() -> None:
    for name in ("text.sse", "crlf.sse", "tight.sse", "error_after_content.sse"):
        stream = fixture(f"anthropic/{name}")
        held = metered(DIALECT, MESSAGES, [stream])[2]
        last = stream[held:].replace(b"\r\n", b"\n")
        assert last.startswith((b"event: message_stop", b"event:message_stop", b"event: error"))


def test_what_came_between_a_count_on_the_way_and_an_error_is_estimated() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}
    count = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * 4000}}
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    meter = DIALECT.meter(MESSAGES)
    for event in (start, count, text, error):
        meter.feed(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    assert (meter.outcome().usage.output_tokens, meter.outcome().source) == (1005, PARTIAL)


# --- whole answers ----------------------------------------------------------------------------------


def whole(name: str) -> Outcome:
    return whole_outcome(DIALECT, MESSAGES, fixture(f"anthropic/{name}"))


def test_a_whole_answer_is_counted() -> None:
    found = whole("message.json")
    assert (found.source, counts(found.usage)) == (PROVIDER, (10, 7, 3, 2, 6))
    assert (found.usage.reasoning_tokens, found.usage.extra) == (2, (Quantity("web_searches", 1),))
    assert (found.response_model, found.response_id) == (MODEL, "msg_01")
    assert found.usage.raw in fixture("anthropic/message.json")


def test_a_whole_answer_without_usage_is_estimated() -> None:
    found = whole("message_without_usage.json")
    assert (found.source, found.usage.output_tokens, found.usage.flags) == (UsageSource.ESTIMATED, 5, ("no_usage",))


def test_cache_writes_without_a_split_are_of_five_minutes() -> None:
    assert counts(whole("message_of_a_small_server.json").usage) == (10, None, 5, None, 6)


def test_what_can_not_be_read_is_marked_and_counts_as_nothing() -> None:
    found = whole("message_of_a_bad_server.json")
    assert counts(found.usage) == (None, None, None, None, 6)
    assert found.usage.extra == (Quantity("code_execution_requests", 4),)
    assert set(found.usage.flags) == {
        "unreadable_input_tokens",
        "unreadable_cache_read_input_tokens",
        "unreadable_web_search_requests",
        "input_not_reported",
    }
    assert found.source is PARTIAL


def test_an_error_in_a_200_bills_nothing() -> None:
    found = whole("error_529.json")
    assert (found.source, found.usage, found.error) == (UsageSource.NONE, Usage(), "overloaded_error")


def test_a_stream_that_nobody_asked_for_is_counted_all_the_same() -> None:
    found = whole("text.sse")
    assert (found.source, counts(found.usage)) == (PROVIDER, (25, 0, 0, 0, 21))


def test_counting_tokens_bills_nothing() -> None:
    found = whole_outcome(DIALECT, Endpoint("count_tokens", "anthropic", metered=False), b'{"input_tokens":14}')
    assert (found.source, found.usage) == (UsageSource.NONE, Usage())


# --- the SDK ----------------------------------------------------------------------------------------


def same_counts(usage: Any, found: Usage) -> None:
    writes = (found.cache_creation_5m_input_tokens or 0) + (found.cache_creation_1h_input_tokens or 0)
    theirs = (usage.input_tokens, usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0)
    assert theirs == (found.input_tokens, found.cache_read_input_tokens or 0, writes)
    assert usage.output_tokens == found.output_tokens


@pytest.mark.parametrize(
    "name",
    [
        *("text.sse", "crlf.sse", "tools.sse", "thinking.sse", "web_search.sse", "compaction_advisor.sse"),
        *("cache_in_start.sse", "cache_in_delta.sse", "cache_grows.sse", "fallback.sse"),
        *("delta_reports_zero.sse", "delta_reports_null.sse"),
    ],
)
def test_the_sdk_reads_the_same_counts_from_a_stream(name: str) -> None:
    client = sdk(fixture(f"anthropic/{name}"), headers={"content-type": "text/event-stream"})
    with client.beta.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]) as stream:
        same_counts(stream.get_final_message().usage, outcome(name).usage)


def test_the_sdk_reads_the_same_counts_from_a_whole_answer() -> None:
    client = sdk(fixture("anthropic/message.json"))
    message = client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
    same_counts(message.usage, whole("message.json").usage)


# --- garbage ----------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
FIELDS = ["input_tokens", "output_tokens", "cache_creation", "cache_creation_input_tokens", "iterations", "speed"]
RUN = st.dictionaries(
    st.sampled_from(["type", "model", "input_tokens", "output_tokens"]),
    st.sampled_from(["message", "fallback_message", "compaction"]) | JUNK,
)
ODD_USAGE = st.dictionaries(
    st.sampled_from([*FIELDS, "server_tool_use", "output_tokens_details"]), st.lists(RUN, max_size=3) | JUNK, max_size=5
)


@given(st.sampled_from(STREAMS), st.data())
def test_bytes_changed_anywhere_never_raise(name: str, data: st.DataObject) -> None:
    stream = bytearray(fixture(f"anthropic/{name}"))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    meter, passed, _ = metered(DIALECT, MESSAGES, [bytes(stream)])
    assert passed == bytes(stream)
    meter.outcome()
    whole_outcome(DIALECT, MESSAGES, bytes(stream))


@given(ODD_USAGE, ODD_USAGE)
def test_any_usage_object_gives_counts_that_are_none_or_not_negative(first: Any, last: Any) -> None:
    start = {"type": "message_start", "message": {"model": 7, "id": None, "usage": first}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": last}
    events = [f"event: {item['type']}\ndata: {json.dumps(item)}\n\n".encode() for item in (start, delta)]
    usage = metered(DIALECT, MESSAGES, events)[0].outcome().usage
    assert all(count is None or 0 <= count <= 10**9 for count in (*counts(usage), usage.reasoning_tokens))
    assert all(item.quantity > 0 for item in usage.extra)


@given(st.binary(max_size=200))
def test_no_bytes_raise(junk: bytes) -> None:
    assert metered(DIALECT, MESSAGES, [junk])[1] == junk
    whole_outcome(DIALECT, MESSAGES, junk)
