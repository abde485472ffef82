"""Why a call went where it went, and what would happen now: by the relay where one runs, else by rows and events."""

from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts import events
from accounts.account_rows import create
from accounts.models import Account, AccountEvent
from apikeys.models import ApiKey, Binding
from apikeys.rules import counted
from relay.call import Key, LimitRule, new_call_id
from relay.explain import foretell
from relay.models import UsageRecord
from relay.pricing import PriceBook
from relay.state.base import Rest, Seed
from relay.state.memory import MemoryStore
from relay.usage_json import usage_json
from tests import account_cases
from tests.account_cases import MODEL, NOW, forget
from tests.harness import Installation, Server
from tests.stores import in_flight
from tests.test_api_messages import create as call_messages

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _fresh_process() -> None:
    forget()


def explain(*words: str) -> dict[str, Any]:
    out = StringIO()
    call_command("explain", *words, "--json", stdout=out)
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


def said(*words: str) -> str:
    out = StringIO()
    call_command("explain", *words, stdout=out)
    return out.getvalue()


def make_key(**fields: Any) -> ApiKey:
    row: ApiKey = ApiKey.objects.create(**{"name": "mine", "public_id": "p1", "digest": b"d" * 32, **fields})
    return row


def make_account(name: str, *words: str) -> Account:
    return create("claude_console", name, ["credential.api_key=k", *words])


# -- a key and a model, without a relay -------------------------------------------------------------------


@pytest.mark.django_db
def test_without_a_relay_rows_and_noted_rests_tell(settings: Any) -> None:
    settings.RELAY_INTERNAL_URL = NOBODY
    make_key()
    make_account("one")
    tired = make_account("tired", "priority=1")
    make_account("off", "active=false")
    AccountEvent.objects.create(
        account_id=tired.pk,
        account_name="tired",
        at=timezone.now(),
        kind=events.REST,
        cause="529",
        model=MODEL,
        until=timezone.now() + timedelta(seconds=500),
    )
    found = explain("--key", "mine", "--model", MODEL)
    reasons = {row["account"]: row["reason"] for row in found.pop("candidates")}
    assert found == {
        "key": "mine",
        "model": MODEL,
        "dialect": "anthropic",
        "outcome": "carried",
        "account": "one",
        "status": None,
        "message": "",
        "retry_after": None,
        "live": False,
    }
    assert (reasons["one"], reasons["off"]) == ("priority 50", "switched off")
    assert reasons["tired"].startswith("this model rests ") and reasons["tired"].endswith(" s after 529")


@pytest.mark.django_db
def test_bindings_of_the_key_are_told(settings: Any) -> None:
    settings.RELAY_INTERNAL_URL = NOBODY
    key, one = make_key(), make_account("one")
    make_account("two")
    Binding.objects.create(key=key, account=one)
    assert explain("--key", "mine", "--model", MODEL)["candidates"] == [
        {"account": "one", "taken": True, "reason": "bound to this key"},
        {"account": "two", "taken": False, "reason": "not bound to this key"},
    ]


@pytest.mark.django_db
def test_the_dialect_is_the_one_that_can_serve_the_model(settings: Any) -> None:
    settings.RELAY_INTERNAL_URL = NOBODY
    make_key()
    make_account("claude", f'model_map={{"{MODEL}": "{MODEL}"}}')
    create("openai", "other", ["credential.api_key=k"])
    assert explain("--key", "mine", "--model", "gpt-5.6")["dialect"] == "openai_chat"
    assert explain("--key", "mine", "--model", MODEL)["dialect"] == "anthropic"
    found = explain("--key", "mine", "--model", "gpt-5.6", "--dialect", "anthropic")
    assert (found["outcome"], found["status"]) == ("refused", 404)
    assert found["message"].endswith("It is served under /v1/chat/completions.")


@pytest.mark.django_db
def test_a_dialect_that_the_key_may_use_goes_before_one_that_it_may_not(settings: Any) -> None:
    settings.RELAY_INTERNAL_URL = NOBODY
    make_key(families=["openai"])
    make_account("serves-any-name")
    create("openai", "other", ["credential.api_key=k"])
    found = explain("--key", "mine", "--model", "gpt-5.6")
    assert (found["dialect"], found["account"]) == ("openai_chat", "other")


@pytest.mark.django_db
def test_a_person_reads_a_table(settings: Any) -> None:
    settings.RELAY_INTERNAL_URL = NOBODY
    make_key()
    make_account("one")
    make_account("longer-name", "active=false")
    assert said("--key", "mine", "--model", "m") == (
        "A call of mine for m (anthropic) would go to one.\n"
        f"No relay answers at {NOBODY}: calls in flight and limits are not known, rests are those noted so far.\n"
        "  * one          priority 50\n"
        "    longer-name  switched off\n"
    )


@pytest.mark.django_db
def test_a_person_reads_why_nothing_would_be_carried(settings: Any) -> None:
    settings.RELAY_INTERNAL_URL = NOBODY
    make_key()
    make_account("off", "active=false")
    assert said("--key", "mine", "--model", "m").startswith(
        "A call of mine for m (anthropic) would be refused:\n  503 No account of this key is in service.\n"
    )


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ((), "Give --call ID, or --key NAME and --model MODEL"),
        (("--key", "mine"), "Give --call ID"),
        (("--call", "x", "--key", "mine", "--model", "m"), "Give --call ID"),
        (("--key", "nobody", "--model", "m"), "No key is named 'nobody'"),
        (("--key", "mine", "--model", "m", "--dialect", "latin"), "There is no dialect 'latin'; there are anthropic,"),
        (("--call", "nonsense"), "'nonsense' is no call id"),
        (("--call", new_call_id(NOW)), "There is no record of a call"),
    ],
)
def test_what_cannot_be_explained_is_refused_by_name(words: tuple[str, ...], wrong: str) -> None:
    make_key()
    with pytest.raises(CommandError, match=wrong.replace("(", r"\(")):
        explain(*words)


