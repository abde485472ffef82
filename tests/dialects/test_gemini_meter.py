"""What Gemini's answers used: streams of events, arrays and whole answers, cut anywhere."""

from __future__ import annotations

import pytest

from relay.call import Endpoint, Outcome, Quantity, UsageSource
from relay.dialects.gemini import Gemini
from relay.dialects.gemini_array import GeminiFramer
from relay.dialects.gemini_meter import GeminiMeter
from tests.dialects.case import metered, outcome_of, whole_outcome
from tests.providers.case import fixture

DIALECT = Gemini()
GENERATE = Endpoint("generate_content", "gemini")
COUNT = Endpoint("count_tokens", "gemini", metered=False)


def folded(name: str, *, endpoint: Endpoint = GENERATE) -> Outcome:
    return outcome_of(DIALECT, endpoint, f"gemini/{name}", framing=GeminiFramer)


def whole(name: str, *, endpoint: Endpoint = GENERATE) -> Outcome:
    return whole_outcome(DIALECT, endpoint, fixture(f"gemini/{name}"))


def held(name: str) -> bytes:
    """What waits for the record when the stream has come in one piece."""
    stream = fixture(f"gemini/{name}")
    _, passed, cut = metered(DIALECT, GENERATE, [stream], framing=GeminiFramer)
    assert passed == stream
    return stream[cut:] if cut >= 0 else b""


@pytest.mark.parametrize("name", ["text.sse", "lf.sse", "text.json", "tight.json"])
def test_events_and_arrays_count_the_same(name: str) -> None:
    outcome = folded(name)
    usage = outcome.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (12, None, 10)
    assert (outcome.source, outcome.terminal, usage.flags) == (UsageSource.PROVIDER, True, ())
    assert (outcome.response_model, outcome.response_id) == ("gemini-3.1-pro-preview", "Xw8laf_rCbOAkdUPyqzAiQk")
    assert b'"promptTokenCount": 12' in usage.raw


@pytest.mark.parametrize(("name", "last"), [("text.sse", b"data: "), ("text.json", b"]\n"), ("tight.json", b"]")])
def test_the_last_bytes_wait_for_the_record(name: str, last: bytes) -> None:
    assert held(name).startswith(last)
    assert b"lo a" not in held(name)


def test_thoughts_are_output() -> None:
    usage = folded("thinking.sse").usage
    assert (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens, usage.flags) == (20, 533, 382, ())


def test_what_came_from_a_cache_is_no_plain_input_and_modalities_are_parts() -> None:
    usage = folded("cached_audio.sse").usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (125, 2027, 88)
    assert usage.extra == (
        Quantity("audio_input_tokens", 100, within="input_tokens"),
        Quantity("audio_cache_read_input_tokens", 1900, within="cache_read_input_tokens"),
    )


def test_tool_use_is_input_and_each_search_a_line() -> None:
    usage = folded("grounded.sse").usage
    assert (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens, usage.flags) == (110, 80, 50, ())
    assert usage.extra == (Quantity("web_searches", 2),)


def test_before_gemini_3_a_grounded_prompt_is_one_line() -> None:
    assert folded("grounded_2_5.sse").usage.extra == (Quantity("web_searches", 1),)


def test_maps_are_a_line() -> None:
    assert folded("maps.sse").usage.extra == (Quantity("maps_searches", 1),)


def test_a_blocked_prompt_ends_the_stream_and_is_billed() -> None:
    outcome = folded("blocked.sse")
    assert (outcome.terminal, outcome.source, outcome.usage.input_tokens) == (True, UsageSource.PROVIDER, 31)
    assert outcome.usage.output_tokens == 0


def test_a_stop_in_every_event_is_no_end_but_the_last() -> None:
    outcome = folded("stop_in_every_event.sse")
    assert (outcome.source, outcome.usage.output_tokens) == (UsageSource.PROVIDER, 3)
    meter = DIALECT.meter(GENERATE)
    events = fixture("gemini/stop_in_every_event.sse").split(b"\r\n\r\n")[:-1]
    assert [meter.feed(event + b"\r\n\r\n") for event in events] == [0, 0, 0]
    assert meter.linger


