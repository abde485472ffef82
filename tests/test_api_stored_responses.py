"""Stored responses: who reaches them, and on which account."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from openai import OpenAI

from apikeys.models import Team
from tests.harness import Installation, Server

MODEL = "gpt-5.6-luna"
Connect = Callable[[str], OpenAI]
# Each is one call that names a response.
CALLS: dict[str, Callable[[OpenAI, str], Any]] = {
    "retrieve": lambda client, name: client.responses.retrieve(name),
    "retrieve as a stream": lambda client, name: list(client.responses.retrieve(name, stream=True)),
    "delete": lambda client, name: client.responses.delete(name),
    "cancel": lambda client, name: client.responses.cancel(name),
    "input items": lambda client, name: list(client.responses.input_items.list(name)),
    "go on": lambda client, name: client.responses.create(model=MODEL, input="And?", previous_response_id=name),
    "compact": lambda client, name: client.responses.compact(model=MODEL, previous_response_id=name),
    "count": lambda client, name: client.responses.input_tokens.count(model=MODEL, previous_response_id=name),
}


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    """Make clients for keys; all are closed at the end."""
    with ExitStack() as opened:

        def client_of(key: str) -> OpenAI:
            return opened.enter_context(OpenAI(api_key=key, base_url=f"{server.url}/v1", max_retries=0))

        yield client_of


def made(client: OpenAI) -> str:
    return client.responses.create(model=MODEL, input="Remember me").id


def credentials(installation: Installation) -> list[str]:
    return [dict(request["headers"])["authorization"] for request in installation.simulator.requests()]


def test_its_maker_reaches_it(server: Server, installation: Installation, connect: Connect) -> None:
    installation.account(kind="openai")
    key = installation.key()
    client = connect(key)
    first = made(client)
    assert client.responses.retrieve(first).output_text == "You said: Remember me"
    assert [item.type for item in client.responses.input_items.list(first)] == ["message"]
    second = client.responses.create(model=MODEL, input="And?", previous_response_id=first)
    assert second.previous_response_id == first
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        client.responses.cancel(first)
    (event,) = client.responses.retrieve(first, stream=True)
    assert event.type == "response.completed"
    client.responses.delete(first)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first)
    records = installation.records(key=key, count=8)
    assert [record.endpoint for record in records] == [
        "responses",
        "responses_retrieve",
        "responses_input_items",
        "responses",
        "responses_cancel",
        "responses_retrieve",
        "responses_delete",
        "responses_retrieve",
    ]
    unmetered = [record for record in records if record.endpoint != "responses"]
    assert [(record.cost_nanos, record.lines, record.usage_source) for record in unmetered] == [(0, [], "none")] * 6


@pytest.mark.parametrize("call", CALLS)
def test_another_tenant_finds_nothing(server: Server, installation: Installation, connect: Connect, call: str) -> None:
    account = installation.account(kind="openai")
    name = made(connect(installation.key()))
    installation.simulator.forget()
    stranger = installation.key(bind=[account], team=Team.objects.create(name=f"strangers {call}"))
    with pytest.raises(openai.NotFoundError) as caught:
        CALLS[call](connect(stranger), name)
    with pytest.raises(openai.NotFoundError) as unknown:
        CALLS[call](connect(stranger), "resp_nobody_made")
    assert caught.value.message.replace(name, "X") == unknown.value.message.replace("resp_nobody_made", "X")
    assert installation.simulator.requests() == []
    first, _ = installation.records(key=stranger, count=2)
    assert (first.status, first.http_status, first.error) == ("refused", 404, "response_not_found")


@pytest.mark.parametrize("call", [name for name in CALLS if name != "cancel"])
def test_the_team_reaches_it(server: Server, installation: Installation, connect: Connect, call: str) -> None:
    installation.account(kind="openai")
    team = Team.objects.create(name=f"team {call}")
    maker = installation.key(team=team)
    name = made(connect(maker))
    mate = installation.key(team=team)
    CALLS[call](connect(mate), name)
    (record,) = installation.records(key=mate)
    assert (record.status, record.http_status) == ("ok", 200)


@pytest.mark.parametrize("call", [name for name in CALLS if name != "cancel"])
def test_it_is_looked_for_where_it_is_held(
    server: Server, installation: Installation, connect: Connect, call: str
) -> None:
    """The other account has priority by then: only the holder's credential finds the response."""
    installation.account(kind="openai", priority=10, credential={"api_key": "sk-holder"})
    client = connect(installation.key())
    name = made(client)
    installation.account(kind="openai", priority=1, credential={"api_key": "sk-other"})
    installation.simulator.forget()
    CALLS[call](client, name)
    assert credentials(installation) == ["Bearer sk-holder"]


def test_a_new_process_knows_it_from_the_record(
    installation: Installation, start_server: Callable[..., Server]
) -> None:
    installation.account(kind="openai", priority=10, credential={"api_key": "sk-holder"})
    key = installation.key()
    with OpenAI(api_key=key, base_url=f"{start_server().url}/v1", max_retries=0) as client:
        name = made(client)
    installation.records(key=key)
    installation.account(kind="openai", priority=1, credential={"api_key": "sk-other"})
    installation.simulator.forget()
    with OpenAI(api_key=key, base_url=f"{start_server().url}/v1", max_retries=0) as client:
        client.responses.retrieve(name)
        client.responses.create(model=MODEL, input="And?", previous_response_id=name)
    assert credentials(installation) == ["Bearer sk-holder"] * 2


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_spent_budget_does_not_hide_it(server: Server, installation: Installation, connect: Connect) -> None:
    installation.account(kind="openai")
    team = Team.objects.create(name="spent")
    maker = installation.key(team=team)
    name = made(connect(maker))
    installation.records(key=maker)
    poor = connect(installation.key(team=team, limits=["cost 0 per day"]))
    assert poor.responses.retrieve(name).id == name
    assert poor.responses.input_tokens.count(model=MODEL, input="x").input_tokens == 1
    with pytest.raises(openai.RateLimitError):
        made(poor)


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_failing_look_up_rests_no_account(server: Server, installation: Installation, connect: Connect) -> None:
    installation.account(kind="openai", credential={"api_key": "sk-holder"})
    client = connect(installation.key())
    name = made(client)
    with pytest.raises(openai.RateLimitError):
        client.responses.retrieve(name, extra_headers={"x-sim": "error=429,retry_after=30"})
    assert made(client)


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
@pytest.mark.parametrize("name", ["..", "a%2F..%2Fmodels", "x%3Fy", "%00"])
def test_an_id_is_no_way_to_another_path(
    server: Server, installation: Installation, connect: Connect, name: str
) -> None:
    installation.account(kind="openai")
    response = connect(installation.key())._client.get(
        f"{server.url}/v1/responses/{name}", headers={"authorization": f"Bearer {installation.key()}"}
    )
    assert response.status_code in {400, 404, 426}
    assert installation.simulator.requests() == []
