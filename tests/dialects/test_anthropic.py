"""Anthropic's Messages format: requests, errors and lists, as its SDKs expect them."""

from __future__ import annotations

import json

import pytest

from relay.call import Endpoint
from relay.dialects.anthropic import Anthropic
from relay.errors import BudgetExceeded, InvalidRequest, RelayError, UpstreamOverloaded, UpstreamRejected

DIALECT = Anthropic()
MESSAGES = Endpoint("messages", "anthropic")


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


def test_only_the_model_changes() -> None:
    body = b'{"max_tokens": 1.0,"model":"a","x":{"b" : 1e3}}'
    assert DIALECT.set_model(body, "b") == b'{"max_tokens":1.0,"model":"b","x":{"b" : 1e3}}'


def rendered(error: RelayError) -> tuple[int, dict[bytes, bytes], bytes]:
    answer = DIALECT.render_error(error, "id-1")
    return answer.status, dict(answer.headers), answer.body


def test_a_spent_budget_stops_every_client_at_the_first_answer() -> None:
    status, headers, body = rendered(BudgetExceeded("Spent.", retry_after=7200.1))
    assert (status, headers[b"retry-after"], headers[b"x-should-retry"]) == (402, b"7201", b"false")
    assert json.loads(body) == {
        "type": "error",
        "error": {"type": "billing_error", "message": "Spent."},
        "request_id": "id-1",
    }


def test_what_the_caller_did_wrong_passes_untouched() -> None:
    said = b'{"type":"error",  "error":{"type":"invalid_request_error","message":"prompt is too long"}}'
    error = UpstreamRejected("x", status=400, headers=((b"request-id", b"req_1"),), body=said)
    assert rendered(error) == (400, {b"request-id": b"req_1"}, said)


def test_an_upstream_wait_is_capped_and_not_to_be_slept_through() -> None:
    status, headers, _ = rendered(UpstreamOverloaded("Busy.", status=529, retry_after=90000))
    assert (status, headers[b"retry-after"], headers[b"x-should-retry"]) == (529, b"1800", b"false")


def test_a_stream_ends_with_the_error_event() -> None:
    event = DIALECT.error_event(UpstreamOverloaded("Busy.", status=529), "id-1")
    assert event.startswith(b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"')
    assert event.endswith(b"\n\n")
    meter = DIALECT.meter(MESSAGES)
    assert meter.feed(event) == 0 and meter.error == "overloaded_error"
