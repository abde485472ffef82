"""Selection and rest as a client and an admin see them: a real relay, a real upstream, the records that calls leave."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from django.core.management import call_command

from accounts.models import Account, AccountEvent
from relay.explain import explain_now
from tests.harness import Installation, Server, wait_for
from tests.test_api_messages import MODEL, create

pytestmark = [pytest.mark.e2e, pytest.mark.parametrize("server", ["uvicorn"], indirect=True)]


def failed(server: Server, key: str, **changes: Any) -> anthropic.APIStatusError:
    with pytest.raises(anthropic.APIStatusError) as caught:
        create(server, key, **changes)
    return caught.value


def reasons(record: Any) -> dict[str, str]:
    return {row["account"]: row["reason"] for row in record.candidates}


def turn(server: Server, key: str, session: str) -> None:
    """One turn of a conversation, by a client that names its session."""
    create(server, key, extra_headers={"x-claude-code-session-id": session})


def test_conversations_stay_and_move_once_when_their_account_goes(server: Server, installation: Installation) -> None:
    accounts = [installation.account() for _ in range(3)]
    key, sessions = installation.key(), [f"session-{number}" for number in range(9)]
    for _ in range(3):
        for session in sessions:
            turn(server, key, session)
    before = [record.account_name for record in installation.records(key=key, count=27)]
    assert before[:9] == before[9:18] == before[18:]
    assert sorted(Counter(before[:9]).values()) == [3, 3, 3]
    call_command("set_account", accounts[0].name, "active=false")
    installation.published()
    for _ in range(2):
        for session in sessions:
            turn(server, key, session)
    records = installation.records(key=key, count=45)[27:]
    after = [record.account_name for record in records]
    moved = [first != now for first, now in zip(before, after[:9], strict=False)]
    assert after[:9] == after[9:] and moved.count(True) == 3
    assert [reasons(record)[record.account_name] for record in records[9:]] == ["same conversation"] * 9
    assert reasons(records[0])[accounts[0].name] == "switched off"


def test_the_only_account_overloaded_twenty_times_answers_the_next_call_at_once(
    server: Server, installation: Installation
) -> None:
    installation.account(credential={"api_key": "sk-ant-sim~error=529x20"})
    key = installation.key()
    assert [failed(server, key).status_code for _ in range(20)] == [529] * 20
    create(server, key)
    assert len(installation.simulator.requests()) == 21


def test_a_call_walks_at_most_four_accounts_none_of_them_twice_and_each_try_is_on_the_record(
    server: Server, installation: Installation
) -> None:
    sick = [installation.account(credential={"api_key": f"sk-ant-sim{n}~error=529"}, priority=n) for n in range(6)]
    key = installation.key(bind=sick)
    answer = failed(server, key)
    assert (answer.status_code, answer.response.headers["retry-after"]) == (529, "5")
    (record,) = installation.records(key=key)
    tried = [(attempt["account"], attempt["status"]) for attempt in record.attempts]
    assert tried == [(account.name, 529) for account in sick[:4]]


def test_a_named_reset_of_the_only_account_is_answered_without_asking_again(
    server: Server, installation: Installation
) -> None:
    installation.account(credential={"api_key": "sk-ant-sim~error=429~retry_after=40"})
    key = installation.key()
    first, second = failed(server, key), failed(server, key)
    assert (first.status_code, second.status_code) == (429, 429)
    assert 30 < int(second.response.headers["retry-after"]) <= 40
    assert len(installation.simulator.requests()) == 1


def test_one_users_overload_does_not_keep_a_bound_key_from_its_only_account(
    server: Server, installation: Installation
) -> None:
    sick = installation.account(credential={"api_key": "sk-ant-sim~error=529x1"}, priority=1)
    well = installation.account(priority=2)
    pool, bound = installation.key(), installation.key(bind=[sick])
    create(server, pool)
    create(server, pool)
    create(server, bound)
    first, second = installation.records(key=pool, count=2)
    assert [attempt["account"] for attempt in first.attempts] == [sick.name, well.name]
    assert reasons(second)[sick.name].startswith("this model rests ")
    (third,) = installation.records(key=bound)
    assert reasons(third)[sick.name].endswith("after 529, but no other account is left")


def test_a_row_that_cannot_be_decrypted_is_left_out_and_explained(server: Server, installation: Installation) -> None:
    broken, well = installation.account(priority=1), installation.account(priority=2)
    Account.objects.filter(pk=broken.pk).update(credential=b"garbage")
    installation.published()
    key = installation.key()
    create(server, key)
    (record,) = installation.records(key=key)
    assert record.account_name == well.name
    assert reasons(record)[broken.name].startswith("credential can't be decrypted")


def test_a_quota_of_an_account_sends_calls_elsewhere_once_it_is_spent(
    server: Server, installation: Installation
) -> None:
    small, large = installation.account(priority=1), installation.account(priority=2)
    small.limits.create(metric="requests", amount=2, per="day")
    installation.published()
    key = installation.key()
    for _ in range(3):
        create(server, key)
    records = installation.records(key=key, count=3)
    assert [record.account_name for record in records] == [small.name, small.name, large.name]
    assert reasons(records[2])[small.name].startswith("its 2 requests per day are used up, for ")


def test_calls_find_a_router_by_its_address(server: Server, installation: Installation) -> None:
    router = installation.account(kind="ccr")
    plain = installation.account()
    key = installation.key()
    create(server, key, model=f"ccr,{MODEL}")
    create(server, key)
    records = installation.records(key=key, count=2)
    assert [record.account_name for record in records] == [router.name, plain.name]
    assert (records[0].requested_model, records[0].upstream_model) == (f"ccr,{MODEL}", MODEL)
    sent = json.loads(installation.simulator.requests()[0]["body"])
    assert sent["model"] == MODEL


def test_rests_survive_a_restart(
    server: Server, start_server: Callable[..., Server], installation: Installation, tmp_path: Path, settings: Any
) -> None:
    sick = installation.account(credential={"api_key": "sk-ant-bad"})
    key = installation.key(name="mine")
    first = start_server(data=tmp_path / "relay")
    assert failed(first, key).status_code == 502
    wait_for(
        lambda: AccountEvent.objects.filter(account_id=sick.pk, kind="credential").exists(), seconds=5, what="event"
    )
    first.kill()
    second = start_server(data=tmp_path / "relay")
    settings.RELAY_INTERNAL_URL = second.url
    told = explain_now("mine", MODEL)
    assert (told["live"], told["status"]) == (True, 503)
    assert told["candidates"][0]["reason"].endswith("after its credential or balance was rejected")
    assert failed(second, key).status_code == 503


def test_encrypted_reasoning_goes_to_the_account_that_made_it_and_to_no_other(
    server: Server, installation: Installation
) -> None:
    """Only keys of that organisation can read it: another account would answer 400."""
    accounts = [installation.account(kind="openai", provider="openai") for _ in range(2)]
    key = installation.key()
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}

    def ask(*items: dict[str, Any]) -> httpx.Response:
        said = {"type": "message", "role": "user", "content": "Hello"}
        body = {"model": "gpt-5.4", "store": False, "prompt_cache_key": "c1", "input": [*items, said]}
        return httpx.post(
            f"{server.url}/v1/responses", json=body, headers={"authorization": f"Bearer {key}"}, timeout=30
        )

    assert [ask().status_code, ask(reasoning).status_code] == [200, 200]
    first, second = installation.records(key=key, count=2)
    assert second.account_name == first.account_name
    call_command("set_account", first.account_name, "active=false")
    installation.published()
    refused, free = ask(reasoning), ask()
    other = next(account for account in accounts if account.name != first.account_name)
    assert (refused.status_code, free.status_code) == (503, 200)
    third, fourth = installation.records(key=key, count=4)[2:]
    assert reasons(third)[other.name] == "the conversation is tied to another account"
    assert fourth.account_name == other.name
