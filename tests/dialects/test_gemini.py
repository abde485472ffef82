"""Gemini's face: errors as the official SDK takes them, keep-alives, lists of models."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from google.genai import errors

from relay.call import Call, Endpoint
from relay.dialects.base import ModelEntry
from relay.dialects.gemini import Gemini
from relay.errors import (
    AccountRejected,
    BudgetExceeded,
    InvalidRequest,
    LimitExceeded,
    ModelNotFound,
    ModelUnavailable,
    NoAccountAvailable,
    NotAuthenticated,
    NotPermitted,
    RelayError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
)
from tests.dialects.genai_sdk import answering
from tests.providers.case import call_of, fixture

DIALECT = Gemini()
STREAM = Endpoint("stream_generate_content", "gemini")
MODEL = "gemini-3.1-pro-preview"


def stream_call(query: str) -> Call:
    path = f"v1beta/models/{MODEL}:streamGenerateContent"
    made = call_of(STREAM, body=b'{"contents":[]}', path=path, path_model=path.rpartition("/")[2])
    return replace(made, query=query)


def said(error: RelayError) -> tuple[int, dict[str, Any], dict[bytes, bytes]]:
    answer = DIALECT.render_error(error, "the-id")
    return answer.status, json.loads(answer.body)["error"], dict(answer.headers)


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (NotAuthenticated("no"), 401, "UNAUTHENTICATED"),
        (NotPermitted("no"), 403, "PERMISSION_DENIED"),
        (ModelNotFound("no"), 404, "NOT_FOUND"),
        (InvalidRequest("no"), 400, "INVALID_ARGUMENT"),
        (BudgetExceeded("no", retry_after=3600), 402, "FAILED_PRECONDITION"),
        (LimitExceeded("no", retry_after=30), 429, "RESOURCE_EXHAUSTED"),
        (NoAccountAvailable("no", retry_after=5), 503, "UNAVAILABLE"),
        (AccountRejected("no", status=400), 502, "UNAVAILABLE"),
        (UpstreamFailed("no", status=500), 502, "UNAVAILABLE"),
        (UpstreamTimeout("no"), 504, "DEADLINE_EXCEEDED"),
        (RelayError("no"), 500, "INTERNAL"),
    ],
)
def test_errors_have_google_s_shape_and_the_sdk_s_classes(error: RelayError, status: int, name: str) -> None:
    got, body, _ = said(error)
    assert (got, body["code"], body["status"], body["message"]) == (status, status, name, "no")
    assert {"@type": "type.googleapis.com/google.rpc.RequestInfo", "requestId": "the-id"} in body["details"]
    answer = DIALECT.render_error(error, "the-id")
    expected = errors.ClientError if status < 500 else errors.ServerError
    with pytest.raises(expected) as caught:
        answering(answer.body, status=answer.status).models.generate_content(model=MODEL, contents="hi")
    assert (caught.value.code, caught.value.status, caught.value.message) == (status, name, "no")


def test_a_wait_is_told_in_the_header_and_as_google_does() -> None:
    _, body, headers = said(LimitExceeded("no", retry_after=29.2))
    assert (headers[b"retry-after"], b"x-should-retry" in headers) == (b"30", False)
    details = {item["@type"].rpartition(".")[2]: item for item in body["details"]}
    assert details["RetryInfo"]["retryDelay"] == "30s"
    assert details["QuotaFailure"]["violations"][0]["quotaId"] == "BatonLimitPerMinute"


def test_a_wait_too_long_to_sit_out_stops_gemini_cli() -> None:
    _, body, headers = said(LimitExceeded("no", retry_after=4000))
    assert (headers[b"retry-after"], headers[b"x-should-retry"]) == (b"4000", b"false")
    assert "PerDay" in json.dumps(body)


def test_what_the_caller_did_wrong_passes_untouched() -> None:
    body = b'{"error": {"code": 400, "message": "bad projects/our-project", "status": "INVALID_ARGUMENT"}}'
    answer = DIALECT.render_error(UpstreamRejected("x", status=400, body=body), "id")
    assert (answer.status, answer.body) == (400, body)


@pytest.mark.parametrize("error", [ModelUnavailable, UpstreamOverloaded])
def test_what_is_about_our_account_is_told_without_its_project(error: type[UpstreamOverloaded]) -> None:
    body = b'{"error":{"code":429,"message":"quota of projects/our-project-1 and project_number:123456 is gone"}}'
    answer = DIALECT.render_error(error("x", status=429, body=body, retry_after=7), "id")
    assert answer.status == 429 and b"our-project" not in answer.body and b"123456" not in answer.body
    assert dict(answer.headers)[b"retry-after"] == b"7"


def test_an_error_event_raises_in_the_sdk() -> None:
    block = fixture("gemini/lf.sse").split(b"\n\n")[0] + b"\n\n"
    body = block + DIALECT.error_event(UpstreamFailed("It broke."), "id")
    stream = answering(body, stream=True).models.generate_content_stream(model=MODEL, contents="hi")
    assert next(stream).text == "Hel"
    with pytest.raises(errors.ServerError) as caught:
        next(stream)
    assert (caught.value.code, caught.value.message) == (502, "It broke.")


def test_an_error_event_is_plain_json_and_an_event() -> None:
    plain, event, rest = DIALECT.error_event(UpstreamFailed("It broke."), "id").split(b"\n\n")
    assert event == b"data: " + plain and rest == b""
    assert json.loads(plain)["error"]["message"] == "It broke."


def test_keep_alives_do_not_disturb_the_sdk() -> None:
    events = fixture("gemini/lf.sse").split(b"\n\n")
    body = DIALECT.keep_alive + b"".join(event + b"\n\n" + DIALECT.keep_alive for event in events if event)
    stream = answering(body, stream=True).models.generate_content_stream(model=MODEL, contents="hi")
    assert [chunk.usage_metadata.candidates_token_count for chunk in stream if chunk.usage_metadata] == [1, 9, 10]


@pytest.mark.parametrize(("query", "array"), [("", True), ("alt=json", True), ("alt=sse", False), ("$alt=sse", False)])
def test_a_stream_is_events_or_an_array(query: str, array: bool) -> None:
    spoken = DIALECT.spoken(stream_call(query))
    assert spoken.stream_type == (b"application/json" if array else b"text/event-stream")
    assert spoken.error_event(UpstreamFailed("no"), "id").startswith(b"[" if array else b"{")


def test_an_array_that_began_is_closed_by_its_error() -> None:
    spoken = DIALECT.spoken(stream_call(""))
    meter = spoken.meter(STREAM)
    stream = fixture("gemini/text.json")
    block = stream[: stream.index(b"\n,\r\n")]
    meter.feed(block)
    whole = block + spoken.keep_alive + spoken.last_event(UpstreamFailed("It broke."), "id", meter=meter)
    assert [next(iter(item)) for item in json.loads(whole)] == ["candidates", "error"]


def test_an_error_before_an_array_began_is_an_array() -> None:
    spoken = DIALECT.spoken(stream_call(""))
    whole = spoken.keep_alive + spoken.error_event(UpstreamFailed("It broke."), "id")
    assert json.loads(whole)[0]["error"]["code"] == 502


def test_models_are_listed_and_paged_in_google_s_shape() -> None:
    raw = json.dumps(json.loads(fixture("gemini/models.json"))["models"][0]).encode()
    models = [ModelEntry("a", "A"), ModelEntry("b", raw=raw), ModelEntry("c", raw=b'{"id":"c","object":"model"}')]
    first = json.loads(DIALECT.render_models(models, query={"pageSize": "2"}).body)
    second = json.loads(DIALECT.render_models(models, query={"pageToken": first["nextPageToken"]}).body)
    assert [model["name"] for model in first["models"] + second["models"]] == ["models/a", "models/b", "models/c"]
    assert "nextPageToken" not in second and first["models"][1]["inputTokenLimit"] == 1048576


def test_the_sdk_reads_list_and_model() -> None:
    entries = [ModelEntry("gemini-x", "Gemini X")]
    client = answering(DIALECT.render_models(entries, query={}).body)
    assert [(model.name, model.display_name) for model in client.models.list()] == [("models/gemini-x", "Gemini X")]
    client = answering(DIALECT.render_model(entries[0]).body)
    assert client.models.get(model="gemini-x").name == "models/gemini-x"


def test_a_page_size_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="pageSize"):
        DIALECT.render_models([], query={"pageSize": "-1"})
    assert json.loads(DIALECT.render_models([], query={"pageToken": "odd!"}).body) == {"models": []}


def test_the_probe_is_a_call_that_it_reads() -> None:
    endpoint, path, headers, body = DIALECT.probe("gemini-x")
    assert (endpoint, path) == ("generate_content", "v1beta/models/gemini-x:generateContent")
    assert DIALECT.read_envelope(body, headers=dict(headers), path_model="gemini-x").max_output_tokens == 16
