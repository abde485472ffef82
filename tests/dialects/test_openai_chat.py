"""Chat Completions and Embeddings: requests, counts, errors, as the official SDK takes them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from relay.call import Endpoint, Envelope, Outcome, Quantity, UsageSource
from relay.dialects.openai_chat import OpenAIChat, asks_for_usage, with_usage
from relay.dialects.openai_meter import without_usage_chunk
from relay.errors import (
    InvalidRequest,
    UpstreamTimeout,
)
from tests.dialects.case import outcome_of, whole_outcome
from tests.openai_sdk import answering
from tests.providers.case import fixture

DIALECT = OpenAIChat()
CHAT = Endpoint("chat_completions", "openai_chat")
HI: list[Any] = [{"role": "user", "content": "Hi"}]


def body_of(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-5.6-luna", "messages": HI, **fields}).encode()


def bounds_of(body: bytes) -> Envelope:
    return DIALECT.bounded(body, DIALECT.read_envelope(body, headers={}))


def folded(name: str) -> Outcome:
    return outcome_of(DIALECT, CHAT, name)


def whole(name: str) -> Outcome:
    return whole_outcome(DIALECT, CHAT, fixture(name))


# -- the envelope --------------------------------------------------------------------------------------


def test_it_reads_model_stream_maximum_and_user() -> None:
    envelope = DIALECT.read_envelope(
        body_of(stream=True, max_completion_tokens=50, n=3, user="u1", stream_options=None), headers={}
    )

    assert (envelope.model, envelope.stream, envelope.end_user) == ("gpt-5.6-luna", True, "u1")
    assert (envelope.max_output_tokens, envelope.answers) == (50, 3)


def test_it_takes_the_path_for_the_model_where_azure_clients_name_it() -> None:
    assert DIALECT.read_envelope(b'{"messages":[]}', headers={}, path_model="prod-1").model == "prod-1"


@pytest.mark.parametrize(
    "body, field",
    [
        (b"{}", "model"),
        (b'{"model":null}', "model"),
        (b'{"model":5}', "model"),
        (b'{"model":" "}', "model"),
        (b'{"model":"m","stream":"yes"}', "stream"),
        (b'{"model":"m","max_tokens":"7"}', "max_tokens"),
        (b'{"model":"m","max_tokens":-7}', "max_tokens"),
        (b'{"model":"m","n":1.5}', "n"),
    ],
)
def test_it_names_the_field_that_can_not_be_read(body: bytes, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        DIALECT.read_envelope(body, headers={})

    assert json.loads(DIALECT.render_error(caught.value, "id").body)["error"]["param"] == field


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"model":"m"', b"\xff"])
def test_it_refuses_a_body_that_is_no_json_object(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        DIALECT.read_envelope(body, headers={})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "video_url", "video_url": {"url": "https://x"}},
        {"text": "a part without a type"},
    ],
)
def test_what_is_no_text_is_not_bounded_by_the_body(part: dict[str, Any]) -> None:
    body = body_of(messages=[{"role": "user", "content": [{"type": "text", "text": "see"}, part]}])

    assert not bounds_of(body).inline_text


def test_texts_that_speak_of_images_are_still_text() -> None:
    parts = [{"type": "text", "text": '{"type": "image_url"}'}, {"type": "refusal", "refusal": "no"}]

    assert bounds_of(body_of(messages=[{"role": "assistant", "content": parts}])).inline_text


def test_an_earlier_answers_audio_is_not_in_the_body() -> None:
    body = body_of(messages=[{"role": "assistant", "audio": {"id": "audio_1"}}])

    assert not bounds_of(body).inline_text


@pytest.mark.parametrize(
    "fields, unbounded",
    [
        ({}, ()),
        ({"prediction": {"type": "content", "content": "x"}}, ("prediction",)),
        ({"web_search_options": {}}, ("web_search_options",)),
    ],
)
def test_it_names_what_can_not_be_bounded(fields: dict[str, Any], unbounded: tuple[str, ...]) -> None:
    assert bounds_of(body_of(**fields)).unbounded == unbounded


@pytest.mark.parametrize(
    "given, want",
    [
        ("Hi", True),
        (["a", "b"], True),
        ([1, 2], True),
        ([[1], [2]], True),
        ([{"image": "https://x"}], False),
    ],
)
def test_an_embedding_puts_out_nothing(given: object, want: bool) -> None:
    envelope = bounds_of(json.dumps({"model": "text-embedding-3-small", "input": given}).encode())

    assert (envelope.max_output_tokens, envelope.inline_text) == (0, want)


def test_an_input_beside_messages_hides_no_output() -> None:
    assert DIALECT.read_envelope(body_of(input="x"), headers={}).max_output_tokens is None


@pytest.mark.parametrize("name", [b"x-session-id", b"session_id", b"session-id"])
def test_a_session_header_names_the_conversation(name: bytes) -> None:
    first = DIALECT.read_envelope(body_of(prompt_cache_key="a"), headers={name: b"s1"})
    later = DIALECT.read_envelope(body_of(messages=[{"role": "user", "content": "Other"}]), headers={name: b"s1"})

    assert first.affinity == later.affinity != ""
    assert first.session == "s1"


def test_the_same_conversation_keeps_its_name_as_it_grows() -> None:
    system = {"role": "system", "content": "You are terse."}
    grown = [system, *HI, {"role": "assistant", "content": "Hello"}, *HI]

    def named(**fields: Any) -> str:
        return DIALECT.read_envelope(body_of(**fields), headers={}).affinity

    assert named(messages=[system, *HI]) == named(messages=grown)
    assert named(messages=HI) == named(messages=[*HI, *grown[2:]])
    assert named(prompt_cache_key="k", messages=HI) == named(prompt_cache_key="k", messages=grown)
    assert len({named(messages=HI), named(messages=grown), named(prompt_cache_key="k")}) == 3


def test_a_named_tier_rules_the_dearer_ones_out() -> None:
    assert "priority" not in bounds_of(body_of()).ruled_out
    assert "priority" in bounds_of(body_of(service_tier="default")).ruled_out


@pytest.mark.parametrize(
    "fields, possible",
    [
        ({}, set()),
        ({"modalities": ["text", "audio"], "audio": {"voice": "alloy"}}, {"audio_output_tokens"}),
        ({"prompt_cache_options": {"ttl": "12h"}}, {"cache_creation_12h_input_tokens"}),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            {"audio_input_tokens", "audio_cache_read_input_tokens"},
        ),
    ],
)
def test_what_a_body_can_not_use_is_no_part_of_its_bound(fields: dict[str, Any], possible: set[str]) -> None:
    special = {"audio_output_tokens", "cache_creation_12h_input_tokens", "audio_input_tokens"}

    assert possible & set(bounds_of(body_of(**fields)).ruled_out) == set()
    assert special - possible <= set(bounds_of(body_of(**fields)).ruled_out)


# -- counting ------------------------------------------------------------------------------------------


def test_cached_and_written_tokens_come_out_of_the_input() -> None:
    outcome = folded("openai/chat_stream.sse")
    usage = outcome.usage

    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (48, 1024, 57)
    assert usage.reasoning_tokens == 32
    assert usage.extra == (Quantity("cache_creation_30m_input_tokens", 128),)
    assert usage.flags == ()
    assert json.loads(usage.raw)["prompt_tokens"] == 1200
    assert (outcome.source, outcome.terminal, outcome.error) == (UsageSource.PROVIDER, True, "")
    assert (outcome.response_model, outcome.response_id) == ("gpt-5.6-luna-2026-07-30", "chatcmpl-CX1yQ8")
    assert usage.service_tier == "default"


def test_audio_is_counted_apart() -> None:
    usage = whole("openai/chat_audio.json").usage

    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (100, 100, 20)
    assert usage.extra == (Quantity("audio_input_tokens", 300), Quantity("audio_output_tokens", 70))
    assert usage.service_tier == "priority"


def test_an_embedding_reports_its_input() -> None:
    outcome = whole("openai/embeddings.json")

    assert (outcome.usage.input_tokens, outcome.usage.output_tokens, outcome.source) == (8, None, UsageSource.PROVIDER)


@pytest.mark.parametrize(
    "usage, flags",
    [
        ({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 11}}, ("cached_exceeds_input",)),
        (
            {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 8}},
            ("cached_exceeds_input",),
        ),
        (
            {"completion_tokens": 1, "completion_tokens_details": {"audio_tokens": 2}, "prompt_tokens": 1},
            ("audio_exceeds_output",),
        ),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 16}, ("usage_mismatch",)),
        (
            {"completion_tokens": 151, "completion_tokens_details": {"reasoning_tokens": 382}, "prompt_tokens": 20},
            ("reasoning_exceeds_output",),
        ),
    ],
)
def test_counts_that_do_not_add_up_are_flagged_and_never_negative(
    usage: dict[str, Any], flags: tuple[str, ...]
) -> None:
    meter = DIALECT.meter(CHAT)
    meter.whole(json.dumps({"id": "x", "choices": [], "usage": usage}).encode())
    counted = meter.outcome().usage

    assert counted.flags == flags
    assert all(count is None or count >= 0 for count in (counted.input_tokens, counted.output_tokens))
    assert (counted.reasoning_tokens or 0) <= (counted.output_tokens or 0)


def test_whole_floats_are_counts() -> None:
    usage = whole_outcome(DIALECT, CHAT, b'{"usage":{"prompt_tokens":1000.0,"completion_tokens":1e2}}').usage

    assert (usage.input_tokens, usage.output_tokens, usage.flags) == (1000, 100, ())


def test_a_count_that_can_not_be_read_is_flagged() -> None:
    usage = whole_outcome(DIALECT, CHAT, b'{"usage":{"prompt_tokens":1.5,"completion_tokens":"9"}}').usage

    assert usage.flags == ("unreadable_prompt_tokens", "unreadable_completion_tokens")


@pytest.mark.parametrize(
    ("body", "output"),
    [
        (b'{"object":"list","data":[{"embedding":[0.1]}],"model":"m"}', None),
        (b'{"choices":[{"message":{"content":"12345678"}}],"usage":null}', 2),
        (b'data: {"choices":[{"delta":{"content":"12345678"}}]}\n\ndata: [DONE]\n\n', 2),
    ],
)
def test_an_answer_without_usage_is_estimated_and_says_so(body: bytes, output: int | None) -> None:
    outcome = whole_outcome(DIALECT, CHAT, body)

    assert (outcome.source, outcome.usage.output_tokens) == (UsageSource.ESTIMATED, output)
    assert outcome.usage.flags == ("no_usage",)


def test_a_stream_that_nobody_asked_for_is_counted_all_the_same() -> None:
    outcome = whole_outcome(DIALECT, CHAT, fixture("openai/chat_stream.sse"))

    assert outcome == folded("openai/chat_stream.sse")


def test_a_body_that_says_nothing_is_marked_and_counts_as_nothing() -> None:
    outcome = whole_outcome(DIALECT, CHAT, b"<html>")

    assert (outcome.source, outcome.usage.flags) == (UsageSource.NONE, ("unreadable_answer",))


def test_a_cut_stream_is_estimated_from_its_text() -> None:
    outcome = folded("openai/chat_cut.sse")

    # "Twelve bytes" + " and more é": 12 + 12 bytes
    assert (outcome.usage.output_tokens, outcome.usage.input_tokens) == (6, None)
    assert (outcome.source, outcome.terminal) == (UsageSource.ESTIMATED, False)


def test_tool_arguments_count_as_text() -> None:
    stream = fixture("openai/chat_tools.sse")
    meter = DIALECT.meter(CHAT)
    meter.feed(stream[: stream.index(b'"usage":{')].rpartition(b"data: ")[0])

    # "weather" + '{"city":' + '"Oslo"}' = 22 bytes
    assert (meter.outcome().usage.output_tokens, meter.content_seen) == (6, True)


def test_a_role_alone_is_no_content() -> None:
    meter = DIALECT.meter(CHAT)
    meter.feed(fixture("openai/chat_stream.sse").partition(b"\n\n")[0] + b"\n\n")

    assert not meter.content_seen
    assert meter.outcome().source is UsageSource.NONE


def test_an_error_chunk_ends_the_stream_without_done() -> None:
    stream = fixture("openai/chat_error.sse")
    meter = DIALECT.meter(CHAT)

    assert meter.feed(stream) == stream.index(b'data: {"error"')
    assert (meter.error, meter.terminal) == ("server_error", True)
    assert "had an error" in meter.error_message
    assert json.loads(meter.error_body)["error"]["type"] == "server_error"
    assert meter.outcome().source is UsageSource.ESTIMATED


def test_the_end_begins_at_done() -> None:
    stream = fixture("openai/chat_stream.sse")

    assert DIALECT.meter(CHAT).feed(stream) == stream.index(b"data: [DONE]")


def test_counts_on_the_way_are_partial_until_the_end() -> None:
    """vLLM's `continuous_usage_stats`: each chunk carries the usage so far; the last one wins."""
    meter = DIALECT.meter(CHAT)
    for text, done in (("a", 1), ("b", 2)):
        chunk = {"choices": [{"delta": {"content": text}}], "usage": {"prompt_tokens": 9, "completion_tokens": done}}
        meter.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    assert (meter.outcome().usage.output_tokens, meter.outcome().source) == (2, UsageSource.PARTIAL)
    meter.feed(b"data: [DONE]\n\n")
    assert meter.outcome().source is UsageSource.PROVIDER


