"""Two tenants on one account: no id that one key received works for another, on any path that takes one."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any

import pytest

from apikeys.models import Team
from tests.harness import Installation, Server

ONE = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
MODEL = "gpt-4o"
AZURE = {"api_version": "2025-04-01-preview", "deployment_map": {MODEL: "prod"}}
# Prefix of the client's paths, kind of the account, its further columns.
DOORS: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1": ("openai", {}),
    "/openai/v1": ("openai", {}),
    "/openai": ("openai_compatible", {}),
    "/azure/openai": ("azure_openai", {"settings": AZURE}),
    "/azure/openai/v1": ("azure_openai", {}),
}
# Every call that takes the id of a stored response: method, path after the prefix, whether the body names it.
CALLS = (
    ("GET", "/responses/{id}", False),
    ("GET", "/responses/{id}?stream=true", False),
    ("GET", "/responses/{id}/input_items", False),
    ("POST", "/responses/{id}/cancel", False),
    ("POST", "/responses", True),
    ("POST", "/responses/compact", True),
    ("POST", "/responses/input_tokens", True),
    ("DELETE", "/responses/{id}", False),
)
# The teams of the one who made it and of the one who wants it.
STRANGERS = [("a", "b"), ("a", ""), ("", "a"), ("", "")]
CLAUDE = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}


def send(server: Server, method: str, path: str, key: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """One raw request; returns status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}", "anthropic-version": "2023-06-01"}
    try:
        connection.request(method, path, json.dumps(body).encode() if body is not None else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def made(server: Server, door: str, key: str, *, stream: bool) -> str:
    """The id of a new response, as its maker received it."""
    status, text = send(server, "POST", f"{door}/responses", key, {"model": MODEL, "input": "Mine", "stream": stream})
    assert status == 200, text
    found = re.search(r"resp_\w+", text)
    assert found is not None
    return found[0]


def use(server: Server, door: str, key: str, name: str) -> list[tuple[int, str]]:
    """Every call that names the response, the last one deletes it."""
    answers = []
    for method, path, in_body in CALLS:
        body = {"model": MODEL, "input": "On", "previous_response_id": name} if in_body else None
        answers.append(send(server, method, f"{door}{path.format(id=name)}", key, body))
    return answers


def key_in(installation: Installation, team: str) -> str:
    return installation.key(team=Team.objects.get_or_create(name=team)[0] if team else None)


@ONE
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("door", DOORS)
def test_a_stranger_finds_nothing_behind_any_door(
    server: Server, installation: Installation, door: str, stream: bool
) -> None:
    kind, fields = DOORS[door]
    installation.account(kind=kind, **fields)
    name = made(server, door, key_in(installation, "a"), stream=stream)
    stranger, mate = key_in(installation, "b"), key_in(installation, "a")
    installation.simulator.forget()
    for other in DOORS:
        for status, text in use(server, other, stranger, name):
            assert (status, "not found" in json.loads(text)["error"]["message"]) == (404, True), (other, text)
    assert installation.simulator.requests() == []
    # It was there all the time; a response that has ended can't be cancelled.
    assert [status for status, _ in use(server, door, mate, name)] == [200, 200, 200, 400, 200, 200, 200, 200]


@ONE
@pytest.mark.parametrize(("owner", "other"), STRANGERS)
def test_no_team_is_not_the_same_team(server: Server, installation: Installation, owner: str, other: str) -> None:
    installation.account(kind="openai")
    maker, stranger = key_in(installation, owner), key_in(installation, other)
    name = made(server, "/v1", maker, stream=False)
    assert {status for status, _ in use(server, "/v1", stranger, name)} == {404}
    # The same from the record, once the relay's memory of it is gone.
    installation.records(key=maker)
    assert {status for status, _ in use(server, "/v1", stranger, name)} == {404}
    assert send(server, "GET", f"/v1/responses/{name}", maker)[0] == 200


@ONE
def test_what_a_stranger_was_told_is_no_hint(server: Server, installation: Installation) -> None:
    installation.account(kind="openai")
    name = made(server, "/v1", key_in(installation, "a"), stream=False)
    unknown = name[:-4] + "0000"
    stranger = key_in(installation, "b")
    real, invented = use(server, "/v1", stranger, name), use(server, "/v1", stranger, unknown)
    hidden = [re.sub(r"req_\w+|[0-9a-f-]{36}", "X", text.replace(name, "X")) for _, text in real]
    assert hidden == [re.sub(r"req_\w+|[0-9a-f-]{36}", "X", text.replace(unknown, "X")) for _, text in invented]


@ONE
@pytest.mark.parametrize(("owner", "other"), STRANGERS)
def test_a_thread_of_claude_s_goes_on_for_its_own_tenant_alone(
    server: Server, installation: Installation, owner: str, other: str
) -> None:
    """`thread.previous_message_id` is state at the vendor's, like a stored response."""
    installation.account(credential={"api_key": "sk-ant-holder"}, priority=2)
    maker = key_in(installation, owner)
    _, text = send(server, "POST", "/v1/messages", maker, {**CLAUDE, "thread": {}})
    name = json.loads(text)["id"]
    installation.account(credential={"api_key": "sk-ant-other"}, priority=1)
    installation.simulator.forget()
    goes_on = {**CLAUDE, "thread": {"previous_message_id": name}}
    status, text = send(server, "POST", "/v1/messages", key_in(installation, other), goes_on)
    assert (status, json.loads(text)["error"]["type"]) == (404, "not_found_error")
    assert installation.simulator.requests() == []
    keys = [maker, key_in(installation, owner)] if owner else [maker]
    assert {send(server, "POST", "/v1/messages", key, goes_on)[0] for key in keys} == {200}
    received = [dict(request["headers"])["x-api-key"] for request in installation.simulator.requests()]
    assert received == ["sk-ant-holder"] * len(keys)
