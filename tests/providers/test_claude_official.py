"""Anthropic's own API: what goes up and what comes down, and whose fault an error is."""

from __future__ import annotations

import json
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
)
from relay.providers import PROVIDERS
from relay.providers.headers import retry_after_seconds, returned
from tests.providers.case import NOW, call_of, check_stream, fixture

OFFICIAL = PROVIDERS["claude_official"]
MESSAGES = Endpoint("messages", "anthropic")
BODY = b'{"model": "claude-opus-4-8","max_tokens":9 ,"messages":[],"future_field":{"b":1, "a":[1.0,2e5]}}'


def account_of(**fields: Any) -> Account:
    given: dict[str, Any] = {"credential": {"api_key": "sk-ant-api03-canary"}, "base_url": "", **fields}
    return Account(id=1, name="a", kind="claude_official", provider="anthropic", **given)


def call(body: bytes = BODY, **given: Any) -> Call:
    return call_of(MESSAGES, body=body, path="messages", **given)


def sent(account: Account, **given: Any) -> dict[bytes, bytes]:
    headers = OFFICIAL.request(call(**given), account, "claude-opus-4-8").headers
    assert len(dict(headers)) == len(headers)
    return dict(headers)


# -- the request -------------------------------------------------------------------------------------


def test_path_and_query_go_to_the_vendors_own_address() -> None:
    request = OFFICIAL.request(call(query="beta=true&x=%20"), account_of(), "claude-opus-4-8")
    assert (request.method, request.url) == ("POST", "https://api.anthropic.com/v1/messages?beta=true&x=%20")


def test_a_base_url_is_the_servers_root() -> None:
    request = OFFICIAL.request(call(), account_of(base_url="http://upstream.test/api/"), "claude-opus-4-8")
    assert request.url == "http://upstream.test/api/v1/messages"


def test_the_body_goes_up_byte_for_byte() -> None:
    assert OFFICIAL.request(call(), account_of(), "claude-opus-4-8").content is BODY


def test_a_mapped_model_changes_that_one_field() -> None:
    account = account_of(model_map={"claude-opus-4-8": "claude-opus-4-8-20260101"})
    model = OFFICIAL.upstream_model(account, "claude-opus-4-8")
    content = OFFICIAL.request(call(), account, model).content
    assert json.loads(content) == {**json.loads(BODY), "model": "claude-opus-4-8-20260101"}
    assert b'{"b":1, "a":[1.0,2e5]}' in content


def test_the_model_map_is_the_list_of_models() -> None:
    account = account_of(model_map={"a": "b"})
    assert [OFFICIAL.serves(account, MESSAGES, model) for model in ("a", "b")] == [True, False]
    assert OFFICIAL.serves(account_of(), MESSAGES, "anything")
    assert not OFFICIAL.serves(account_of(), Endpoint("chat_completions", "openai_chat"), "a")


def test_an_api_key_goes_as_x_api_key_and_the_clients_own_stay_here() -> None:
    client = {
        "authorization": "Bearer rk_canary",
        "x-api-key": "rk_canary",
        "x-goog-api-key": "rk_canary",
        "api-key": "rk_canary",
        "cookie": "session=canary",
    }
    headers = sent(account_of(), headers=client)
    assert headers[b"x-api-key"] == b"sk-ant-api03-canary" and not any(b"rk_" in value for value in headers.values())
    assert headers.keys().isdisjoint({b"authorization", b"cookie", b"api-key", b"x-goog-api-key", b"anthropic-beta"})


@pytest.mark.parametrize(
    ("given", "beta"),
    [
        ({}, b"oauth-2025-04-20"),
        ({"anthropic-beta": "a-1,b-2"}, b"a-1,b-2,oauth-2025-04-20"),
        ({"anthropic-beta": "oauth-2025-04-20,a-1"}, b"oauth-2025-04-20,a-1"),
    ],
)
def test_an_access_token_goes_as_bearer_and_adds_its_one_beta(given: dict[str, str], beta: bytes) -> None:
    headers = sent(account_of(credential={"access_token": "sk-ant-oat01-canary"}), headers=given)
    assert (headers[b"authorization"], headers[b"anthropic-beta"]) == (b"Bearer sk-ant-oat01-canary", beta)
    assert b"x-api-key" not in headers


def test_what_never_goes_up() -> None:
    never = {
        "connection": "keep-alive, x-named-by-connection",
        "x-named-by-connection": "1",
        "host": "relay.test",
        "te": "trailers",
        "content-length": "5",
        "forwarded": "for=1.2.3.4",
        "x-forwarded-for": "1.2.3.4",
        "x-real-ip": "1.2.3.4",
        "via": "1.1 proxy",
        "x-relay-tags": "team=a",
        "openai-organization": "org",
        "openai-project": "project",
        "x-goog-user-project": "project",
        "accept-encoding": "gzip, br",
    }
    assert sent(account_of(), headers=never) == {
        b"x-api-key": b"sk-ant-api03-canary",
        b"user-agent": b"baton",
        b"accept-encoding": b"identity",
    }


def test_headers_that_nobody_knows_go_up_as_they_came() -> None:
    client = {"anthropic-version": "2026-10-21", "anthropic-beta": "x-1,y-2", "x-unknown": "ž", "user-agent": "mine/1"}
    headers = sent(account_of(), headers=client)
    assert {name: headers[name.encode()].decode() for name in client} == client


