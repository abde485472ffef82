"""Claude on OAuth credentials: access tokens are got by the refresh token, once, and stored encrypted."""

from __future__ import annotations

import threading

import pytest

from accounts.models import AccountToken
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
