"""The live page in a real browser: calls come, run and go by, at most four messages a second, and it finds back."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest
from django.utils import timezone

from relay.models import UsageRecord
from tests.browser.conftest import Browse
from tests.harness import Installation, Server
from tests.test_pipeline import call

MODEL = "claude-sonnet-5-5"


def opened(page: Any) -> list[str]:
    """Open the page and wait until a relay reports; returns what the console says, as it comes."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: said.append(f"script: {error}"))
    page.goto("live/")
    page.wait_for_function("document.querySelector('[data-figure=relays]').textContent === '1'")
    return said


def test_a_call_is_shown_while_it_runs_and_goes_by_when_it_ends(
    browse: Browse, baton: Server, installation: Installation
) -> None:
    account, key = installation.account(name="on the simulator"), installation.key(name="laptop")

    def watch(page: Any) -> tuple[str, str, str, list[str]]:
        said = opened(page)
        caller = threading.Thread(target=call, args=(baton, key, f"{MODEL}~chunks=25~delay=0.1~size=40"))
        caller.start()
        running = (
            page.locator("#live-calls tbody tr")
            .filter(has_text="on the simulator")
            .filter(has_text=re.compile(r"\d{2}"))
        )
        running.wait_for()
        in_flight = running.inner_text()
        ended = page.locator("#live-ended tbody tr")
        ended.wait_for()
        caller.join()
        text = ended.inner_text()
        with page.expect_navigation():
            ended.locator("a").click()
        return in_flight, text, page.url, said

    in_flight, text, url, said = browse(watch)
    record = UsageRecord.objects.get()
    assert [word in in_flight for word in (MODEL, "laptop", account.name, "streaming")] == [True] * 4
    assert [word in text for word in ("ok", MODEL, "laptop", account.name)] == [True] * 4
    assert f"{record.cost_nanos / 1e9:.6f}"[:6] in text
    assert (str(record.pk) in url, said) == (True, [])


def test_a_burst_of_calls_is_four_messages_a_second(browse: Browse, baton: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key()

    def watch(page: Any) -> tuple[list[float], str, list[str]]:
        heard: list[float] = []
        page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: heard.append(time.monotonic())))
        said = opened(page)
        callers = [threading.Thread(target=calls, args=(baton, key, 10)) for _ in range(6)]
        for caller in callers:
            caller.start()
        while any(caller.is_alive() for caller in callers):
            page.wait_for_timeout(100)
        page.wait_for_function("document.querySelectorAll('#live-ended tbody tr').length === 50")
        return heard, page.locator("[data-figure=calls]").inner_text(), said

    heard, per_second, said = browse(watch)
    busiest = max(sum(1 for other in heard if at <= other < at + 1.0) for at in heard)
    assert 2 <= busiest <= 5  # four, and one that was late
    assert (float(per_second) > 0, said) == (True, [])
    assert UsageRecord.objects.count() == 60


def calls(server: Server, key: str, number: int) -> None:
    for _ in range(number):
        call(server, key, MODEL)


def test_it_says_that_it_is_stale_and_finds_back_by_itself(browse: Browse, installation: Installation) -> None:
    def watch(page: Any) -> tuple[str, int]:
        sockets: list[Any] = []
        away = False

        def route(socket: Any) -> None:
            if away:
                socket.close()
            else:
                socket.connect_to_server()
                sockets.append(socket)

        page.route_web_socket("**/ws/live/", route)
        page.goto("live/")
        page.wait_for_function("document.querySelector('[data-figure=relays]').textContent === '1'")
        notice = page.locator("#live-stale")
        notice.wait_for(state="hidden")
        away = True
        sockets[0].close()
        notice.wait_for(timeout=10_000)
        words = notice.inner_text()
        away = False
        notice.wait_for(state="hidden", timeout=20_000)
        return words, len(sockets)

    words, connections = browse(watch)
    assert connections == 2
    assert re.fullmatch(r"What you see is \d+ s old\. Reconnecting \.\.\.", words)


@pytest.mark.parametrize("theme,width", [("dark", 390)])
def test_with_calls_it_stands_on_a_phone(
    browse: Browse, baton: Server, installation: Installation, theme: str, width: int
) -> None:
    installation.account(name="an account with quite a long name, as people give them")
    key = installation.key(name="a key of a name that is no shorter than that of the account")

    def watch(page: Any) -> int:
        opened(page)
        call(baton, key, MODEL)
        page.locator("#live-ended tbody tr").wait_for()
        return int(page.evaluate("document.documentElement.scrollWidth"))

    assert browse(watch, theme=theme, width=width) <= width
    assert UsageRecord.objects.filter(created_at__lte=timezone.now()).count() == 1
