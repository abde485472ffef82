"""Any Anthropic-compatible base URL: how its key goes, streams and errors as other servers make them."""

from __future__ import annotations

import pytest

from relay.call import Account, Endpoint
from relay.errors import AccountRejected, ModelUnavailable, UpstreamError, UpstreamRejected
from relay.providers import PROVIDERS
from tests.providers.case import NOW, call_of, check_stream, fixture

CONSOLE = PROVIDERS["claude_console"]
MESSAGES = Endpoint("messages", "anthropic")
CALL = call_of(MESSAGES, body=b'{"model":"m","max_tokens":9,"messages":[]}', path="messages")


def account_of(key: str) -> Account:
    credential = {"api_key": key} if key else {}
    return Account(1, "a", "claude_console", "http://upstream.test", "anthropic", credential)


def test_a_stream_is_known_by_its_media_type_however_that_is_written() -> None:
    assert CONSOLE.streams(((b"content-type", b"Text/Event-Stream; charset=utf-8"),))
    assert not CONSOLE.streams(((b"content-type", b"application/json"),))


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("sk-ant-api03-x", b"x-api-key", b"sk-ant-api03-x"),
        ("sk-other", b"authorization", b"Bearer sk-other"),
    ],
)
def test_anthropics_keys_go_as_x_api_key_and_others_as_bearer(key: str, name: bytes, value: bytes) -> None:
    headers = dict(CONSOLE.request(CALL, account_of(key), "m").headers)
    assert headers[name] == value
    assert len(headers.keys() & {b"x-api-key", b"authorization"}) == 1 and b"anthropic-beta" not in headers


def test_crlf_and_comments_pass_as_they_came() -> None:
    outcome = check_stream(CONSOLE, CALL, account_of("k"), "claude_console/messages_stream_crlf.sse")
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens, outcome.terminal) == (25, 89, True)


@pytest.mark.parametrize(
    ("status", "name", "error"),
    [
        (403, "error_403.html", AccountRejected),
        (404, "error_404_model.json", ModelUnavailable),
        (404, "error_403.html", UpstreamRejected),
    ],
)
def test_whose_fault_other_servers_errors_are(status: int, name: str, error: type[UpstreamError]) -> None:
    assert type(CONSOLE.classify(status, (), fixture(f"claude_console/{name}"), now=NOW)) is error


def test_a_key_is_needed() -> None:
    assert CONSOLE.check(account_of("")) == ["credential is missing: api_key"] and CONSOLE.check(account_of("k")) == []