def test_counts_after_the_end_are_counted() -> None:
    outcome = folded("counts_after_the_end.sse")
    assert (outcome.source, outcome.usage.input_tokens, outcome.usage.output_tokens) == (UsageSource.PROVIDER, 4, 3)
    assert outcome.usage.service_tier == ""


def test_of_several_answers_the_last_end_counts() -> None:
    stream = fixture("gemini/two_candidates.sse")
    assert held("two_candidates.sse") == stream[stream.rindex(b"data: ") :]
    assert folded("two_candidates.sse").usage.output_tokens == 8


@pytest.mark.parametrize("name", ["cut.sse", "cut.json"])
def test_a_cut_stream_keeps_what_was_reported(name: str) -> None:
    outcome = folded(name)
    assert (outcome.source, outcome.terminal) == (UsageSource.PARTIAL, False)
    assert outcome.usage.input_tokens == 12 and outcome.usage.output_tokens in (1, 9)


def test_output_that_was_never_reported_is_estimated() -> None:
    outcome = folded("cut_without_counts.sse")
    assert (outcome.source, outcome.usage.output_tokens) == (UsageSource.ESTIMATED, 10)


def test_an_estimate_has_the_tier_that_was_asked() -> None:
    meter = GeminiMeter(metered=True, tier="priority")
    meter.feed(b'data: {"candidates":[{"content":{"parts":[{"text":"12345678"}]}}]}\n\n')
    outcome = meter.outcome()
    assert (outcome.source, outcome.usage.output_tokens, outcome.usage.service_tier) == (
        UsageSource.ESTIMATED,
        2,
        "priority",
    )


def test_text_behind_the_last_count_is_added() -> None:
    meter = DIALECT.meter(GENERATE)
    meter.feed(fixture("gemini/text.sse").split(b"\r\n\r\n")[0] + b"\r\n\r\n")
    meter.feed(b'data: {"candidates":[{"content":{"parts":[{"text":"12345678"}]}}]}\n\n')
    outcome = meter.outcome()
    assert (outcome.source, outcome.usage.output_tokens) == (UsageSource.PARTIAL, 1 + 2)


def test_tool_arguments_are_output_too() -> None:
    outcome = folded("tools.sse")
    assert (outcome.source, outcome.usage.output_tokens, outcome.usage.reasoning_tokens) == (
        UsageSource.PROVIDER,
        40,
        25,
    )


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("error_after_content.sse", 1),
        ("error_event_after_content.sse", 1),
        ("error_after_content.json", 1),
        ("error_first.sse", None),
        ("error_first.json", None),
        ("error_plain.sse", None),
    ],
)
def test_an_error_inside_the_stream_is_told(name: str, output: int | None) -> None:
    outcome = folded(name)
    assert (outcome.error, outcome.usage.output_tokens) == ("UNAVAILABLE", output)
    assert outcome.source == (UsageSource.PARTIAL if output else UsageSource.NONE)
    meter, _, _ = metered(DIALECT, GENERATE, [fixture(f"gemini/{name}")], framing=GeminiFramer)
    assert b"overloaded" in meter.error_body and meter.error_message.startswith("The model is overloaded")
    assert DIALECT.in_band_status(meter.error) == 503


@pytest.mark.parametrize(
    ("status", "code"), [("RESOURCE_EXHAUSTED", 429), ("INVALID_ARGUMENT", 400), ("429", 429), ("ODD", 500)]
)
def test_the_status_of_an_error_inside_a_stream(status: str, code: int) -> None:
    assert DIALECT.in_band_status(status) == code


