"""The live page's socket: staff only, what is in flight and what ended, at most four messages a second."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from tests.harness import Installation, Server
from tests.test_pipeline import call

MODEL = "claude-sonnet-5-5"


@contextmanager
def watching(server: Server, user: User | None) -> Iterator[ClientConnection]:
    headers = {}
    if user is not None:
        client = Client()
        client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
        headers["Cookie"] = f"sessionid={client.cookies['sessionid'].value}"
    url = f"ws://127.0.0.1:{server.port}/ws/live/"
    origin = Origin(f"http://127.0.0.1:{server.port}")
    with connect(url, additional_headers=headers, origin=origin) as socket:
        yield socket


def pictures(socket: ClientConnection, *, seconds: float) -> list[dict[str, Any]]:
    """All messages of so many seconds."""
    until, found = time.monotonic() + seconds, []
    while (left := until - time.monotonic()) > 0:
        try:
            found.append(json.loads(socket.recv(timeout=left)))
        except TimeoutError:
            break
    return found


def test_staff_see_a_call_in_flight_and_its_end(server: Server, installation: Installation) -> None:
    admin = User.objects.create_superuser("watcher", password="a long password of no use")
    account = installation.account()
    key = installation.key(name="the key")
    with watching(server, admin) as socket:
        pictures(socket, seconds=0.6)
        caller = threading.Thread(target=call, args=(server, key, f"{MODEL}~chunks=10~delay=0.1~size=40"))
        caller.start()
        seen = pictures(socket, seconds=2.2)
        caller.join()
    in_flight = [picture["calls"][0] for picture in seen if picture["calls"]]
    assert {(live["key"], live["account"]) for live in in_flight} >= {("the key", account.name)}
    assert in_flight[-1]["tokens"] > 0
    (ended,) = [ended for picture in seen for ended in picture["ended"]]
    assert (ended["status"], ended["key"]) == ("ok", "the key")
    assert sum(picture["ended_cost_nanos"] for picture in seen) == ended["cost_nanos"] > 0


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_viewer_gets_at_most_four_messages_a_second(server: Server, installation: Installation) -> None:
    admin = User.objects.create_superuser("watcher", password="a long password of no use")
    installation.account()
    key = installation.key()
    with watching(server, admin) as socket:
        callers = [threading.Thread(target=call, args=(server, key, MODEL)) for _ in range(20)]
        for caller in callers:
            caller.start()
        seen = pictures(socket, seconds=2)
        for caller in callers:
            caller.join()
    assert 4 <= len(seen) <= 9


@pytest.mark.parametrize("who", ["nobody", "no staff", "staff without the right"])
def test_others_are_turned_away(server: Server, installation: Installation, who: str) -> None:
    user = None
    if who != "nobody":
        user = User.objects.create_user("someone", is_staff=who.startswith("staff"))
    with watching(server, user) as socket, pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=5)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4403


@pytest.mark.parametrize("how", ["switched off", "signed out"])
def test_a_viewer_who_may_no_longer_watch_is_turned_away(server: Server, installation: Installation, how: str) -> None:
    admin = User.objects.create_superuser("watcher", password="a long password of no use")
    with watching(server, admin) as socket:
        pictures(socket, seconds=0.6)
        if how == "switched off":
            User.objects.update(is_active=False)
        else:
            Session.objects.all().delete()
        with pytest.raises(ConnectionClosed) as closed:
            pictures(socket, seconds=10)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4403


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_viewer_who_sees_nothing_for_long_stays_connected(server: Server, installation: Installation) -> None:
    """Redis answers a wait for messages only after 5 s of silence; that must not end the page's connection."""
    admin = User.objects.create_superuser("watcher", password="a long password of no use")
    with watching(server, admin) as socket:
        seen = pictures(socket, seconds=7)
    assert len(seen) > 20 and seen[-1]["relays"] >= 1
