"""Azure OpenAI as an upstream: three families of paths, deployments, and its own errors."""

from __future__ import annotations

from typing import Any

import pytest

from relay.call import Account, Call, Endpoint, UsageSource
from relay.errors import AccountRejected, ModelUnavailable, UpstreamError, UpstreamOverloaded, UpstreamRejected
from relay.providers import PROVIDERS
from tests.providers.case import NOW, call_of, check_stream, fixture

AZURE = PROVIDERS["azure_openai"]
CHAT = Endpoint("chat_completions", "openai_chat")
RESPONSES = Endpoint("responses", "openai_responses")
ROOT = "https://res.openai.azure.com"
BODY = b'{"model":"gpt-4o","messages":[]}'


def account_of(
    *,
    settings: dict[str, Any] | None = None,
    credential: dict[str, str] | None = None,
    base_url: str = ROOT,
    **fields: Any,
) -> Account:
    given = settings if settings is not None else {"api_version": "2024-10-21", "deployment_map": {"gpt-4o": "prod 1"}}
    secret = credential or {"api_key": "az-1"}
    return Account(1, "a", "azure_openai", base_url, "azure", credential=secret, settings=given, **fields)


def call_at(path: str, *, query: str = "", body: bytes = BODY, path_model: str = "", method: str = "POST") -> Call:
    endpoint = RESPONSES if "responses" in path else CHAT
    return call_of(endpoint, body=body, path=path, query=query, path_model=path_model, method=method)


@pytest.mark.parametrize(
    "path, query, url",
    [
        # an OpenAI client: the account's own version says which family
        ("chat/completions", "", "/openai/deployments/prod%201/chat/completions?api-version=2024-10-21"),
        ("embeddings", "", "/openai/deployments/prod%201/embeddings?api-version=2024-10-21"),
        ("responses", "", "/openai/responses?api-version=2024-10-21"),
        (
            "responses/resp_1/input_items",
            "limit=2",
            "/openai/responses/resp_1/input_items?api-version=2024-10-21&limit=2",
        ),
        # an Azure client: the family and the version that it asked for
        (
            "openai/deployments/gpt-4o/chat/completions",
            "api-version=2025-01-01-preview",
            "/openai/deployments/prod%201/chat/completions?api-version=2025-01-01-preview",
        ),
        ("openai/responses", "api-version=2025-04-01-preview", "/openai/responses?api-version=2025-04-01-preview"),
        ("openai/v1/responses", "", "/openai/v1/responses"),
        ("openai/v1/chat/completions", "api-version=preview", "/openai/v1/chat/completions?api-version=preview"),
    ],
)
def test_each_family_of_paths_reaches_its_own(path: str, query: str, url: str) -> None:
    assert AZURE.request(call_at(path, query=query), account_of(), "gpt-4o").url == ROOT + url


@pytest.mark.parametrize("version, query", [("", ""), ("preview", "?api-version=preview"), ("v1", "?api-version=v1")])
def test_without_a_dated_version_it_is_the_v1_family(version: str, query: str) -> None:
    account = account_of(settings={"api_version": version})

    assert AZURE.request(call_at("responses"), account, "gpt-4o").url == f"{ROOT}/openai/v1/responses{query}"


@pytest.mark.parametrize("base_url", [ROOT, f"{ROOT}/", f"{ROOT}/openai", f"{ROOT}/openai/v1/"])
def test_the_endpoint_may_be_copied_with_its_path(base_url: str) -> None:
    account = account_of(settings={}, base_url=base_url)

    assert AZURE.request(call_at("responses"), account, "gpt-4o").url == f"{ROOT}/openai/v1/responses"


def test_the_body_names_the_deployment() -> None:
    request = AZURE.request(call_at("responses"), account_of(), "gpt-4o")

    assert request.content == b'{"model":"prod 1","messages":[]}'


