"""Vertex AI as an upstream: addresses, Claude's and Gemini's bodies, access tokens, and whose fault its errors are."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from functools import cache
from typing import Any
from urllib.parse import parse_qs

import pytest

from relay.call import Account, Call, Endpoint, UsageSource
from relay.errors import (
    AccountRejected,
    ModelUnavailable,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamRejected,
)
from relay.providers import PROVIDERS
from relay.providers.vertex import service_account as read_key
from relay.simulator.vertex import key, service_account
from tests.providers.case import NOW, call_of, check_stream, fixture

VERTEX = PROVIDERS["vertex"]
MESSAGES = Endpoint("messages", "anthropic")
COUNT = Endpoint("count_tokens", "anthropic", metered=False)
GEMINI = "gemini-3.1-pro-preview"
CLAUDE = "claude-sonnet-5-5"
RECORDED = json.loads(fixture("anthropic/claude_code_request.json"))
NAMES = {"embedContent": "embed_content", "batchEmbedContents": "batch_embed_contents", "countTokens": "count_tokens"}


@cache
def key_json(**changes: str) -> str:
    return json.dumps({**service_account("https://example.test"), **changes})


def account_of(**fields: Any) -> Account:
    given = {
        "base_url": "",
        "credential": {"access_token": "ya29.t", "service_account": key_json()},
        "settings": {"location": "us-east5", "project": "acme-prod"},
        **fields,
    }
    return Account(id=1, name="v", kind="vertex", provider="google", **given)


ACCOUNT = account_of()


def claude(headers: dict[str, str] | None = None, *, endpoint: Endpoint = MESSAGES, **fields: Any) -> Call:
    body = json.dumps({"model": CLAUDE, "max_tokens": 5, "messages": [], **fields}).encode()
    path = "messages" if endpoint is MESSAGES else "messages/count_tokens"
    return call_of(endpoint, body=body, path=path, query="beta=true", headers=headers)


def gemini(verb: str, body: bytes, *, version: str = "v1", query: str = "", model: str = GEMINI) -> Call:
    endpoint = Endpoint(NAMES.get(verb, "generate_content"), "gemini")
    return call_of(
        endpoint, body=body, path=f"{version}/models/{model}:{verb}", query=query, path_model=f"{model}:{verb}"
    )


def sent(call: Call, account: Account = ACCOUNT) -> Any:
    model = VERTEX.upstream_model(account, call.envelope.model)
    return VERTEX.request(call, account, model)


# -- addresses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("us-east5", "us-east5-aiplatform.googleapis.com"),
        ("global", "aiplatform.googleapis.com"),
        ("us", "aiplatform.us.rep.googleapis.com"),
        ("eu", "aiplatform.eu.rep.googleapis.com"),
    ],
)
def test_each_location_has_its_host(location: str, host: str) -> None:
    account = account_of(settings={"location": location, "project": "acme-prod"})
    assert sent(claude(), account).url == (
        f"https://{host}/v1/projects/acme-prod/locations/{location}/publishers/anthropic/models/{CLAUDE}:rawPredict"
    )


@pytest.mark.parametrize("base", ["https://proxy.test", "https://proxy.test/", "https://proxy.test/v1"])
def test_a_base_url_stands_for_the_host(base: str) -> None:
    assert sent(claude(), account_of(base_url=base)).url.startswith("https://proxy.test/v1/projects/acme-prod/")


def test_the_project_is_the_service_account_s_own_unless_another_is_set() -> None:
    assert "/projects/sim-project/" in sent(claude(), account_of(settings={"location": "global"})).url


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5@20250929"),
        ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5@20250929"),
        ("claude-3-5-sonnet-20241022", "claude-3-5-sonnet-v2@20241022"),
        ("claude-opus-4-8", "claude-opus-4-8"),
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
    ],
)
def test_models_have_vertex_s_names(asked: str, name: str) -> None:
    assert VERTEX.upstream_model(ACCOUNT, asked) == name


@pytest.mark.parametrize(
    ("endpoint", "model", "served"),
    [
        (MESSAGES, CLAUDE, True),
        (MESSAGES, GEMINI, False),
        (Endpoint("generate_content", "gemini"), GEMINI, True),
        (Endpoint("generate_content", "gemini"), CLAUDE, False),
        (Endpoint("embed_content", "gemini"), "gemini-embedding-001", True),
        (Endpoint("embed_content", "gemini"), "text-embedding-005", False),
        (Endpoint("chat_completions", "openai_chat"), GEMINI, False),
    ],
)
def test_each_family_is_served_in_its_own_dialect(endpoint: Endpoint, model: str, *, served: bool) -> None:
    assert VERTEX.serves(ACCOUNT, endpoint, model) is served


def test_a_model_map_decides_by_what_it_leads_to() -> None:
    account = account_of(model_map={"fast": "claude-haiku-5-5", "other": "gemini-2.5-flash"})
    assert [VERTEX.serves(account, MESSAGES, name) for name in ("fast", "other", CLAUDE)] == [True, False, False]


# -- Claude --------------------------------------------------------------------------------------------


def test_claude_s_body_loses_the_model_and_keeps_every_other_byte() -> None:
    body = b'{"model":"claude-sonnet-5-5","stream":true,"messages":[ 1.0 ],"x":1e3,"max_tokens":5}'
    request = sent(call_of(MESSAGES, body=body, path="messages"))
    assert request.content == (
        b'{"anthropic_version":"vertex-2023-10-16","stream":true,"messages":[ 1.0 ],"x":1e3,"max_tokens":5}'
    )
    assert request.url.endswith(f"/publishers/anthropic/models/{CLAUDE}:streamRawPredict")
    assert dict(request.headers)[b"authorization"] == b"Bearer ya29.t"


@pytest.mark.parametrize(
    ("asked", "version"),
    [("2023-06-01", "vertex-2023-10-16"), ("2026-10-21", "2026-10-21"), ("2030-01-01", "vertex-2023-10-16")],
)
def test_the_version_goes_into_the_body(asked: str, version: str) -> None:
    request = sent(claude({"anthropic-version": asked}))
    assert json.loads(request.content)["anthropic_version"] == version
    assert b"anthropic-version" not in dict(request.headers)


def test_counting_names_the_model_in_the_body() -> None:
    request = sent(claude(endpoint=COUNT))
    assert request.url.endswith("/publishers/anthropic/models/count-tokens:rawPredict")
    assert json.loads(request.content)["model"] == CLAUDE


def test_claude_code_s_betas_and_fields_are_mapped_and_what_is_dropped_is_named() -> None:
    headers = {name: value for name, value in RECORDED["headers"].items() if name.startswith(("anthropic", "x-"))}
    request = sent(claude(headers, **RECORDED["body"]))
    assert dict(request.headers)[b"anthropic-beta"].split(b",") == [
        b"interleaved-thinking-2025-05-14",
        b"context-management-2025-06-27",
        b"tool-search-tool-2025-10-19",
        b"effort-2025-11-24",
    ]
    assert request.dropped == (
        "claude-code-20250219",
        "per-turn-control-2026-07-01",
        "mid-conversation-tool-changes-2026-07-01",
        "thinking-token-count-2026-05-13",
        "thinking-display-updates-2026-08-18",
        "messages[].output_config",
        "thinking.display",
    )
    body = json.loads(request.content)
    assert body["system"] == RECORDED["body"]["system"] and body["output_config"] == RECORDED["body"]["output_config"]
    assert "?" not in request.url


def test_betas_that_vertex_does_not_expect_are_left_out_once_more() -> None:
    call = claude({"anthropic-beta": "effort-2025-11-24,web-search-2025-03-05,context-1m-2025-08-07"})
    error = VERTEX.classify(400, (), fixture("vertex/error_400_beta.json"), now=NOW)
    again = VERTEX.without_additions(call, ACCOUNT, error)
    assert again is not None
    assert dict(again.headers)[b"anthropic-beta"] == b"context-1m-2025-08-07"
    assert again.dropped == ("effort-2025-11-24", "web-search-2025-03-05")


def test_any_other_400_stands() -> None:
    error = VERTEX.classify(400, (), b'{"type":"error","error":{"type":"x","message":"max_tokens: no"}}', now=NOW)
    assert VERTEX.without_additions(claude(), ACCOUNT, error) is None


def test_claude_s_stream_passes_byte_for_byte() -> None:
    outcome = check_stream(VERTEX, claude(stream=True), ACCOUNT, "vertex/claude_stream.sse")
    usage = outcome.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (21, 300, 9)
    assert (outcome.source, outcome.response_model) == (UsageSource.PROVIDER, "claude-sonnet-4-5-20250929")


# -- Gemini --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "vertex"), [("v1", "v1"), ("v1beta", "v1beta1"), ("v1alpha", "v1beta1")])
def test_the_version_of_the_path_is_vertex_s(version: str, vertex: str) -> None:
    request = sent(gemini("streamGenerateContent", b'{"contents":[ 1.0 ]}', version=version, query="alt=sse"))
    assert request.url == (
        f"https://us-east5-aiplatform.googleapis.com/{vertex}/projects/acme-prod/locations/us-east5"
        f"/publishers/google/models/{GEMINI}:streamGenerateContent?alt=sse"
    )
    assert request.content == b'{"contents":[ 1.0 ]}'


@pytest.mark.parametrize(
    ("verb", "body", "vertex"),
    [
        ("generateContent", b'{"model":"models/a","contents":[]}', b'{"contents":[]}'),
        (
            "embedContent",
            b'{"model":"models/e","content":{"parts":[]},"taskType":"RETRIEVAL_QUERY"}',
            b'{"content":{"parts":[]},"embedContentConfig":{"taskType":"RETRIEVAL_QUERY"}}',
        ),
        ("embedContent", b'{"content":{ }}', b'{"content":{ }}'),
        (
            "batchEmbedContents",
            b'{"requests":[{"model":"models/e","content":{ },"outputDimensionality":8},{"content":{}}]}',
            b'{"requests":[{"content":{ },"embedContentConfig":{"outputDimensionality":8}},{"content":{}}]}',
        ),
        ("batchEmbedContents", b'{"requests":7}', b'{"requests":7}'),
        (
            "countTokens",
            b'{"generateContentRequest":{"model":"models/a","contents":[ 1],"tools":[]}}',
            b'{"contents":[ 1],"tools":[]}',
        ),
        ("countTokens", b'{"contents":[ 1]}', b'{"contents":[ 1]}'),
    ],
)
def test_the_few_fields_that_stand_elsewhere(verb: str, body: bytes, vertex: bytes) -> None:
    assert sent(gemini(verb, body, model="gemini-embedding-001")).content == vertex


def test_gemini_s_stream_passes_byte_for_byte() -> None:
    call = gemini("streamGenerateContent", b'{"contents":[]}', query="alt=sse")
    outcome = check_stream(VERTEX, call, ACCOUNT, "vertex/gemini_stream.sse")
    assert (outcome.source, outcome.usage.input_tokens) == (UsageSource.PROVIDER, 12)
    assert outcome.usage.service_tier == "priority"


# -- access tokens -------------------------------------------------------------------------------------


def parts_of(assertion: str) -> list[Any]:
    """Header and claims."""
    return [json.loads(base64.urlsafe_b64decode(part + "==")) for part in assertion.split(".")[:2]]


def test_the_token_is_asked_for_by_a_signed_assertion() -> None:
    request = VERTEX.token_request(ACCOUNT, now=NOW)
    form = parse_qs(request.content.decode())
    assert (request.method, request.url) == ("POST", "https://example.test/token")
    assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    header, claims = parts_of(form["assertion"][0])
    assert (header["alg"], header["kid"]) == ("RS256", "sim")
    assert claims == {
        "iss": "sim@sim-project.iam.gserviceaccount.com",
        "scope": "https://www.googleapis.com/auth/cloud-platform",
        "aud": "https://example.test/token",
        "iat": int(NOW),
        "exp": int(NOW) + 3600,
    }
    assert key().key_size == 2048 and b"PRIVATE" not in request.content


@pytest.mark.parametrize(
    ("token_uri", "audience"),
    [
        ("https://oauth2.googleapis.com/token", "https://oauth2.googleapis.com/token"),
        ("https://oauth2-psc.p.googleapis.com/token", "https://oauth2.googleapis.com/token"),
        # An assertion that somebody else gets is good for nothing at Google.
        ("https://googleapis.com.evil.test/token", "https://googleapis.com.evil.test/token"),
    ],
)
def test_the_audience_is_google_only_at_google(token_uri: str, audience: str) -> None:
    account = account_of(credential={"service_account": key_json(token_uri=token_uri)})
    assertion = parse_qs(VERTEX.token_request(account, now=NOW).content.decode())["assertion"][0]
    assert parts_of(assertion)[1]["aud"] == audience


# -- what a person has got wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {"project": "acme-prod"}}, "location"),
        ({"settings": {"location": "moon", "project": "acme-prod"}}, "location"),
        ({"settings": {"location": "us-east5\n", "project": "acme-prod"}}, "location"),
        ({"settings": {"location": "global", "project": "Acme prod"}}, "project"),
        ({"credential": {}}, "service_account is missing"),
        ({"credential": {"service_account": "AIza"}}, "not the JSON"),
        ({"credential": {"service_account": '{"type":"authorized_user"}'}}, "'authorized_user'"),
        ({"credential": {"service_account": key_json(client_email="")}}, "client_email is missing"),
        ({"credential": {"service_account": key_json(private_key="")}}, "private_key is missing"),
        (
            {"credential": {"service_account": key_json(private_key="-----BEGIN PRIVATE KEY-----\nMII")}},
            "can't be read",
        ),
        ({"credential": {"service_account": key_json(token_uri="http://example.test/token")}}, "token_uri"),
        ({"credential": {"service_account": key_json(token_uri="https://u:p@example.test/")}}, "token_uri"),
        ({"credential": {"service_account": key_json(token_uri="file:///etc/passwd")}}, "token_uri"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_saved(changes: dict[str, Any], said: str) -> None:
    account = account_of(**changes)
    wrong = VERTEX.check(account)
    assert len(wrong) == 1 and said in wrong[0]
    assert "PRIVATE" not in wrong[0]


@pytest.mark.parametrize("token_uri", ["https://oauth2.googleapis.com/token", "http://127.0.0.1:9/token"])
def test_a_good_account_passes(token_uri: str) -> None:
    assert VERTEX.check(account_of(credential={"service_account": key_json(token_uri=token_uri)})) == []


def test_the_private_key_is_in_no_repr() -> None:
    assert "PRIVATE" not in repr(read_key(ACCOUNT))


# -- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (400, "error_400_beta.json", UpstreamRejected),
        (401, "error_401.json", AccountRejected),
        (403, "error_403_permission.json", AccountRejected),
        (404, "error_404_model.json", ModelUnavailable),
        (429, "error_429_quota.json", UpstreamOverloaded),
        (529, "error_529.json", UpstreamOverloaded),
    ],
)
def test_whose_fault_an_answer_is(status: int, name: str, kind: type[UpstreamError]) -> None:
    assert type(VERTEX.classify(status, (), fixture(f"vertex/{name}"), now=NOW)) is kind


def test_google_s_error_is_anthropic_s_for_a_client_of_anthropic_s() -> None:
    error = VERTEX.classify(404, (), fixture("vertex/error_404_model.json"), now=NOW)
    said = json.loads(VERTEX.native_error(claude(), error))
    assert (said["type"], said["error"]["type"]) == ("error", "not_found_error")
    assert "acme-prod" not in said["error"]["message"] and "claude-sonnet-5-5" in said["error"]["message"]


def test_errors_keep_their_bytes_where_the_client_speaks_the_same() -> None:
    theirs = VERTEX.classify(529, (), fixture("vertex/error_529.json"), now=NOW)
    googles = VERTEX.classify(429, (), fixture("vertex/error_429_quota.json"), now=NOW)
    call = gemini("generateContent", b'{"contents":[]}')
    assert VERTEX.native_error(claude(), theirs) == fixture("vertex/error_529.json")
    assert VERTEX.native_error(call, googles) == fixture("vertex/error_429_quota.json")


# -- prices and probes ---------------------------------------------------------------------------------


def test_claude_costs_more_outside_the_global_location_and_gemini_does_not() -> None:
    everywhere = account_of(settings={"location": "global", "project": "acme-prod"})
    call = gemini("generateContent", b'{"contents":[]}')
    assert [VERTEX.place(claude(), account) for account in (everywhere, ACCOUNT)] == ["", "regional"]
    assert VERTEX.place(call, ACCOUNT) == ""


@pytest.mark.parametrize(
    ("model_map", "dialect"), [({}, "gemini"), ({"a": "claude-haiku-5-5"}, "anthropic"), ({"a": GEMINI}, "gemini")]
)
def test_test_connection_speaks_the_dialect_of_the_map(model_map: dict[str, str], dialect: str) -> None:
    assert VERTEX.probe_dialect(replace(ACCOUNT, model_map=model_map)) == dialect
