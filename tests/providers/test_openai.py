"""OpenAI as an upstream: addresses, headers, streams, and whose fault its errors are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.call import Account, Call, Endpoint, Quantity, UsageSource
from relay.dialects.openai_meter import without_usage_chunk
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
from relay.providers.openai import duration
from tests.providers.case import NOW, call_of, check_stream, fixture

OPENAI = PROVIDERS["openai"]
CHAT = Endpoint("chat_completions", "openai_chat")
EMBEDDINGS = Endpoint("embeddings", "openai_chat")
RESPONSES = Endpoint("responses", "openai_responses")


def account_of(**fields: Any) -> Account:
    return Account(
        id=1, name="o", kind="openai", base_url="", provider="openai", credential={"api_key": "sk-1"}, **fields
    )


ACCOUNT = account_of()


def chat(**fields: Any) -> Call:
    body = json.dumps({"model": "gpt-5.6-luna", "messages": [], **fields}, separators=(",", ":")).encode()
    return call_of(CHAT, body=body, path="chat/completions")


def responses(**fields: Any) -> Call:
    body = json.dumps({"model": "gpt-5.6-luna", "input": "Hi", **fields}, separators=(",", ":")).encode()
    return call_of(RESPONSES, body=body, path="responses")


# -- requests ------------------------------------------------------------------------------------------


def test_it_sends_the_body_as_it_came() -> None:
    call = responses(temperature=1.0, stream=True)
    request = OPENAI.request(call, ACCOUNT, "gpt-5.6-luna")

    assert (request.method, request.url, request.content) == ("POST", "https://api.openai.com/v1/responses", call.body)
    assert OPENAI.hidden(call, ACCOUNT) is None


def test_only_the_model_changes_under_a_model_map() -> None:
    account = account_of(model_map={"fast": "gpt-5.6-luna"})
    call = call_of(RESPONSES, body=b'{"input":"Hi","model":"fast","temperature":1.00}', path="responses")

    assert OPENAI.serves(account, RESPONSES, "fast")
    assert not OPENAI.serves(account, RESPONSES, "gpt-5.6-luna")
    assert OPENAI.request(call, account, OPENAI.upstream_model(account, "fast")).content == (
        b'{"input":"Hi","model":"gpt-5.6-luna","temperature":1.00}'
    )


def test_it_does_not_serve_what_is_not_openais() -> None:
    assert not OPENAI.serves(ACCOUNT, Endpoint("messages", "anthropic"), "gpt-5.6-luna")


def test_a_stored_response_is_served_under_any_model_map() -> None:
    assert OPENAI.serves(account_of(model_map={"a": "b"}), RESPONSES, "")


def test_the_clients_credentials_and_organisation_stay_here() -> None:
    headers = {
        "Authorization": "Bearer rk_secret",
        "api-key": "rk_secret",
        "OpenAI-Organization": "org-theirs",
        "OpenAI-Project": "proj_theirs",
        "openai-beta": "x",
        "session-id": "s1",
        "x-codex-turn-metadata": "{}",
    }
    call = call_of(RESPONSES, body=b'{"model":"m"}', path="responses", headers=headers)
    sent = dict(OPENAI.request(call, ACCOUNT, "m").headers)

    assert sent[b"authorization"] == b"Bearer sk-1"
    assert {b"openai-beta", b"session-id", b"x-codex-turn-metadata"} <= set(sent)
    assert not {b"api-key", b"openai-organization", b"openai-project"} & set(sent)
    assert b"rk_secret" not in b"".join(sent.values())


@pytest.mark.parametrize(
    "path, query, url",
    [
        (
            "responses/resp_1",
            "include[]=reasoning.encrypted_content",
            "/v1/responses/resp_1?include[]=reasoning.encrypted_content",
        ),
        ("openai/deployments/prod/chat/completions", "api-version=2024-10-21", "/v1/chat/completions"),
        ("openai/responses/resp_1/cancel", "api-version=2025-04-01-preview&a=b", "/v1/responses/resp_1/cancel?a=b"),
        ("openai/v1/responses", "", "/v1/responses"),
    ],
)
def test_azures_paths_become_openais(path: str, query: str, url: str) -> None:
    call = call_of(RESPONSES, body=b'{"model":"m"}', path=path, query=query)

    assert OPENAI.request(call, ACCOUNT, "m").url == f"https://api.openai.com{url}"


def test_the_model_of_an_azure_path_is_put_into_the_body() -> None:
    call = call_of(
        CHAT, body=b'{"messages":[]}', path="openai/deployments/gpt-4o/chat/completions", path_model="gpt-4o"
    )

    assert OPENAI.request(call, ACCOUNT, "gpt-4o").content == b'{"messages":[],"model":"gpt-4o"}'


# -- usage in chat streams: asked for, not asked for, rejected -------------------------------------------


def test_a_client_that_asked_for_usage_gets_every_byte() -> None:
    call = chat(stream=True, stream_options={"include_usage": True})
    outcome = check_stream(OPENAI, call, ACCOUNT, "openai/chat_stream.sse")

    assert OPENAI.request(call, ACCOUNT, "gpt-5.6-luna").content == call.body
    assert (outcome.usage.output_tokens, outcome.source) == (57, UsageSource.PROVIDER)


def test_a_client_that_did_not_ask_gets_no_usage_chunk_and_is_counted_all_the_same() -> None:
    call = chat(stream=True)
    shown = without_usage_chunk(fixture("openai/chat_stream.sse"))
    outcome = check_stream(OPENAI, call, ACCOUNT, "openai/chat_stream.sse", shown=shown)

    assert b"completion_tokens" not in shown and shown.endswith(b"data: [DONE]\n\n")
    assert OPENAI.request(call, ACCOUNT, "gpt-5.6-luna").content == (
        b'{"model":"gpt-5.6-luna","messages":[],"stream":true,"stream_options":{"include_usage":true}}'
    )
    assert (outcome.usage.output_tokens, outcome.source) == (57, UsageSource.PROVIDER)


def test_an_upstream_that_rejects_the_option_is_asked_again_without_it() -> None:
    call = chat(stream=True)
    for name in ("azure_openai", "openai_compatible"):
        error = OPENAI.classify(400, (), fixture(f"{name}/error_400_stream_options.json"), now=NOW)
        again = OPENAI.without_additions(call, ACCOUNT, error)

        assert again is not None and again.content == call.body


@pytest.mark.parametrize(
    "call, status, body",
    [
        (chat(stream=True, stream_options={"include_usage": True}), 400, b'{"error":{"message":"no stream_options"}}'),
        (chat(stream=True), 400, fixture("openai/error_400_context.json")),
        (chat(stream=True), 500, b'{"error":{"message":"stream_options"}}'),
        (chat(), 400, b'{"error":{"message":"no stream_options"}}'),
    ],
)
def test_other_rejections_stand(call: Call, status: int, body: bytes) -> None:
    assert OPENAI.without_additions(call, ACCOUNT, OPENAI.classify(status, (), body, now=NOW)) is None


@pytest.mark.parametrize("call", [chat(), chat(stream=False), responses(stream=True)])
def test_nothing_is_added_where_usage_comes_anyway(call: Call) -> None:
    assert OPENAI.request(call, ACCOUNT, "gpt-5.6-luna").content == call.body
    assert OPENAI.hidden(call, ACCOUNT) is None


# -- streams -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, output, source",
    [
        ("chat_tools.sse", 17, UsageSource.PROVIDER),
        ("chat_cut.sse", 6, UsageSource.ESTIMATED),
        ("chat_error.sse", 3, UsageSource.ESTIMATED),
    ],
)
def test_a_chat_stream_is_the_same_however_it_is_cut(name: str, output: int, source: UsageSource) -> None:
    call = chat(stream=True, stream_options={"include_usage": True})
    outcome = check_stream(OPENAI, call, ACCOUNT, f"openai/{name}")

    assert (outcome.usage.output_tokens, outcome.source) == (output, source)


@pytest.mark.parametrize(
    "name, output, source",
    [
        ("responses_stream.sse", 210, UsageSource.PROVIDER),
        ("responses_incomplete.sse", 16, UsageSource.PROVIDER),
        ("responses_failed.sse", None, UsageSource.NONE),
        ("responses_cut.sse", 3, UsageSource.ESTIMATED),
    ],
)
def test_a_response_stream_is_the_same_however_it_is_cut(name: str, output: int | None, source: UsageSource) -> None:
    outcome = check_stream(OPENAI, responses(stream=True), ACCOUNT, f"openai/{name}")

    assert (outcome.usage.output_tokens, outcome.source) == (output, source)


def test_hosted_tools_are_quantities() -> None:
    outcome = check_stream(OPENAI, responses(stream=True), ACCOUNT, "openai/responses_stream.sse")

    assert Quantity("web_searches", 2) in outcome.usage.extra


# -- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status, name, error, reason, rest",
    [
        (401, "error_401", AccountRejected, "credential", "credential"),
        (429, "error_429_quota", AccountRejected, "quota", "credential"),
        (403, "error_403_region", AccountRejected, "credential", "credential"),
        (403, "error_403_model", ModelUnavailable, "model", "model"),
        (404, "error_404_model", ModelUnavailable, "model", "model"),
        (404, "error_404_response", UpstreamRejected, "upstream_404", ""),
        (400, "error_400_context", UpstreamRejected, "upstream_400", ""),
        (429, "error_429_rate", UpstreamOverloaded, "429", "429"),
        (500, "error_500", UpstreamFailed, "500", "5xx"),
        (502, "error_500", UpstreamFailed, "502", "5xx"),
        (503, "error_503", UpstreamOverloaded, "503", "503"),
        (529, "error_503", UpstreamOverloaded, "529", "529"),
        (408, "error_500", UpstreamTimeout, "408", "timeout"),
        (409, "error_400_context", UpstreamRejected, "upstream_409", ""),
        (413, "error_400_context", UpstreamRejected, "upstream_413", ""),
        (422, "error_400_context", UpstreamRejected, "upstream_422", ""),
        (302, "error_500", UpstreamFailed, "302", "5xx"),
    ],
)
def test_whose_fault_an_error_is(status: int, name: str, error: type[UpstreamError], reason: str, rest: str) -> None:
    body = fixture(f"openai/{name}.json")
    got = OPENAI.classify(status, (), body, now=NOW)

    assert (type(got), got.reason, got.rest, got.upstream_status, got.body) == (error, reason, rest, status, body)


@pytest.mark.parametrize(
    "status, body, error",
    [
        (
            403,
            b'{"error":{"message":"Not allowed to use this field.","param":"access_programs","code":null}}',
            UpstreamRejected,
        ),
        (403, b'{"error":{"message":"Blocked.","code":"cyber_policy"}}', UpstreamRejected),
        (403, b"<html>Forbidden</html>", AccountRejected),
        (
            400,
            b'{"error":{"message":"Billing hard limit has been reached","code":"billing_hard_limit_reached"}}',
            AccountRejected,
        ),
        (400, b'{"error":"Incorrect API key provided: xai-1"}', AccountRejected),
        (400, b'{"error":{"message":"no","code":400,"type":["odd"]}}', UpstreamRejected),
        (400, b"", UpstreamRejected),
        (500, b"\xff", UpstreamFailed),
    ],
)
def test_one_users_request_rests_no_account_that_others_use(
    status: int, body: bytes, error: type[UpstreamError]
) -> None:
    assert type(OPENAI.classify(status, (), body, now=NOW)) is error


@pytest.mark.parametrize(
    "headers, wait",
    [
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "20"}, 20.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        (
            {
                "x-ratelimit-remaining-requests": "7",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "120ms",
            },
            0.12,
        ),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "soon"}, None),
        ({}, None),
    ],
)
def test_it_reads_when_the_upstream_takes_calls_again(headers: dict[str, str], wait: float | None) -> None:
    pairs = tuple((name.encode(), value.encode()) for name, value in headers.items())

    assert OPENAI.classify(429, pairs, fixture("openai/error_429_rate.json"), now=NOW).retry_after == wait


@pytest.mark.parametrize(
    "text, seconds",
    [
        (b"1s", 1.0),
        (b"120ms", 0.12),
        (b"1h2m3.5s", 3723.5),
        (b"1d", 86400.0),
        (b"", None),
        (b"1", None),
        (b"1.2.3s", None),
    ],
)
def test_it_reads_openais_durations(text: bytes, seconds: float | None) -> None:
    assert duration(text) == seconds


def test_it_lists_the_accounts_models() -> None:
    request = OPENAI.models_request(ACCOUNT)
    assert request is not None and request.url == "https://api.openai.com/v1/models"

    listed = b'{"object":"list","data":[{"id":"gpt-6-astra","object":"model","created":1790000000},{"odd":1},5]}'
    assert [(model.id, model.created_at) for model in OPENAI.read_models(listed)] == [("gpt-6-astra", 1790000000.0)]
    assert OPENAI.read_models(b"<html>") == ()


def test_an_account_needs_a_key() -> None:
    assert OPENAI.check(ACCOUNT) == []
    assert OPENAI.check(Account(id=1, name="o", kind="openai", base_url="", provider="openai")) == [
        "credential is missing"
    ]
