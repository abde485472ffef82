"""A router: addressed as `ccr,<model>` or by binding, its errors verbatim but for those about our credential."""

from __future__ import annotations

import json

import pytest

from relay.call import Account, Endpoint
from relay.errors import AccountRejected, UpstreamError, UpstreamRejected
from relay.providers import PROVIDERS
from tests.providers.case import NOW, call_of, check_stream, fixture

CCR = PROVIDERS["ccr"]
MESSAGES = Endpoint("messages", "anthropic")
ACCOUNT = Account(1, "a", "ccr", "http://router.test", "anthropic", {"api_key": "k"})


@pytest.mark.parametrize(
    ("asked", "upstream"),
    [
        ("ccr,openrouter,anthropic/claude-opus-4.8", "openrouter,anthropic/claude-opus-4.8"),
        ("claude-opus-4-8", "claude-opus-4-8"),
    ],
)
def test_the_address_is_taken_off_the_model(asked: str, upstream: str) -> None:
    call = call_of(
        MESSAGES, body=json.dumps({"model": asked, "max_tokens": 9, "messages": []}).encode(), path="messages"
    )
    assert CCR.upstream_model(ACCOUNT, asked) == upstream
    assert json.loads(CCR.request(call, ACCOUNT, upstream).content)["model"] == upstream


def test_the_model_map_knows_models_without_their_address() -> None:
    account = Account(1, "a", "ccr", "http://router.test", "anthropic", {"api_key": "k"}, model_map={"a": "b"})
    assert [CCR.serves(account, MESSAGES, model) for model in ("ccr,a", "a", "ccr,b")] == [True, True, False]
    assert CCR.upstream_model(account, "ccr,a") == "b"


def test_a_stream_passes_as_it_came() -> None:
    call = call_of(MESSAGES, body=b'{"model":"ccr,m","max_tokens":9,"messages":[]}', path="messages")
    outcome = check_stream(CCR, call, ACCOUNT, "claude_official/messages_stream.sse")
    assert (outcome.usage.output_tokens, outcome.terminal) == (89, True)


@pytest.mark.parametrize(
    ("status", "error", "rest"),
    [
        (400, UpstreamRejected, ""),
        (401, AccountRejected, "credential"),
        (402, UpstreamRejected, "model"),
        (403, AccountRejected, "credential"),
        (404, UpstreamRejected, ""),
        (429, UpstreamRejected, "429"),
        (500, UpstreamRejected, "5xx"),
        (529, UpstreamRejected, "529"),
    ],
)
def test_errors_pass_verbatim_but_for_the_credentials(status: int, error: type[UpstreamError], rest: str) -> None:
    body = fixture("ccr/error_400_provider.json")
    found = CCR.classify(status, ((b"retry-after", b"7"),), body, now=NOW)
    assert (type(found), found.rest, found.body) == (error, rest, body)


def test_a_router_has_no_address_of_its_own() -> None:
    assert CCR.check(Account(1, "a", "ccr", "", "anthropic", {"api_key": "k"})) == ["base_url is missing"]
    assert CCR.check(ACCOUNT) == []
