"""The contract for scripts (DESIGN section 8), run as scripts run it: one JSON document on stdout and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from accounts.models import Account
from apikeys.models import ApiKey
from tests.harness import Installation, Server, manage, wait_for

MODEL = "claude-sonnet-5-5"


@pytest.fixture
def said(tmp_path: Path) -> Any:
    """Run a command with --json and return its one document; it must succeed."""

    def run(*arguments: str, server: Server | None = None) -> Any:
        ended = manage(*arguments, "--json", data=tmp_path, server=server)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    return run


def call(server: Server, key: str, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}], **fields}
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
    return httpx.post(f"{server.url}/v1/messages", json=body, headers=headers, timeout=20)


@pytest.mark.slow
@pytest.mark.timeout(400)  # a dozen processes, each of which starts Django
@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_from_an_account_and_a_key_to_a_record_and_its_roll_up(
    server: Server, installation: Installation, said: Any
) -> None:
    account = said(
        *("create_account", "claude_console", "main", "--base-url", installation.simulator.url),
        *("--credential", "api_key=sk-ant-upstream", "--priority", "10", "--set", "slots=5"),
    )
    assert account == {"id": Account.objects.get().pk, "name": "main", "kind": "claude_console"}
    key = said(
        *("create_key", "ci", "--provider", "claude", "--limit", "cost 5 per day strict", "--limit", "concurrency 4"),
        *("--bind", "main", "--model", "claude-*", "--team", "research", "--tag", "job=nightly"),
    )
    assert key == {"id": ApiKey.objects.get().pk, "name": "ci", "key": key["key"]}

    # Both are in force without a restart: the key at once, the account within two seconds.
    wait_for(lambda: call(server, key["key"]).status_code == 200, seconds=2, what="the account in force")
    answer = call(server, key["key"])
    call_id = answer.headers["x-request-id"]

    def record() -> Any:
        return said("usage", "--call", call_id)

    [shown] = wait_for(record, seconds=5, what="the record")
    assert (shown["id"], shown["key"], shown["team"], shown["account"]) == (call_id, "ci", "research", "main")
    assert (shown["status"], shown["usage_source"], shown["tags"]) == ("ok", "provider", {"job": "nightly"})
    assert shown["output_tokens"] == answer.json()["usage"]["output_tokens"]
    assert shown["cost_nanos"] == sum(line["cost"] for line in shown["lines"])
    assert said("usage", "--key", "ci", "--since", shown["created_at"])[-1] == shown

    assert said("explain", "--call", call_id, server=server)
    assert said("explain", "--key", "ci", "--model", MODEL, server=server)
    said("rollup")
    assert said("reconcile", server=server)["ok"] is True

    said("set_key", "ci", "active=false")
    wait_for(lambda: call(server, key["key"]).status_code == 401, seconds=2, what="the key out of force")
    said("set_key", "ci", "active=true")
    said("set_account", "main", "active=false")
    wait_for(
        lambda: call(server, key["key"]).status_code in (403, 404, 503), seconds=2, what="the account out of force"
    )


@pytest.mark.django_db(transaction=True)
def test_prices_are_set_and_synced(said: Any) -> None:
    assert said("set_price", "anthropic", "claude-x", "input_tokens=3", "output_tokens=15.000001")
    assert isinstance(said("sync_prices"), dict)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "arguments, named",
    [
        (["create_account", "mainframe", "main", "--credential", "api_key=x"], "mainframe"),
        (["create_key", "ci", "--limit", "kisses 5 per day"], "kisses"),
        (["set_account", "nobody", "active=false"], "nobody"),
        (["set_key", "nobody", "active=false"], "nobody"),
        (["usage", "--key", "nobody"], "nobody"),
        (["set_price", "anthropic", "claude-x", "kisses=1"], "kisses"),
    ],
)
def test_what_does_not_exist_is_refused_by_name_and_nothing_is_saved(
    arguments: list[str], named: str, tmp_path: Path
) -> None:
    ended = manage(*arguments, "--json", data=tmp_path)
    assert ended.returncode != 0
    assert ended.stdout == ""
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not Account.objects.exists()
    assert not ApiKey.objects.exists()
