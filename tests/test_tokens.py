"""Claude on OAuth credentials: access tokens are got by the refresh token, once, and stored encrypted."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings

from accounts.models import AccountToken
from relay import tokens
from relay.call import Account
from relay.errors import AccountRejected
from relay.runtime import Runtime
from tests.harness import Installation, Server
from tests.test_api_messages import create


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_refresh_token_gets_an_access_token_for_all_calls(server: Server, installation: Installation) -> None:
    account = installation.account(kind="claude_official", credential={"refresh_token": "sk-ant-ort-first"})
    key = installation.key()
    callers = [threading.Thread(target=create, args=(server, key)) for _ in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    asked = [request for request in installation.simulator.requests() if request["path"] == "/v1/oauth/token"]
    assert len(asked) == 1
    assert {record.status for record in installation.records(key=key, count=5)} == {"ok"}
    row = AccountToken.objects.get(account=account)
    assert row.version == 1 and b"sk-ant" not in bytes(row.secret)


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_refused_refresh_rests_the_account(server: Server, installation: Installation) -> None:
    installation.account(kind="claude_official", credential={"refresh_token": "bad"})
    key = installation.key()
    for _ in range(2):
        with pytest.raises(Exception, match=r"Error code: 50[23]"):
            create(server, key)
    asked = [request for request in installation.simulator.requests() if request["path"] == "/v1/oauth/token"]
    assert len(asked) == 1


def test_two_relays_that_renew_all_the_time_ask_once_for_each_token(
    start_server: Callable[..., Server], installation: Installation
) -> None:
    """On Redis two processes, and without it (where a second relay may not start) one, with many calls at a time."""
    account = installation.account(kind="claude_official", credential={"refresh_token": "sk-ant-ort-first~expires=1"})
    servers = [start_server() for _ in range(2 if settings.REDIS_URL else 1)]
    key = installation.key()
    until = time.monotonic() + 6

    def keep_calling(server: Server) -> int:
        calls = 0
        while time.monotonic() < until:
            create(server, key)
            calls += 1
        return calls

    with ThreadPoolExecutor(4 * len(servers)) as callers:
        made = sum(callers.map(keep_calling, servers * 4))
    assert {record.status for record in installation.records(key=key, count=made)} == {"ok"}
    requests = installation.simulator.requests()
    spent = Counter(token_of(request) for request in requests if request["path"] == "/v1/oauth/token")
    assert len(spent) >= 4 and set(spent.values()) == {1}, spent
    assert len({credential_of(request) for request in requests if request["path"] == "/v1/messages"}) >= len(spent) - 1
    assert AccountToken.objects.get(account=account).version == len(spent)


def token_of(request: dict[str, Any]) -> str:
    """The refresh token that a request spends."""
    return str(json.loads(request["body"])["refresh_token"])


def credential_of(request: dict[str, Any]) -> str:
    return str(next(value for name, value in request["headers"] if name.lower() == "authorization"))


def test_a_key_that_can_not_be_read_is_a_credential_that_is_rejected() -> None:
    known = json.dumps({"type": "service_account", "client_email": "a@b.test", "private_key": "cut off"})
    account = Account(1, "v", "vertex", "", "google", credential={"service_account": known})
    with pytest.raises(AccountRejected) as caught:
        async_to_sync(tokens.ask)(cast("Runtime", None), account)
    assert (caught.value.rest, caught.value.try_next_account) == ("credential", True)
    assert "cut off" not in str(caught.value)
