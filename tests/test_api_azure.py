"""Azure's paths, and Azure as an upstream, through real servers, with the official client."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from openai import AzureOpenAI, OpenAI

from tests.harness import Installation, Server

HI: list[Any] = [{"role": "user", "content": "Say hello."}]
VERSION = "2025-04-01-preview"
MAPPED = {"api_version": VERSION, "deployment_map": {"gpt-4o": "prod-1"}}
ONE = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Closes every client that a test makes."""
    with ExitStack() as opened:
        yield opened


def azure_client(server: Server, key: str, **options: Any) -> AzureOpenAI:
    endpoint = f"{server.url}/azure"
    return AzureOpenAI(api_key=key, azure_endpoint=endpoint, api_version=VERSION, max_retries=0, **options)


def targets(installation: Installation) -> list[str]:
    return [request["target"] for request in installation.simulator.requests()]


def test_the_azure_client_reaches_an_azure_account_in_the_same_paths(
    server: Server, installation: Installation, clients: ExitStack
) -> None:
    installation.account(kind="azure_openai", settings=MAPPED, credential={"api_key": "az-upstream"})
    key = installation.key()
    client = clients.enter_context(azure_client(server, key))
    whole = client.chat.completions.create(model="gpt-4o", messages=HI)
    streamed = list(client.chat.completions.create(model="gpt-4o", messages=HI, stream=True))
    embedded = client.embeddings.create(model="text-embedding-3-small", input="x")
    response = client.responses.create(model="gpt-4o", input="Hi")
    assert client.responses.retrieve(response.id).id == response.id
    assert whole.choices[0].message.content == "You said: Say hello."
    assert streamed[0].choices == [] and streamed[-1].usage is None
    assert embedded.usage.prompt_tokens == 1
    version = f"?api-version={VERSION}"
    assert targets(installation) == [
        f"/openai/deployments/prod-1/chat/completions{version}",
        f"/openai/deployments/prod-1/chat/completions{version}",
        f"/openai/deployments/text-embedding-3-small/embeddings{version}",
        f"/openai/responses{version}",
        f"/openai/responses/{response.id}{version}",
    ]
    headers = [dict(request["headers"]) for request in installation.simulator.requests()]
    assert all(item["api-key"] == "az-upstream" and "authorization" not in item for item in headers)
    first, second, *_ = installation.records(key=key, count=5)
    assert (first.requested_model, first.upstream_model, first.provider) == ("gpt-4o", "gpt-4o", "azure")
    assert first.cost_nanos > 0 and not first.unpriced
    assert (second.usage_source, second.output_tokens) == ("provider", 5)


def test_a_deployment_of_the_clients_own_is_the_model(
    server: Server, installation: Installation, clients: ExitStack
) -> None:
    installation.account(kind="azure_openai", settings=MAPPED)
    key = installation.key()
    client = clients.enter_context(azure_client(server, key, azure_deployment="prod-1"))
    client.chat.completions.create(model="whatever", messages=HI)
    assert targets(installation) == [f"/openai/deployments/prod-1/chat/completions?api-version={VERSION}"]
    (record,) = installation.records(key=key)
    assert (record.requested_model, record.upstream_model, record.unpriced) == ("prod-1", "gpt-4o", False)


def test_the_azure_client_can_be_served_by_openai(
    server: Server, installation: Installation, clients: ExitStack
) -> None:
    installation.account(kind="openai")
    client = clients.enter_context(azure_client(server, installation.key()))
    client.chat.completions.create(model="gpt-4o", messages=HI)
    client.responses.create(model="gpt-4o", input="Hi")
    assert targets(installation) == ["/v1/chat/completions", "/v1/responses"]


@pytest.mark.parametrize(
    ("settings", "paths"),
    [
        ({}, ["/openai/v1/chat/completions", "/openai/v1/responses"]),
        (
            MAPPED,
            [
                f"/openai/deployments/prod-1/chat/completions?api-version={VERSION}",
                f"/openai/responses?api-version={VERSION}",
            ],
        ),
    ],
)
@ONE
def test_an_openai_client_can_be_served_by_azure(
    server: Server, installation: Installation, clients: ExitStack, settings: dict[str, Any], paths: list[str]
) -> None:
    installation.account(kind="azure_openai", settings=settings)
    client = clients.enter_context(OpenAI(api_key=installation.key(), base_url=f"{server.url}/v1", max_retries=0))
    client.chat.completions.create(model="gpt-4o", messages=HI)
    client.responses.create(model="gpt-4o", input="Hi")
    assert targets(installation) == paths


@ONE
def test_azures_v1_paths_stay_v1(server: Server, installation: Installation, clients: ExitStack) -> None:
    installation.account(kind="azure_openai", settings=MAPPED)
    base_url = f"{server.url}/azure/openai/v1"
    client = clients.enter_context(OpenAI(api_key=installation.key(), base_url=base_url, max_retries=0))
    client.chat.completions.create(model="gpt-4o", messages=HI)
    client.embeddings.create(model="emb", input="x")
    client.responses.create(model="gpt-4o", input="Hi")
    assert targets(installation) == [
        "/openai/v1/chat/completions",
        "/openai/v1/embeddings",
        "/openai/v1/responses",
    ]
    assert [model.id for model in client.models.list()] == ["gpt-4o"]


@ONE
def test_a_missing_deployment_is_not_found(server: Server, installation: Installation, clients: ExitStack) -> None:
    installation.account(kind="azure_openai", settings=MAPPED)
    client = clients.enter_context(azure_client(server, installation.key()))
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o~error=deployment", messages=HI)
    assert caught.value.code == "DeploymentNotFound"


@ONE
@pytest.mark.parametrize("deployment", ["..", "a%2F..%2Fb", "x%00y"])
def test_a_deployment_is_no_way_to_another_path(server: Server, installation: Installation, deployment: str) -> None:
    installation.account(kind="azure_openai", settings=MAPPED)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    path = f"/azure/openai/deployments/{deployment}/chat/completions?api-version=1"
    connection.request("POST", path, b'{"messages":[]}', {"api-key": installation.key()})
    assert connection.getresponse().status in {400, 404}
    connection.close()
    assert installation.simulator.requests() == []