# -- what stops a call before accounts are looked at ---------------------------------------------------------


def foretold(key: Key, *, store: MemoryStore | None = None, **of_account: Any) -> dict[str, Any]:
    accounts = (account_cases.account("one", **of_account),)
    return async_to_sync(foretell)(
        key, MODEL, dialect="anthropic", accounts=accounts, store=store or MemoryStore(), prices=PriceBook(), now=NOW
    )


def key_of(**fields: Any) -> Key:
    return Key(id=1, name="mine", public_id="p", digest=b"", **fields)


@pytest.mark.parametrize(
    ("key", "status"),
    [
        (key_of(active=False), 401),
        (key_of(expires_at=NOW - 1), 401),
        (key_of(families=frozenset({"openai"})), 403),
        (key_of(models=("gpt-*",)), 403),
    ],
)
def test_a_key_that_may_not_is_refused_and_its_accounts_are_shown_all_the_same(key: Key, status: int) -> None:
    found = foretold(key)
    assert (found["outcome"], found["status"], found["account"]) == ("refused", status, None)
    assert found["candidates"] == [{"account": "one", "taken": False, "reason": "priority 50"}]


def test_a_spent_budget_is_told_in_the_words_that_the_client_would_read() -> None:
    rule = LimitRule(id=3, scope="key", owner_id=1, metric="cost", amount=10, per="day")
    key, store = key_of(limits=(rule,)), MemoryStore()
    (limit,) = counted(("key", 1), (rule,))
    name, expires = limit.counter(NOW)
    async_to_sync(store.seed)([Seed(limit.limit, NOW, {name: (10, expires)})], generation="g")
    found = foretold(key, store=store)
    assert (found["status"], found["retry_after"]) == (402, 57600)
    assert found["message"].startswith("The budget of ")


def test_a_model_that_no_account_can_serve_is_told_before_any_limit() -> None:
    rule = LimitRule(id=3, scope="key", owner_id=1, metric="cost", amount=0, per="day")
    found = foretold(key_of(limits=(rule,)), model_map={"another": "another"})
    assert (found["status"], found["message"][:43]) == (404, "No account of this key serves the model 'cl")


def test_a_model_without_a_price_is_refused_on_a_strict_budget() -> None:
    rule = LimitRule(id=3, scope="key", owner_id=1, metric="cost", amount=10, per="day", strict=True)
    found = foretold(key_of(limits=(rule,)))
    assert (found["status"], found["message"].partition(": ")[0]) == (400, f"model ({MODEL} has no price)")


def test_named_resets_everywhere_are_told_as_429() -> None:
    store, one = MemoryStore(), account_cases.account("one")
    async_to_sync(store.rest)(Rest(one.id, MODEL, NOW + 30, "429", named=True, http_status=429), now=NOW)
    found = foretold(key_of(), store=store)
    assert (found["status"], found["retry_after"]) == (429, 30)


def test_explaining_takes_nothing() -> None:
    store, one = MemoryStore(), account_cases.account("one")
    foretold(key_of(), store=store)
    assert async_to_sync(in_flight)(store, [one.id], now=NOW) == {one.id: 0}


# -- a recorded call --------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_record_tells_its_candidates_and_attempts() -> None:
    candidates = [
        {"account": "one", "taken": False, "reason": "priority 1"},
        {"account": "two", "taken": True, "reason": "priority 50"},
    ]
    attempts = [
        {"account": "one", "status": 529, "error": "529", "duration_ms": 12},
        {"account": "two", "status": 200, "error": "", "duration_ms": 34},
    ]
    call_id = new_call_id(NOW)
    UsageRecord.objects.create(
        id=call_id,
        created_at=events.moment(NOW),
        key_name="mine",
        account_name="two",
        requested_model="m",
        status="ok",
        http_status=200,
        usage_source="provider",
        attempts=attempts,
        candidates=candidates,
    )
    found = explain("--call", call_id)
    assert (found["call"], found["key"], found["account"]) == (call_id, "mine", "two")
    assert (found["attempts"], found["candidates"]) == (attempts, candidates)
    assert found["created_at"] == usage_json(UsageRecord.objects.get())["created_at"]
    assert said("--call", call_id) == (
        f"Call {call_id} of mine: m -> two\n"
        "It ended as ok (200)\n"
        "  tried one: 529 529, 12 ms\n"
        "  tried two: 200 answered, 34 ms\n"
        "    one  priority 1\n"
        "  * two  priority 50\n"
    )


# -- by the relay itself -----------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_a_relay_tells_what_it_would_do_and_a_record_what_it_did(
    server: Server, installation: Installation, settings: Any
) -> None:
    settings.RELAY_INTERNAL_URL = server.url
    account = installation.account()
    installation.account(name="off", active=False)
    secret = installation.key(name="mine")
    found = explain("--key", "mine", "--model", "claude-sonnet-5-5")
    assert (found["live"], found["outcome"], found["account"]) == (True, "carried", account.name)
    call_messages(server, secret)
    (record,) = installation.records(key=secret)
    told = explain("--call", str(record.id))
    assert told["candidates"] == [
        {"account": account.name, "taken": True, "reason": "priority 50"},
        {"account": "off", "taken": False, "reason": "switched off"},
    ]
