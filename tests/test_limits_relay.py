"""Limits on real relays: what clients read, and that counters are the ledger's, also after a kill."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from apikeys.models import Limit
from tests.harness import Installation, Server, manage, wait_for

MODEL = "claude-sonnet-5-5"
uvicorn = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)


def call(server: Server, key: str, *, path: str = "/v1/messages", sim: str = "", **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}], **fields}
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"} | ({"x-sim": sim} if sim else {})
    return httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=30)


def checked(server: Server) -> dict[str, Any]:
    """What `check_counters` says; it must find nothing wrong."""
    ended = manage("check_counters", "--json", data=server.data, server=server)
    report: dict[str, Any] = json.loads(ended.stdout or "{}")
    assert ended.returncode == 0 and report["ok"], f"{report} {ended.stderr}"
    return report


def standing(server: Server, key: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{server.url}/api/v1/usage", headers={"x-api-key": key}, timeout=20)
    limits: list[dict[str, Any]] = answer.json()["limits"]
    return limits


@uvicorn
def test_a_strict_budget_is_never_overrun_and_says_why_it_is_spent(server: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key(limits=["cost 0.002 per day strict in Asia/Kathmandu", "requests 1000 per minute"])
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: call(server, key), range(40)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {402}
    error = refused[-1].json()["error"]
    assert error["type"] == "billing_error"
    assert "The budget of $0.002 per day of this API key" in error["message"]
    assert "Asia/Kathmandu" in error["message"]
    assert refused[-1].headers["x-should-retry"] == "false"
    assert 0 < int(refused[-1].headers["retry-after"]) <= 86_400
    count_tokens = call(server, key, path="/v1/messages/count_tokens")
    assert count_tokens.status_code == 200

    def carried() -> list[Any]:
        found = [record for record in installation.records(key=key) if record.status == "ok"]
        return found if len(found) == len(answers) - len(refused) + 1 else []

    spent = sum(record.cost_nanos for record in wait_for(carried, seconds=5, what="every carried call's record"))
    assert 0 < spent <= 2_000_000
    assert standing(server, key)[0]["used"] == spent
    assert checked(server)["unseeded"] == 0


@uvicorn
def test_a_rate_and_a_place_are_refused_with_a_wait_that_clients_sit_out(
    server: Server, installation: Installation
) -> None:
    installation.account()
    key = installation.key(limits=["requests 3 per minute", "concurrency 1"])
    first = threading.Thread(target=call, args=(server, key), kwargs={"sim": "chunks=5,delay=0.4"})
    first.start()
    wait_for(lambda: standing(server, key)[1]["used"] == 1, seconds=5, what="the first call in flight")
    busy = call(server, key)
    first.join()
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "5")
    assert "Too many calls at a time" in busy.json()["error"]["message"]
    answers = [call(server, key) for _ in range(3)]
    if [answer.status_code for answer in answers] == [200, 200, 429]:  # else the minute turned meanwhile
        assert 0 < int(answers[-1].headers["retry-after"]) <= 60
        assert "x-should-retry" not in answers[-1].headers
    checked(server)


def told(answer: httpx.Response, prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in answer.headers.items() if name.startswith(prefix)}


@uvicorn
def test_answers_tell_batons_own_limits_in_the_dialects_headers(server: Server, installation: Installation) -> None:
    """The simulator sends rate-limit headers of its own: those are the account's, and stay inside."""
    installation.account()
    installation.account(kind="openai", provider="openai")
    installation.account(kind="gemini", provider="google")
    key = installation.key(limits=["requests 5 per day", "tokens 1000000 per day", "cost 5 per day"])
    anthropic = "anthropic-ratelimit-"
    plain, streamed = call(server, key), call(server, key, stream=True)
    for number, answer in enumerate((plain, streamed), start=1):
        assert answer.status_code == 200
        figures = told(answer, anthropic)
        assert (figures["requests-limit"], figures["requests-remaining"]) == ("5", str(5 - number))
        assert figures["tokens-limit"] == "1000000" and 0 < int(figures["tokens-remaining"]) < 1_000_000
        assert figures["requests-reset"].endswith("T00:00:00Z") and len(figures) == 6
    chat = {"model": "gpt-5.4", "messages": [{"role": "user", "content": "Hello"}]}
    openai = httpx.post(f"{server.url}/v1/chat/completions", json=chat, headers={"x-api-key": key}, timeout=30)
    figures = told(openai, "x-ratelimit-")
    assert (openai.status_code, figures["limit-requests"], figures["remaining-requests"]) == (200, "5", "2")
    assert figures["reset-requests"].endswith("s")
    gemini = httpx.post(
        f"{server.url}/v1beta/models/gemini-2.5-flash:generateContent",
        json={"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]},
        headers={"x-goog-api-key": key},
        timeout=30,
    )
    assert gemini.status_code == 200 and not [name for name in gemini.headers if "ratelimit" in name]
    call(server, key)
    refused = call(server, key)
    assert refused.status_code == 429
    assert told(refused, anthropic)["requests-remaining"] == "0" and len(told(refused, anthropic)) == 3
    free = call(server, installation.key())
    assert free.status_code == 200 and not told(free, anthropic)


@uvicorn
def test_a_new_limit_counts_what_the_ledger_has_already(server: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key()
    for _ in range(2):
        assert call(server, key).status_code == 200
    installation.records(key=key, count=2)
    Limit.objects.create(key=installation.key_row(key), metric="requests", amount=3, per="month")
    installation.published()
    assert [call(server, key).status_code for _ in range(2)] == [200, 429]
    checked(server)


@pytest.mark.slow
def test_a_killed_call_keeps_its_share_of_a_strict_budget(
    start_server: Callable[..., Server], installation: Installation, tmp_path: Path
) -> None:
    installation.account()
    relay = start_server(data=tmp_path / "relay")
    key = installation.key(limits=["cost 0.01 per day strict", "concurrency 1"])

    def hang() -> None:
        with contextlib.suppress(httpx.HTTPError):  # the relay is killed under it
            call(relay, key, sim="hang=before", stream=True, max_tokens=30)

    client = threading.Thread(target=hang)
    client.start()
    wait_for(lambda: standing(relay, key)[1]["used"] == 1, seconds=10, what="the call in flight")
    relay.kill()
    client.join()

    again = start_server(data=tmp_path / "relay")
    (dead,) = installation.records(key=key, seconds=20)
    assert (dead.status, dead.usage_source) == ("interrupted", "none")
    assert dead.held_nanos > 0
    limits = standing(again, key)
    assert (limits[0]["used"], limits[1]["used"]) == (dead.held_nanos, 0)
    # A smaller budget goes on with the same counter: the dead call leaves no room for another.
    Limit.objects.filter(metric="cost").update(amount=dead.held_nanos + 1)
    installation.published()
    assert call(again, key, max_tokens=30).status_code == 402
    assert checked(again)["held"] == {"records": 1, "nanos": dead.held_nanos}


@uvicorn
def test_a_key_learns_what_it_may_and_where_it_stands(server: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key(name="ada", families=["claude"], limits=["cost 5 per month", "requests 10 per day"])
    assert call(server, key).status_code == 200
    (record,) = installation.records(key=key)
    told = httpx.get(f"{server.url}/api/v1/key-info", headers={"authorization": f"Bearer {key}"}, timeout=20).json()
    assert (told["name"], told["families"]) == ("ada", ["claude"])
    usage = httpx.get(f"{server.url}/api/v1/usage", headers={"authorization": f"Bearer {key}"}, timeout=20).json()
    cost, requests = usage["limits"]
    assert (cost["used"], cost["remaining"]) == (record.cost_nanos, 5 * 10**9 - record.cost_nanos)
    assert (requests["used"], requests["remaining"], requests["per"]) == (1, 9, "day")
    assert requests["resets_at"].endswith("T00:00:00Z")
    assert "Bearer" not in str(told) and key not in str(told) + str(usage)


@uvicorn
def test_what_never_fits_into_a_strict_limit_of_an_account_is_told(server: Server, installation: Installation) -> None:
    account = installation.account()
    Limit.objects.create(account=account, metric="cost", amount=10_000_000, per="day", strict=True)
    installation.published()
    key = installation.key()
    unpriced, large = call(server, key, model="claude-unpriced-x"), call(server, key, max_tokens=1_000_000)
    assert (unpriced.status_code, large.status_code) == (400, 503)
    assert large.headers["x-should-retry"] == "false" and "retry-after" in large.headers
    records = installation.records(key=key, count=2)
    assert [record.status for record in records] == ["refused", "refused"]
    assert records[1].candidates[0]["reason"] == "its 0.01 USD per day are less than this call could use"


NO_REDIS = "redis://127.0.0.1:9/0"  # nothing listens on the discard port


@pytest.mark.slow
@pytest.mark.parametrize(("word", "status"), [("closed", 503), ("open", 200)])
def test_a_limit_that_cannot_be_checked_refuses_or_admits_as_the_setting_says(
    start_server: Callable[..., Server], installation: Installation, word: str, status: int
) -> None:
    installation.account()
    relay = start_server(REDIS_URL=NO_REDIS, RELAY_LIMITS_FAIL=word)
    limited, free = installation.key(limits=["cost 5 per day strict"]), installation.key()
    answer = call(relay, limited)
    assert answer.status_code == status
    if status == 503:
        assert answer.headers["retry-after"] == "5"
    assert call(relay, free).status_code == 200


@pytest.mark.slow
def test_an_account_whose_slots_cannot_be_counted_is_passed_over(
    start_server: Callable[..., Server], installation: Installation
) -> None:
    installation.account(slots=5, priority=1)
    relay, key = start_server(REDIS_URL=NO_REDIS), installation.key()
    assert call(relay, key).status_code == 503
    installation.account(priority=2)
    installation.published()
    assert call(relay, key).status_code == 200
    assert [record.status for record in installation.records(key=key, count=2)] == ["refused", "ok"]


@uvicorn
def test_a_call_that_no_account_could_take_counts_nowhere(server: Server, installation: Installation) -> None:
    installation.account(slots=1)
    key = installation.key(limits=["requests 5 per day", "tokens 100000 per day"])
    with httpx.stream(
        "POST",
        f"{server.url}/v1/messages",
        json={
            "model": f"{MODEL}~chunks=3~hang=2",
            "max_tokens": 20,
            "stream": True,
            "messages": [{"role": "user", "content": "Hi"}],
        },
        headers={"x-api-key": key, "anthropic-version": "2023-06-01"},
        timeout=20,
    ) as answer:
        assert answer.status_code == 200
        assert [call(server, key).status_code for _ in range(3)] == [503] * 3
        requests = next(limit for limit in standing(server, key) if limit["metric"] == "requests")
        assert requests["used"] == 1
    installation.records(key=key, count=4)
    server.wait_idle()
    checked(server)
