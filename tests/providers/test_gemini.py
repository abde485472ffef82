"""Gemini with an API key as an upstream: addresses, headers, streams, and whose fault its errors are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from relay.call import Account, Call, Endpoint, UsageSource
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
from tests.providers.case import NOW, call_of, check_stream, fixture

GEMINI = PROVIDERS["gemini"]
MODEL = "gemini-3.1-pro-preview"
RECORDED = json.loads(fixture("gemini/gemini_cli_request.json"))
ENDPOINTS = {
    "generateContent": Endpoint("generate_content", "gemini"),
    "streamGenerateContent": Endpoint("stream_generate_content", "gemini"),
    "countTokens": Endpoint("count_tokens", "gemini", metered=False),
    "batchEmbedContents": Endpoint("batch_embed_contents", "gemini"),
}


def account_of(**fields: Any) -> Account:
    return Account(
        id=1, name="g", kind="gemini", provider="google", **{"base_url": "", "credential": {"api_key": "k1"}, **fields}
    )


ACCOUNT = account_of()


def call(
    verb: str = "generateContent",
    *,
    body: bytes = b'{"contents":[]}',
    version: str = "v1beta",
    query: str = "",
    **headers: str,
) -> Call:
    path = f"{version}/models/{MODEL}:{verb}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    made = call_of(ENDPOINTS[verb], body=body, path=path, path_model=f"{MODEL}:{verb}", headers=named)
    return replace(made, query=query)


# -- requests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha"])
def test_path_and_body_go_on_as_they_came(version: str) -> None:
    asked = call("streamGenerateContent", version=version, query="alt=sse")
    request = GEMINI.request(asked, ACCOUNT, MODEL)
    root = "https://generativelanguage.googleapis.com"
    assert request.url == f"{root}/{version}/models/{MODEL}:streamGenerateContent?alt=sse"
    assert (request.method, request.content, request.dropped) == ("POST", asked.body, ())


def test_gemini_cli_s_request_goes_on_with_our_key_alone() -> None:
    headers = {name: value for name, value in RECORDED["headers"].items() if name != "host"}
    body = json.dumps(RECORDED["body"]).encode()
    path = RECORDED["target"].split("?")[0].strip("/")
    asked = call_of(
        ENDPOINTS["streamGenerateContent"], body=body, path=path, path_model=path.rpartition("/")[2], headers=headers
    )
    request = GEMINI.request(replace(asked, query="alt=sse"), ACCOUNT, MODEL)
    sent = dict(request.headers)
    assert sent[b"x-goog-api-key"] == b"k1" and b"authorization" not in sent
    assert [name for name, _ in request.headers].count(b"x-goog-api-key") == 1
    assert sent[b"x-goog-api-client"] == headers["x-goog-api-client"].encode()
    assert (sent[b"user-agent"], sent[b"accept-encoding"]) == (headers["user-agent"].encode(), b"identity")
    assert request.content == body and "key=" not in request.url


@pytest.mark.parametrize(
    "base",
    [
        "http://up.test",
        "http://up.test/",
        "http://up.test/v1beta",
        "http://up.test/v1beta/models/",
        "http://up.test/v1",
    ],
)
def test_a_base_url_may_end_like_the_vendor_s_paths(base: str) -> None:
    request = GEMINI.request(call(), account_of(base_url=base), MODEL)
    assert request.url == f"http://up.test/v1beta/models/{MODEL}:generateContent"


def test_a_model_map_renames_the_model_in_path_and_body() -> None:
    account = account_of(model_map={MODEL: "other/name"})
    body = b'{"requests":[{"model":"models/gemini-3.1-pro-preview","content":1.0}]}'
    request = GEMINI.request(call("batchEmbedContents", body=body), account, GEMINI.upstream_model(account, MODEL))
    assert request.url.endswith("/v1beta/models/other%2Fname:batchEmbedContents")
    assert request.content == b'{"requests":[{"model":"models/other/name","content":1.0}]}'
    assert GEMINI.serves(account, ENDPOINTS["generateContent"], MODEL)
    assert not GEMINI.serves(account, ENDPOINTS["generateContent"], "other/name")


@pytest.mark.parametrize(
    ("query", "sent", "dropped"),
    [
        ("alt=sse&prettyPrint=false", "alt=sse&prettyPrint=false", ()),
        ("alt=sse&fields=candidates", "alt=sse", ("fields",)),
        ("%24fields=candidates&alt=sse", "alt=sse", ("$fields",)),
        ("alt=proto", "", ("alt",)),
        ("access_token=x&$key=y&userProject=z", "", ("access_token", "$key", "userProject")),
        ("callback=f&$httpMethod=GET", "", ("callback", "$httpMethod")),
    ],
)
def test_parameters_that_hold_secrets_or_hide_counts_stay_here(query: str, sent: str, dropped: tuple[str, ...]) -> None:
    request = GEMINI.request(call(query=query), ACCOUNT, MODEL)
    assert (request.url.partition("?")[2], request.dropped) == (sent, dropped)


def test_headers_that_would_hide_counts_stay_here_and_are_named() -> None:
    asked = call(
        x_goog_fieldmask="candidates", accept="application/x-protobuf", x_http_method_override="GET", x_new="1"
    )
    request = GEMINI.request(asked, ACCOUNT, MODEL)
    assert dict(request.headers)[b"x-new"] == b"1"
    assert request.dropped == ("x-goog-fieldmask", "accept", "x-http-method-override")
    assert not {name.encode() for name in request.dropped} & dict(request.headers).keys()


# -- answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "query", "output"),
    [
        ("text.sse", "alt=sse", 10),
        ("lf.sse", "alt=sse", 10),
        ("text.json", "", 10),
        ("tight.json", "", 10),
        ("thinking.sse", "alt=sse", 533),
        ("tools.sse", "alt=sse", 40),
        ("grounded.sse", "alt=sse", 80),
        ("counts_after_the_end.sse", "alt=sse", 3),
        ("stop_in_every_event.sse", "alt=sse", 3),
        ("blocked.sse", "alt=sse", 0),
    ],
)
def test_streams_pass_as_they_came_however_cut(name: str, query: str, output: int) -> None:
    outcome = check_stream(GEMINI, call("streamGenerateContent", query=query), ACCOUNT, f"gemini/{name}")
    assert (outcome.source, outcome.usage.output_tokens) == (UsageSource.PROVIDER, output)


@pytest.mark.parametrize("name", ["cut.sse", "cut.json", "error_after_content.sse", "error_after_content.json"])
def test_a_stream_that_breaks_is_partial_however_cut(name: str) -> None:
    outcome = check_stream(GEMINI, call("streamGenerateContent"), ACCOUNT, f"gemini/{name}")
    assert outcome.source is UsageSource.PARTIAL


@pytest.mark.parametrize(
    ("content_type", "streams"),
    [(b"Text/Event-Stream", True), (b"application/JSON; charset=UTF-8", True), (b"text/html", False)],
)
def test_what_is_a_stream(content_type: bytes, streams: bool) -> None:
    assert GEMINI.streams(((b"content-type", content_type),)) is streams


@pytest.mark.parametrize(
    ("name", "status", "error", "reason", "rest"),
    [
        ("error_400_key.json", 400, AccountRejected, "credential", "credential"),
        ("error_400_expired.json", 400, AccountRejected, "credential", "credential"),
        ("error_400_place.json", 400, AccountRejected, "location", "credential"),
        ("error_400_billing.json", 400, AccountRejected, "quota", "credential"),
        ("error_400_field.json", 400, UpstreamRejected, "upstream_400", ""),
        ("error_403_disabled.json", 403, AccountRejected, "credential", "credential"),
        ("error_403_referrer.json", 403, AccountRejected, "credential", "credential"),
        ("error_403_cached.json", 403, UpstreamRejected, "upstream_403", ""),
        ("error_403_file.json", 403, UpstreamRejected, "upstream_403", ""),
        ("error_404_model.json", 404, ModelUnavailable, "model", "model"),
        ("error_429_minute.json", 429, UpstreamOverloaded, "429", "429"),
        ("error_429_day.json", 429, UpstreamOverloaded, "429", "429"),
        ("error_429_vertex.json", 429, UpstreamOverloaded, "429", "429"),
        ("error_429_prepaid.json", 429, AccountRejected, "quota", "credential"),
        ("error_499.json", 499, UpstreamFailed, "499", "5xx"),
        ("error_500.json", 500, UpstreamFailed, "500", "5xx"),
        ("error_503.json", 503, UpstreamOverloaded, "503", "503"),
        ("error_504.json", 504, UpstreamFailed, "504", "5xx"),
    ],
)
def test_whose_fault_an_error_is(name: str, status: int, error: type[UpstreamError], reason: str, rest: str) -> None:
    found = GEMINI.classify(status, (), fixture(f"gemini/{name}"), now=NOW)
    assert (type(found), found.reason, found.rest, found.upstream_status) == (error, reason, rest, status)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b"<html>", AccountRejected),
        (402, b"", AccountRejected),
        (403, b"", AccountRejected),
        (404, b"{}", UpstreamRejected),
        (408, b"", UpstreamTimeout),
        (413, b"", UpstreamRejected),
        (302, b"", UpstreamFailed),
        (502, b"<html>", UpstreamFailed),
        (529, b"", UpstreamOverloaded),
    ],
)
def test_a_status_alone_says_enough(status: int, body: bytes, error: type[UpstreamError]) -> None:
    assert type(GEMINI.classify(status, (), body, now=NOW)) is error


def test_the_wait_is_read_where_google_tells_it() -> None:
    minute = GEMINI.classify(429, (), fixture("gemini/error_429_minute.json"), now=NOW)
    day = GEMINI.classify(429, (), fixture("gemini/error_429_day.json"), now=NOW)
    header = GEMINI.classify(429, ((b"retry-after", b"9"),), fixture("gemini/error_429_minute.json"), now=NOW)
    nothing = GEMINI.classify(429, (), fixture("gemini/error_429_vertex.json"), now=NOW)
    assert minute.retry_after == pytest.approx(34.07, abs=0.01)
    assert (day.retry_after, header.retry_after, nothing.retry_after) == (1800, 9, None)


def test_an_error_in_an_array_is_read_too() -> None:
    body = b"[" + fixture("gemini/error_400_key.json") + b"]"
    assert isinstance(GEMINI.classify(400, (), body, now=NOW), AccountRejected)


def test_its_list_of_models_is_read() -> None:
    request = GEMINI.models_request(ACCOUNT)
    assert request is not None and request.url.endswith("/v1beta/models?pageSize=1000")
    assert dict(request.headers)[b"x-goog-api-key"] == b"k1"
    entries = GEMINI.read_models(fixture("gemini/models.json"))
    assert [(entry.id, entry.display_name) for entry in entries] == [
        (MODEL, "Gemini 3.1 Pro Preview"),
        ("gemini-embedding-001", "Gemini Embedding 001"),
    ]
    assert GEMINI.read_models(b"<html>") == ()


def test_a_key_is_needed() -> None:
    assert GEMINI.check(account_of(credential={})) == ["credential is missing"] and GEMINI.check(ACCOUNT) == []
