"""Anthropic's errors and lists, as its SDK takes them."""

from __future__ import annotations

import json

import anthropic
import pytest

from relay.call import Endpoint, RateLimit
from relay.dialects.anthropic import Anthropic
from relay.dialects.base import ModelEntry
from relay.errors import (
    AccountRejected,
    BodyTooLarge,
    BudgetExceeded,
    Interrupted,
    InvalidRequest,
    LimitExceeded,
    ModelNotFound,
    ModelUnavailable,
    NoAccountAvailable,
    NotAuthenticated,
    NotPermitted,
    NotRecordable,
    NotServed,
    RelayError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.dialects.anthropic_sdk import sdk
from tests.providers.case import fixture

DIALECT = Anthropic()
MESSAGES = Endpoint("messages", "anthropic")


def test_only_the_model_changes() -> None:
    body = b'{"max_tokens": 1.0,"model":"a","x":{"b" : 1e3}}'
    assert DIALECT.set_model(body, "b") == b'{"max_tokens":1.0,"model":"b","x":{"b" : 1e3}}'


def test_limits_are_told_in_the_vendors_headers() -> None:
    rates = (RateLimit("requests", 60, 41, 1_780_315_260.0), RateLimit("tokens", 2_000_000, 0, 1_780_358_400.0))
    assert DIALECT.rate_headers(rates, now=1_780_315_200.5) == [
        (b"anthropic-ratelimit-requests-limit", b"60"),
        (b"anthropic-ratelimit-requests-remaining", b"41"),
        (b"anthropic-ratelimit-requests-reset", b"2026-06-01T12:01:00Z"),
        (b"anthropic-ratelimit-tokens-limit", b"2000000"),
        (b"anthropic-ratelimit-tokens-remaining", b"0"),
        (b"anthropic-ratelimit-tokens-reset", b"2026-06-02T00:00:00Z"),
    ]


# --- errors -----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("error", "status", "kind", "raised"),
    [
        (InvalidRequest("x"), 400, "invalid_request_error", anthropic.BadRequestError),
        (NotAuthenticated("x"), 401, "authentication_error", anthropic.AuthenticationError),
        (BudgetExceeded("x"), 402, "billing_error", anthropic.APIStatusError),
        (NotPermitted("x"), 403, "permission_error", anthropic.PermissionDeniedError),
        (ModelNotFound("x"), 404, "not_found_error", anthropic.NotFoundError),
        (NotServed("x"), 404, "not_found_error", anthropic.NotFoundError),
        (BodyTooLarge("x"), 413, "request_too_large", anthropic.RequestTooLargeError),
        (LimitExceeded("x"), 429, "rate_limit_error", anthropic.RateLimitError),
        (NoAccountAvailable("x"), 503, "overloaded_error", anthropic.ServiceUnavailableError),
        (NotRecordable("x"), 503, "api_error", anthropic.ServiceUnavailableError),
        (Interrupted("x"), 503, "api_error", anthropic.ServiceUnavailableError),
        (AccountRejected("x", status=401, body=b"secret"), 502, "api_error", anthropic.InternalServerError),
        (UpstreamFailed("x", status=500, body=b"trace"), 502, "api_error", anthropic.InternalServerError),
        (UpstreamUnreachable("x"), 502, "api_error", anthropic.InternalServerError),
        (UpstreamTimeout("x"), 504, "timeout_error", anthropic.DeadlineExceededError),
        (UpstreamOverloaded("x", status=529), 529, "overloaded_error", anthropic.OverloadedError),
        (UpstreamOverloaded("x", status=429), 429, "rate_limit_error", anthropic.RateLimitError),
        (ModelUnavailable("x", status=404), 404, "not_found_error", anthropic.NotFoundError),
    ],
)
def test_the_sdk_raises_its_usual_class(
    error: RelayError, status: int, kind: str, raised: type[anthropic.APIStatusError]
) -> None:
    answer = DIALECT.render_error(error, "id-1")
    client = sdk(answer.body, status=answer.status, headers={k.decode(): v.decode() for k, v in answer.headers})
    with pytest.raises(raised) as caught:
        client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "Hi"}])
    assert (answer.status, caught.value.status_code, caught.value.request_id) == (status, status, "id-1")
    assert caught.value.body == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
        "request_id": "id-1",
    }


@pytest.mark.parametrize(
    ("error", "retry_after", "should_retry"),
    [
        (NotAuthenticated("x"), None, b"false"),
        (LimitExceeded("x", retry_after=0.2), b"1", None),
        (LimitExceeded("x", retry_after=60), b"60", None),
        (LimitExceeded("x", retry_after=60.1), b"61", b"false"),
        (BudgetExceeded("x", retry_after=86_400), b"86400", b"false"),
        (BudgetExceeded("x"), None, b"false"),
        (AccountRejected("x"), None, b"false"),
        (UpstreamOverloaded("x", status=429, retry_after=5), b"5", None),
        (UpstreamOverloaded("x", status=429, retry_after=4000), b"1800", b"false"),
        (NoAccountAvailable("x", retry_after=1), b"1", None),
    ],
)
def test_a_client_waits_only_for_what_it_should_sit_out(
    error: RelayError, retry_after: bytes | None, should_retry: bytes | None
) -> None:
    headers = rendered(error)[1]
    assert (headers.get(b"retry-after"), headers.get(b"x-should-retry")) == (retry_after, should_retry)


