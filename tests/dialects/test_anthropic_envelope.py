"""What Baton reads of a request in Anthropic's format, and that no request breaks it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.call import Envelope
from relay.dialects.anthropic import Anthropic
from relay.errors import InvalidRequest
from tests.providers.case import fixture

DIALECT = Anthropic()


def test_it_reads_model_stream_and_maximum() -> None:
    envelope = DIALECT.read_envelope(b'{"model":"claude-x","stream":true,"max_tokens":7}', headers={})
    assert (envelope.model, envelope.stream, envelope.max_output_tokens) == ("claude-x", True, 7)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "JSON"),
        (b"[]", "JSON object"),
        (b"{}", "model"),
        (b'{"model":3}', "model"),
        (b'{"model":""}', "model"),
        (b'{"model":"x","stream":"yes"}', "stream"),
        (b'{"model":"x","max_tokens":"7"}', "max_tokens"),
        (b'{"model":"x","max_tokens":-1}', "max_tokens"),
        (b'{"model":"x","max_tokens":true}', "max_tokens"),
        (b'{"model":"x","max_tokens":NaN}', "JSON"),
    ],
)
def test_it_names_what_is_wrong_with_a_body(body: bytes, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        DIALECT.read_envelope(body, headers={})


def test_a_field_that_stands_twice_is_rebuilt_once() -> None:
    body = b'{"model":"cheap", "max_tokens":1, "model":"dear"}'
    envelope = DIALECT.read_envelope(body, headers={})
    assert envelope.model == "dear"
    assert json.loads(DIALECT.canonical(body, envelope)) == {"model": "dear", "max_tokens": 1}


def test_a_body_without_repeats_goes_on_as_it_came() -> None:
    body = b'\n{ "max_tokens" : 1,\t"model":"x" }\r\n'
    assert DIALECT.canonical(body, DIALECT.read_envelope(body, headers={})) is body


# --- who calls, and in which conversation -----------------------------------------------------------

SESSION = "8e79c394-d04d-4d50-bd52-65c2297042a4"
NEW_ID = json.dumps({"device_id": "d1", "account_uuid": "", "session_id": SESSION})
OLD_ID = f"user_5a1b_account_1c2d_session_{SESSION}"


def envelope(*, headers: dict[bytes, bytes] | None = None, **fields: Any) -> Envelope:
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return DIALECT.read_envelope(json.dumps(body).encode(), headers=headers or {})


@pytest.mark.parametrize(
    ("user_id", "session", "end_user"),
    [
        (NEW_ID, SESSION, "d1"),
        (OLD_ID, SESSION, "5a1b"),
        ("customer-17", "", "customer-17"),
        ("{not json", "", "{not json"),
        ("[1]", "", "[1]"),
        ("{}", "", ""),
    ],
)
def test_session_and_user_are_read_in_both_forms(user_id: str, session: str, end_user: str) -> None:
    found = envelope(metadata={"user_id": user_id})
    assert (found.session, found.end_user) == (session, end_user)


@pytest.mark.parametrize("metadata", [None, [], "x", {"user_id": 7}, {"user_id": None}, {"user_id": "x" * 10_000}])
def test_odd_metadata_is_the_vendors_to_judge(metadata: Any) -> None:
    assert len(envelope(metadata=metadata).end_user) <= 200


def test_a_long_user_id_does_not_stop_everybody() -> None:
    """The pattern takes the square of its length; this one took hours."""
    long = "user_" + "_account_" * 400_000 + "!"

    assert envelope(metadata={"user_id": long}).end_user == long[:200]


@pytest.mark.parametrize("header", [b"x-session-id", b"session_id", b"session-id", b"x-claude-code-session-id"])
def test_a_session_header_goes_before_the_body(header: bytes) -> None:
    found = envelope(headers={header: b"s-1"}, metadata={"user_id": NEW_ID})
    assert (found.session, found.affinity) == ("s-1", envelope(headers={b"x-session-id": b"s-1"}).affinity)


CACHED = [{"type": "text", "text": "a"}, {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}]
FIRST = {"role": "user", "content": "What is it?"}
LATER = [FIRST, {"role": "assistant", "content": "It is."}, {"role": "user", "content": "Why?"}]
MARKED = {"role": "user", "content": [{"type": "text", "text": "Q", "cache_control": {"type": "ephemeral"}}]}


@pytest.mark.parametrize(
    ("first_turn", "later_turn"),
    [
        ({"system": CACHED, "messages": [FIRST]}, {"system": [CACHED[1]], "messages": LATER}),
        ({"system": "You are X.", "messages": [FIRST]}, {"system": "You are X.", "messages": LATER}),
        ({"messages": [FIRST]}, {"messages": LATER}),
        ({"messages": [MARKED]}, {"messages": [MARKED, *LATER[1:]]}),
        (
            {"messages": [{"role": "user", "content": "x" * 70_000}]},
            {"messages": [{"role": "user", "content": "x" * 70_000}, *LATER[1:]]},
        ),
    ],
)
def test_the_turns_of_a_conversation_belong_together(first_turn: Any, later_turn: Any) -> None:
    assert envelope(**first_turn).affinity == envelope(**later_turn).affinity != ""


@pytest.mark.parametrize("odd", [{"role": "assistant"}, "text", None, 7])
def test_a_later_message_that_is_odd_moves_no_conversation(odd: object) -> None:
    first = {"role": "user", "content": "Tell me of bills."}
    assert envelope(messages=[first, odd]).affinity == envelope(messages=[first]).affinity != ""


def test_other_conversations_do_not() -> None:
    bodies: list[dict[str, Any]] = [
        {"messages": [FIRST]},
        {"messages": [{"role": "user", "content": "Else?"}]},
        {"system": "You are X."},
        {"system": "You are Y."},
        {"system": CACHED},
        {"metadata": {"user_id": NEW_ID}},
    ]
    keys = [envelope(**body).affinity for body in bodies]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 for key in keys)


def test_what_only_one_organisation_can_go_on_with_is_tied() -> None:
    thread = {"type": "continue", "previous_message_id": "msg_1"}
    found = envelope(thread=thread)
    assert (found.tied, found.previous_response_id) == (True, "msg_1")
    assert envelope(fallback_credit_token="t").tied
    assert (envelope(thread=7).previous_response_id, envelope().tied) == ("", False)


def bounds(**fields: Any) -> Envelope:
    body = json.dumps({"model": "m", "messages": [], **fields}).encode()
    return DIALECT.bounded(body, DIALECT.read_envelope(body, headers={}))


# --- what bounds a call -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "inline"),
    [
        ({}, True),
        ({"system": "an image of a \u00e9clair"}, True),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "u"}}]}]},
            False,
        ),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]}, False),
    ],
)
def test_what_is_not_inline_text_is_seen(fields: Any, inline: bool) -> None:
    assert bounds(**fields).inline_text is inline


def test_an_escaped_letter_hides_nothing() -> None:
    body = b'{"model":"m","messages":[{"content":[{"type":"image","\\u0073ource":{"type":"url"}}]}]}'
    found = DIALECT.bounded(body, DIALECT.read_envelope(body, headers={}))
    assert found.inline_text is False
    assert "cache_creation_1h_input_tokens" not in found.ruled_out


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ()),
        ({"mcp_servers": [], "container": None}, ()),
        ({"mcp_servers": [{"type": "url"}]}, ("mcp_servers",)),
        ({"container": "c"}, ("container",)),
        ({"fallbacks": "default"}, ("fallbacks",)),
        ({"thread": {"type": "continue"}}, ("thread",)),
        ({"compaction": {"type": "summarize"}}, ("compaction",)),
        ({"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}}, ()),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, ("context_management",)),
        ({"tools": [{"name": "a", "input_schema": {"type": "object"}}]}, ()),
        ({"tools": [{"type": "custom", "name": "a"}, {"type": "bash_20250124", "name": "bash"}]}, ()),
        ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, ("tools",)),
        ({"tools": [{"type": "advisor_20260301", "name": "advisor"}]}, ("tools",)),
        ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]}, ("tools",)),
        ({"tools": {"type": "web_search"}}, ("tools",)),
    ],
)
def test_what_makes_a_call_unbounded_is_named(fields: Any, named: tuple[str, ...]) -> None:
    assert bounds(**fields).unbounded == named


def test_tools_bring_tokens_that_stand_nowhere_in_the_body() -> None:
    assert bounds().hidden_input_tokens == 0
    assert bounds(tools=[{"name": "a"}]).hidden_input_tokens > 500
    assert bounds(tools=[{"type": "bash_20250124", "name": "bash"}]).hidden_input_tokens > 1000


def test_claude_codes_request_is_read() -> None:
    recorded = json.loads(fixture("anthropic/claude_code_request.json"))
    headers = {name.encode(): value.encode() for name, value in recorded["headers"].items()}
    body = json.dumps(recorded["body"]).encode()
    found = DIALECT.bounded(body, DIALECT.read_envelope(body, headers=headers))
    assert (found.model, found.stream, found.max_output_tokens) == ("claude-sonnet-5-5", True, 128_000)
    assert (found.session, found.unbounded, found.repeats) == (SESSION, (), False)


@given(st.binary(max_size=300))
def test_no_body_gives_anything_but_an_envelope_or_a_reason(body: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert DIALECT.read_envelope(body, headers={}).model


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
NAMES = ["model", "stream", "max_tokens", "metadata", "system", "messages", "tools", "speed", "context_management"]


@given(st.dictionaries(st.sampled_from(NAMES), VALUES), st.booleans())
def test_no_value_gives_anything_but_an_envelope_or_a_reason(fields: dict[str, Any], named: bool) -> None:
    body = json.dumps({**fields, **({"model": "m"} if named else {})}).encode()
    with contextlib.suppress(InvalidRequest):
        found = DIALECT.bounded(body, DIALECT.read_envelope(body, headers={}))
        assert found.model.encode() and found.affinity.isascii()


@pytest.mark.parametrize(
    "body", [b'{"model":"m","x":' + b"[" * 100_000, b'{"model":"\xff"}', b'\xef\xbb\xbf{"model":"m"}']
)
def test_nesting_and_bytes_that_are_no_text_give_a_reason(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        DIALECT.read_envelope(body, headers={})


@pytest.mark.parametrize("later", [b"", b'{"role":"assistant","content":"' + b"x" * 2**17 + b'"}'])
def test_a_conversation_keeps_its_name_as_it_grows_past_what_is_read_of_it(later: bytes) -> None:
    first = b'{"role":"user","content":"Hi"}'
    body = b'{"model":"m","messages":[ %b]}' % (first + b"," + later if later else first)
    assert DIALECT.read_envelope(body, headers={}).affinity == envelope().affinity