@pytest.mark.parametrize("name", ["gpt-4o", "prod 1"])
def test_a_client_may_name_the_model_or_its_deployment(name: str) -> None:
    account = account_of()
    call = call_at(f"openai/deployments/{name}/chat/completions", path_model=name)

    assert AZURE.serves(account, CHAT, name)
    assert AZURE.upstream_model(account, name) == "gpt-4o"
    assert "/deployments/prod%201/" in AZURE.request(call, account, "gpt-4o").url


def test_without_a_map_the_deployment_is_called_like_the_model() -> None:
    account = account_of(settings={"api_version": "2024-10-21"})

    assert "/deployments/gpt-4o/" in AZURE.request(call_at("chat/completions"), account, "gpt-4o").url


def test_a_model_map_comes_before_the_deployment() -> None:
    account = account_of(model_map={"fast": "gpt-4o"})
    call = call_at("chat/completions", body=b'{"model":"fast","messages":[]}')
    model = AZURE.upstream_model(account, "fast")

    assert model == "gpt-4o"
    assert "/deployments/prod%201/" in AZURE.request(call, account, model).url
    assert not AZURE.serves(account, CHAT, "gpt-4o")


@pytest.mark.parametrize(
    "credential, header",
    [
        ({"api_key": "az-1"}, (b"api-key", b"az-1")),
        ({"access_token": "entra-1"}, (b"authorization", b"Bearer entra-1")),
    ],
)
def test_it_sends_a_key_or_an_entra_token(credential: dict[str, str], header: tuple[bytes, bytes]) -> None:
    headers = AZURE.request(call_at("responses"), account_of(credential=credential), "m").headers

    assert header in headers
    assert len({b"api-key", b"authorization"} & {name for name, _ in headers}) == 1


def test_filter_results_pass_and_usage_is_counted() -> None:
    body = b'{"model":"gpt-4o","messages":[],"stream":true,"stream_options":{"include_usage":true}}'
    call = call_at("chat/completions", body=body)
    outcome = check_stream(AZURE, call, account_of(), "azure_openai/chat_stream.sse")

    assert (outcome.usage.input_tokens, outcome.usage.output_tokens, outcome.source) == (11, 9, UsageSource.PROVIDER)
    assert (outcome.response_model, outcome.response_id) == ("gpt-4o-2024-11-20", "chatcmpl-CX1yQ8")


def test_an_old_version_that_rejects_stream_options_is_asked_again_without() -> None:
    call = call_at("chat/completions", body=b'{"model":"gpt-4o","messages":[],"stream":true}')
    error = AZURE.classify(400, (), fixture("azure_openai/error_400_stream_options.json"), now=NOW)
    again = AZURE.without_additions(call, account_of(), error)

    assert again is not None
    assert again.content == b'{"model":"prod 1","messages":[],"stream":true}'
    assert "/deployments/prod%201/" in again.url


@pytest.mark.parametrize(
    "status, name, error, rest",
    [
        (401, "error_401", AccountRejected, "credential"),
        (403, "error_403_quota", AccountRejected, "credential"),
        (404, "error_404_deployment", ModelUnavailable, "model"),
        (429, "error_429", UpstreamOverloaded, "429"),
        (400, "error_400_filter", UpstreamRejected, ""),
    ],
)
def test_whose_fault_an_error_is(status: int, name: str, error: type[UpstreamError], rest: str) -> None:
    got = AZURE.classify(status, (), fixture(f"azure_openai/{name}.json"), now=NOW)

    assert (type(got), got.rest) == (error, rest)


def test_it_keeps_azures_own_request_id() -> None:
    assert AZURE.request_id(((b"x-request-id", b"r"), (b"apim-request-id", b"a"))) == "a"


def test_an_account_needs_its_endpoint_and_a_map_of_names() -> None:
    assert AZURE.check(account_of()) == []
    assert AZURE.check(account_of(base_url="")) == ["base_url is missing: the resource's endpoint"]
    assert AZURE.check(account_of(settings={"deployment_map": ["a"]})) == [
        "deployment_map is no JSON object of model -> deployment"
    ]
