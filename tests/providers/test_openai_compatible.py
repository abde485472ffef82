"""Any OpenAI-shaped server: base URLs of all kinds, streams and errors as other servers make them."""

from __future__ import annotations

from typing import Any

import pytest

from relay.call import Account, Endpoint, UsageSource
from relay.errors import AccountRejected, ModelUnavailable, UpstreamError
from relay.providers import PROVIDERS
from tests.providers.case import NOW, call_of, check_stream, fixture

COMPATIBLE = PROVIDERS["openai_compatible"]
CHAT = Endpoint("chat_completions", "openai_chat")


def account_of(base_url: str = "http://llm:8000", **fields: Any) -> Account:
    return Account(1, "c", "openai_compatible", base_url, "deepseek", **fields)


@pytest.mark.parametrize(
    "base_url, url",
    [
        ("http://llm:8000", "http://llm:8000/v1/chat/completions"),
        ("http://llm:8000/v1/", "http://llm:8000/v1/chat/completions"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1/chat/completions"),
        ("https://g.com/v1beta/openai", "https://g.com/v1beta/openai/chat/completions"),
        ("https://host/openai", "https://host/openai/v1/chat/completions"),
        ("https://v1.host", "https://v1.host/v1/chat/completions"),
    ],
)
def test_a_base_url_with_or_without_its_version(base_url: str, url: str) -> None:
    call = call_of(CHAT, body=b'{"model":"m","messages":[]}', path="chat/completions")

    assert COMPATIBLE.request(call, account_of(base_url), "m").url == url


def test_a_server_of_ones_own_may_need_no_key() -> None:
    call = call_of(CHAT, body=b'{"model":"m","messages":[]}', path="chat/completions")

    assert b"authorization" not in dict(COMPATIBLE.request(call, account_of(), "m").headers)
    with_key = account_of(credential={"api_key": "k"})
    assert dict(COMPATIBLE.request(call, with_key, "m").headers)[b"authorization"] == b"Bearer k"
    assert COMPATIBLE.check(account_of()) == []
    assert COMPATIBLE.check(account_of("")) == ["base_url is missing"]


@pytest.mark.parametrize("asked", [b"", b',"stream_options":{"include_usage":true}'])
def test_crlf_comments_and_usage_in_the_last_content_chunk(asked: bytes) -> None:
    call = call_of(CHAT, body=b'{"model":"m","messages":[],"stream":true' + asked + b"}", path="chat/completions")
    outcome = check_stream(COMPATIBLE, call, account_of(), "openai_compatible/chat_stream_crlf.sse")
    usage = outcome.usage

    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (10, 20, 6)
    assert (outcome.source, outcome.terminal) == (UsageSource.PROVIDER, True)


@pytest.mark.parametrize(
    "status, name, error",
    [
        (404, "error_404_vllm", ModelUnavailable),
        (404, "error_404_ollama", ModelUnavailable),
        (402, "error_402_openrouter", AccountRejected),
    ],
)
def test_whose_fault_other_servers_errors_are(status: int, name: str, error: type[UpstreamError]) -> None:
    body = fixture(f"openai_compatible/{name}.json")

    assert type(COMPATIBLE.classify(status, (), body, now=NOW)) is error