def test_claude_codes_own_headers_survive() -> None:
    recorded = json.loads(fixture("claude_official/claude_code_headers.json"))
    replaced = {"authorization", "connection", "host", "accept-encoding", "content-length"}
    headers = sent(account_of(), headers=recorded)
    kept = {name: value for name, value in recorded.items() if name not in replaced}
    assert {name.decode(): value.decode() for name, value in headers.items()} == {
        **kept,
        "x-api-key": "sk-ant-api03-canary",
        "accept-encoding": "identity",
    }


# -- the answer --------------------------------------------------------------------------------------


def test_a_stream_passes_byte_for_byte_and_is_counted_however_it_is_cut() -> None:
    outcome = check_stream(OFFICIAL, call(), account_of(), "claude_official/messages_stream.sse")
    usage = outcome.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (25, 4096, 89)
    assert (usage.cache_creation_5m_input_tokens, usage.cache_creation_1h_input_tokens) == (1000, 200)
    assert (usage.reasoning_tokens, outcome.source, outcome.terminal) == (31, UsageSource.PROVIDER, True)


def test_headers_of_the_shared_account_do_not_come_down() -> None:
    upstream = (
        (b"content-type", b"text/event-stream"),
        (b"request-id", b"req_1"),
        (b"anthropic-organization-id", b"org"),
        (b"anthropic-workspace-id", b"w"),
        (b"anthropic-ratelimit-requests-remaining", b"5"),
        (b"anthropic-ratelimit-unified-reset", b"5"),
        (b"anthropic-priority-input-tokens-limit", b"5"),
        (b"anthropic-fast-output-tokens-limit", b"5"),
        (b"x-ratelimit-limit-requests", b"5"),
        (b"set-cookie", b"a=b"),
        (b"strict-transport-security", b"max-age=1"),
        (b"alt-svc", b"h3"),
        (b"content-length", b"5"),
        (b"content-encoding", b"gzip"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"x-hop"),
        (b"x-hop", b"1"),
        (b"x-new-header", b"kept"),
    )
    assert returned(upstream) == [
        (b"content-type", b"text/event-stream"),
        (b"request-id", b"req_1"),
        (b"x-new-header", b"kept"),
    ]


# -- whose fault an error is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "name", "error", "rest", "reason"),
    [
        (400, "error_400_field", UpstreamRejected, "", "upstream_400"),
        (400, "error_400_quoting", UpstreamRejected, "", "upstream_400"),
        (400, "error_400_spent", AccountRejected, "credential", "quota"),
        (400, "error_400_balance", AccountRejected, "credential", "quota"),
        (400, "error_400_organization", AccountRejected, "credential", "quota"),
        (401, "error_401", AccountRejected, "credential", "credential"),
        (402, "error_402_linked", AccountRejected, "credential", "quota"),
        (403, "error_403", AccountRejected, "credential", "credential"),
        (403, "error_403_model", ModelUnavailable, "model", "model"),
        (404, "error_404_model", ModelUnavailable, "model", "model"),
        (404, "error_404_file", UpstreamRejected, "", "upstream_404"),
        (413, "error_413", UpstreamRejected, "", "upstream_413"),
        (422, "error_400_field", UpstreamRejected, "", "upstream_422"),
        (429, "error_429_rate", UpstreamOverloaded, "429", "429"),
        (429, "error_429_enforced", AccountRejected, "credential", "quota"),
        (429, "error_429_contract", AccountRejected, "credential", "quota"),
        (500, "error_500", UpstreamFailed, "5xx", "500"),
        (503, "error_500", UpstreamOverloaded, "503", "503"),
        (504, "error_504", UpstreamFailed, "5xx", "504"),
        (529, "error_529", UpstreamOverloaded, "529", "529"),
        (302, "error_500", UpstreamFailed, "5xx", "302"),
    ],
)
def test_whose_fault_an_error_is(status: int, name: str, error: type[UpstreamError], rest: str, reason: str) -> None:
    body = fixture(f"claude_official/{name}.json")
    found = OFFICIAL.classify(status, (), body, now=NOW)
    assert (type(found), found.rest, found.reason) == (error, rest, reason)
    assert (found.upstream_status, found.body) == (status, body)


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"null", b'{"error":null}', b'{"error":{"message":null}}', b"<html>"]
)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 529])
def test_a_body_that_cannot_be_read_is_classified_by_its_status(status: int, body: bytes) -> None:
    expected = OFFICIAL.classify(status, (), b"{}", now=NOW)
    assert type(OFFICIAL.classify(status, (), body, now=NOW)) is type(expected)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "17"}, 17.0),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "Sun, 22 Nov 2026 23:04:32 GMT"}, 60.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"anthropic-ratelimit-unified-reset": str(int(NOW) + 90)}, 90.0),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-11-22T23:03:42Z",
                "anthropic-ratelimit-tokens-remaining": "5",
                "anthropic-ratelimit-tokens-reset": "2026-11-22T23:33:32Z",
            },
            10.0,
        ),
    ],
)
def test_the_reset_that_the_upstream_names(headers: dict[str, str], seconds: float | None) -> None:
    pairs = tuple((name.encode(), value.encode()) for name, value in headers.items())
    assert retry_after_seconds(pairs, now=NOW) == seconds
    assert OFFICIAL.classify(429, pairs, b"{}", now=NOW).retry_after == seconds


@pytest.mark.parametrize(
    ("credential", "wrong"),
    [
        ({"api_key": "k"}, []),
        ({"access_token": "t"}, []),
        ({"refresh_token": "r"}, []),
        ({}, ["credential is missing: api_key, access_token or refresh_token"]),
    ],
)
def test_what_a_credential_needs(credential: dict[str, str], wrong: list[str]) -> None:
    assert OFFICIAL.check(account_of(credential=credential)) == wrong
