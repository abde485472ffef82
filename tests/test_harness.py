"""The tests' own ground: servers start and stop, and what one test writes the next does not see."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from apikeys.models import Team
from tests.harness import Installation, Server


def status(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as response:
        return int(response.status)


def test_it_serves_the_sign_in_page_from_both_servers(server: Server) -> None:
    assert status(f"{server.url}/admin/login/") == 200


def test_a_server_of_its_own_stops_cleanly(start_server: Callable[..., Server]) -> None:
    server = start_server(RELAY_COMMIT_AFTER="1")
    assert status(f"{server.url}/admin/login/") == 200
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["first", "second"])
def test_rows_of_a_test_without_transaction_are_gone_after_it(name: str) -> None:
    assert list(Team.objects.values_list("name", flat=True)) == []
    Team.objects.create(name=name)


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["first", "second"])
def test_rows_of_a_test_in_a_transaction_are_gone_after_it(name: str) -> None:
    assert list(Team.objects.values_list("name", flat=True)) == []
    Team.objects.create(name=name)


def test_the_simulator_tells_what_it_received(installation: Installation) -> None:
    with pytest.raises(urllib.error.HTTPError):
        status(f"{installation.simulator.url}/nothing?here=1")
    [request] = installation.simulator.requests()
    assert (request["method"], request["target"], request["body"]) == ("GET", "/nothing?here=1", b"")
    assert installation.simulator.open() == 0