def test_an_upstreams_own_word_on_retrying_passes_unless_the_wait_is_long() -> None:
    said = b'{"type":"error","error":{"type":"rate_limit_error","message":"Slow down."}}'
    given = ((b"x-should-retry", b"true"), (b"retry-after", b"7"), (b"content-type", b"application/json"))
    short = UpstreamOverloaded("x", status=429, body=said, headers=given, retry_after=7)
    assert rendered(short)[1][b"x-should-retry"] == b"true"
    long = UpstreamOverloaded("x", status=429, body=said, headers=given, retry_after=700)
    assert (rendered(long)[1][b"x-should-retry"], rendered(long)[2]) == (b"false", said)


def test_an_error_in_a_stream_says_what_the_upstream_said() -> None:
    said = fixture("anthropic/error_400.json")
    event = DIALECT.error_event(UpstreamRejected("x", status=400, body=said), "id-1")
    data = json.loads(event.split(b"data: ")[1])
    assert data["error"] == {
        "type": "invalid_request_error",
        "message": "prompt is too long: 208341 tokens > 200000 maximum",
    }
    page = DIALECT.error_event(UpstreamRejected("It was rejected.", status=404, body=b"<html>"), "id-1")
    assert json.loads(page.split(b"data: ")[1])["error"] == {"type": "not_found_error", "message": "It was rejected."}


def test_the_sdk_raises_for_an_error_in_a_stream() -> None:
    stream = fixture("anthropic/cut.sse") + DIALECT.error_event(UpstreamUnreachable("It broke."), "id-1")
    client = sdk(stream, headers={"content-type": "text/event-stream"})
    with (
        pytest.raises(anthropic.APIStatusError, match="It broke"),
        client.messages.stream(model="m", max_tokens=1, messages=[{"role": "user", "content": "Hi"}]) as events,
    ):
        events.get_final_message()


def test_in_band_errors_have_the_status_that_they_would_have_had() -> None:
    assert [DIALECT.in_band_status(kind) for kind in ("overloaded_error", "rate_limit_error", "what")] == [
        529,
        429,
        500,
    ]


# --- lists of models --------------------------------------------------------------------------------

ENTRIES = [ModelEntry(id=f"claude-{number}", display_name=f"Claude {number}") for number in range(5)]


def page(**query: str) -> tuple[list[str], bool]:
    data = json.loads(DIALECT.render_models(ENTRIES, query=query).body)
    names = [entry["id"] for entry in data["data"]]
    assert (data["first_id"], data["last_id"]) == ((names[0], names[-1]) if names else (None, None))
    return [name[-1] for name in names], data["has_more"]


def test_the_list_is_paged_as_the_vendor_pages() -> None:
    assert page() == (["0", "1", "2", "3", "4"], False)
    assert page(limit="2") == (["0", "1"], True)
    assert page(limit="2", after_id="claude-2") == (["3", "4"], False)
    assert page(limit="2", before_id="claude-3") == (["1", "2"], True)
    assert page(limit="9", before_id="claude-3") == (["0", "1", "2"], False)
    assert page(after_id="claude-4") == ([], False)


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "ten", "\u0663"])
def test_a_bad_limit_is_named(limit: str) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        page(limit=limit)


def test_the_sdk_reads_the_list() -> None:
    raw = json.dumps({"type": "model", "id": "upstream", "display_name": "X", "max_input_tokens": 9}).encode()
    answer = DIALECT.render_models([*ENTRIES, ModelEntry(id="mine", raw=raw)], query={})
    models = list(sdk(answer.body).models.list())
    assert [model.id for model in models] == [*(entry.id for entry in ENTRIES), "mine"]
    assert (models[-1].max_input_tokens, models[0].lifecycle, models[0].type) == (9, "active", "model")
    detail = sdk(DIALECT.render_model(ENTRIES[1]).body).models.retrieve("claude-1")
    assert (detail.display_name, detail.created_at.year) == ("Claude 1", 1970)


def test_the_probe_is_a_call_that_the_dialect_reads() -> None:
    name, path, headers, body = DIALECT.probe("claude-x")
    assert (name, path, dict(headers)[b"anthropic-version"]) == ("messages", "messages", b"2023-06-01")
    found = DIALECT.read_envelope(body, headers=dict(headers))
    assert (found.model, found.max_output_tokens) == ("claude-x", 1)