@pytest.mark.parametrize("choices", [[{"delta": {"role": "assistant", "content": ""}}], []])
@pytest.mark.parametrize("reported", [0, 5])
def test_text_behind_the_last_count_is_added_where_the_stream_is_cut(choices: list[Any], reported: int) -> None:
    early = {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": reported}}
    text = {"choices": [{"delta": {"content": "x" * 4000}}]}
    meter = DIALECT.meter(CHAT)
    for chunk in (early, text):
        meter.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    assert (meter.outcome().usage.output_tokens, meter.outcome().source) == (reported + 1000, UsageSource.PARTIAL)
    meter.feed(b"data: [DONE]\n\n")
    assert (meter.outcome().usage.output_tokens, meter.outcome().source) == (reported, UsageSource.PROVIDER)


@pytest.mark.parametrize(
    "data",
    [
        b"data: not json\n\n",
        b'data: {"choices":{}}\n\n',
        b'data: {"choices":[null]}\n\n',
        b'data: {"choices":[{"delta":{"content":5,"tool_calls":null}}],"usage":"x"}\n\n',
        b'data: {"usage":[1],"error":null}\n\n',
        b"data: \xff\n\n",
        b"data: 5\n\n",
        b"\xff\xfe",
    ],
)
def test_what_can_not_be_read_counts_as_nothing(data: bytes) -> None:
    meter = DIALECT.meter(CHAT)

    assert meter.feed(data) == -1
    assert meter.outcome().source is UsageSource.NONE


# -- the usage chunk that only Baton asked for -----------------------------------------------------------


@pytest.mark.parametrize(
    "options, want",
    [
        (None, b'{"include_usage":true}'),
        ({"include_usage": False}, b'{"include_usage":true}'),
        ({"include_obfuscation": False}, b'{"include_obfuscation":false,"include_usage":true}'),
    ],
)
def test_it_asks_for_usage_where_the_client_did_not(options: object, want: bytes) -> None:
    body = b'{"model":"m","temperature":1.00,"stream":true,"stream_options":' + json.dumps(options).encode() + b"}"

    assert with_usage(body) == b'{"model":"m","temperature":1.00,"stream":true,"stream_options":' + want + b"}"
    assert asks_for_usage(with_usage(body))


def test_it_leaves_a_body_alone_that_asks() -> None:
    body = b'{ "stream": true, "stream_options": {"include_usage": true} }'

    assert with_usage(body) is body


def test_only_the_usage_chunk_is_hidden() -> None:
    stream = fixture("openai/chat_stream.sse")
    shown = without_usage_chunk(stream)

    assert (
        shown
        == b"".join(part for part in stream.split(b"\n\n") if b'"choices":[]' not in part for part in (part, b"\n\n"))[
            :-2
        ]
    )
    assert without_usage_chunk(shown) == shown


def test_azures_filter_results_are_not_hidden() -> None:
    stream = fixture("azure_openai/chat_stream.sse")

    assert b"prompt_filter_results" in without_usage_chunk(stream)


def test_a_usage_in_the_last_content_chunk_is_not_hidden() -> None:
    stream = fixture("openai_compatible/chat_stream_crlf.sse")

    assert without_usage_chunk(stream) == stream


# -- streams, as the SDK takes them ----------------------------------------------------------------------


def test_the_sdk_reads_the_stream() -> None:
    chunks = list(
        answering(fixture("openai/chat_stream.sse"), stream=True).chat.completions.create(
            model="m", messages=HI, stream=True
        )
    )

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        "Grüße from\u2028Baton\u0085."
    )
    assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == 1200


def test_the_sdk_raises_on_the_event_that_ends_a_broken_stream() -> None:
    event = DIALECT.error_event(UpstreamTimeout("The upstream was silent for too long."), "id")
    stream = fixture("openai/chat_cut.sse") + event

    with pytest.raises(openai.APIError, match="silent for too long"):
        list(answering(stream, stream=True).chat.completions.create(model="m", messages=HI, stream=True))
    assert b"[DONE]" not in event
    assert DIALECT.meter(CHAT).feed(event) == 0


@pytest.mark.parametrize("event_id", [b"", b"id: 7\n"])
def test_the_sdk_skips_keep_alives_also_after_an_event_id(event_id: bytes) -> None:
    """openai-python#2722: a comment's own blank line is an empty event once an `id:` was seen."""
    stream = (event_id + fixture("openai/chat_stream.sse")).replace(b"\n\n", b"\n\n" + DIALECT.keep_alive)

    chunks = list(answering(stream, stream=True).chat.completions.create(model="m", messages=HI, stream=True))

    assert len(chunks) == 6
    meter = DIALECT.meter(CHAT)
    meter.feed(stream)
    assert meter.outcome().usage.output_tokens == 57