def test_a_whole_answer_is_counted() -> None:
    outcome = whole("message.json")
    usage = outcome.usage
    assert (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens) == (7, 22, 20)
    assert (outcome.source, outcome.response_model) == (UsageSource.PROVIDER, "gemini-3.1-pro-preview")


def test_images_are_parts_of_input_and_output() -> None:
    assert whole("image.json").usage.extra == (
        Quantity("image_input_tokens", 258, within="input_tokens"),
        Quantity("image_output_tokens", 1290, within="output_tokens"),
    )


def test_an_answer_without_counts_is_estimated_and_says_so() -> None:
    outcome = whole("message_without_usage.json")
    assert (outcome.source, outcome.usage.output_tokens, outcome.usage.flags) == (
        UsageSource.ESTIMATED,
        3,
        ("no_usage",),
    )


def test_embeddings_have_input_only() -> None:
    outcome = whole("embeddings.json", endpoint=Endpoint("batch_embed_contents", "gemini"))
    assert (outcome.source, outcome.usage.input_tokens, outcome.usage.output_tokens) == (UsageSource.PROVIDER, 9, 0)


def test_embeddings_without_counts_are_estimated() -> None:
    outcome = whole("embeddings_without_usage.json", endpoint=Endpoint("embed_content", "gemini"))
    assert (outcome.source, outcome.usage.input_tokens, outcome.usage.output_tokens) == (
        UsageSource.ESTIMATED,
        None,
        0,
    )


def test_counting_is_free() -> None:
    outcome = whole("count_tokens.json", endpoint=COUNT)
    assert (outcome.source, outcome.usage.input_tokens, outcome.error) == (UsageSource.NONE, None, "")


@pytest.mark.parametrize(
    ("said", "tier"),
    [
        (b'"trafficType":"ON_DEMAND"', ""),
        (b'"trafficType":"ON_DEMAND_PRIORITY"', "priority"),
        (b'"trafficType":"PROVISIONED_THROUGHPUT"', "provisioned_throughput"),
        (b'"serviceTier":"flex"', "flex"),
        (b'"x":1', "priority"),
    ],
)
def test_the_tier_is_what_the_answer_says_else_what_was_asked(said: bytes, tier: str) -> None:
    meter = GeminiMeter(metered=True, tier="priority" if tier == "priority" else "")
    meter.whole(b'{"usageMetadata":{"promptTokenCount":1,%b}}' % said)
    assert meter.outcome().usage.service_tier == tier


def test_priority_that_was_served_on_demand_is_the_plain_price() -> None:
    meter = GeminiMeter(metered=True, tier="priority")
    for chunk in (b'"promptTokenCount":1', b'"promptTokenCount":1,"trafficType":"ON_DEMAND"', b'"promptTokenCount":1'):
        meter.feed(b'data: {"usageMetadata":{%b}}\n\n' % chunk)
    assert meter.outcome().usage.service_tier == ""


@pytest.mark.parametrize(
    ("counts", "flags"),
    [
        (b'"promptTokenCount":5,"cachedContentTokenCount":9,"totalTokenCount":5', ("cached_exceeds_input",)),
        (b'"promptTokenCount":5,"candidatesTokenCount":1,"totalTokenCount":9', ("usage_mismatch",)),
    ],
)
def test_what_does_not_add_up_is_flagged(counts: bytes, flags: tuple[str, ...]) -> None:
    meter = DIALECT.meter(GENERATE)
    meter.whole(b'{"usageMetadata":{%b}}' % counts)
    assert meter.outcome().usage.flags == flags


@pytest.mark.parametrize(
    "data",
    [b"[1]", b"{", b'"x"', b'{"candidates":5}', b'{"candidates":[null]}', b'{"usageMetadata":[]}', b'{"error":null}'],
)
def test_what_can_not_be_read_counts_as_nothing(data: bytes) -> None:
    meter = DIALECT.meter(GENERATE)
    assert meter.feed(b"data: " + data + b"\n\n") == -1
    assert (meter.outcome().source, meter.error) == (UsageSource.NONE, "")
