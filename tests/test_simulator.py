"""The simulator keeps its promises: what it answers, what it breaks, what it writes down."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from relay.simulator.run import simulator
from relay.simulator.script import KEYS

KEY = {"x-api-key": "sk-ant-sim", "anthropic-version": "2023-06-01"}
HANGING = {
    "model": "claude~hang=1",
    "max_tokens": 9,
    "stream": True,
    "messages": [{"role": "user", "content": "hi"}],
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulator() as address:
        yield address


def ask(url: str, model: str = "claude-sonnet-5-5", *, sim: str = "", **body: Any) -> httpx.Response:
    """Return the answer to a small Messages call; `headers` are added to a good key's."""
    headers = {**KEY, **({"x-sim": sim} if sim else {}), **body.pop("headers", {})}
    whole = {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": "hello big world"}], **body}
    return httpx.post(f"{url}/v1/messages", json=whole, headers=headers, timeout=10)


def last_entry(url: str) -> dict[str, Any]:
    """Return what the log says of the last request, once it is over."""
    for _ in range(200):
        entry: dict[str, Any] = httpx.get(f"{url}/_sim/requests").json()[-1]
        if entry["end"] != "open":
            break
        time.sleep(0.01)
    return entry


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]


def test_it_echoes_the_last_words_of_the_user(url: str) -> None:
    answer = ask(url).json()
    assert answer["content"] == [{"type": "text", "text": "You said: hello big world"}]
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (4, 7)


def test_a_stream_adds_up_to_the_whole_answer(url: str) -> None:
    stream = events(ask(url, stream=True).text)
    assert [event["type"] for event in stream[:3]] == ["message_start", "content_block_start", "ping"]
    assert (
        "".join(event["delta"].get("text", "") for event in stream if "delta" in event) == "You said: hello big world"
    )
    assert stream[-2]["usage"]["output_tokens"] == 7
    assert stream[-1] == {"type": "message_stop"}


@pytest.mark.parametrize("frames", ["crlf", "cr", "mixed", "multi+comments", "nospace", "utf8", "bytes", "burst"])
def test_odd_framing_means_the_same_to_the_sdk(url: str, frames: str) -> None:
    client = anthropic.Anthropic(api_key="sk-ant-sim", base_url=url, max_retries=0)
    with client.messages.stream(
        model=f"claude~text=unicode~frame={frames}", max_tokens=100, messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        message = stream.get_final_message()
    assert message.content[0].to_dict()["text"] == "naïve \u2028 line \u2029 paragraph \u0085 next 漢字 \U0001f600 end "


def test_an_error_strikes_the_first_calls_only(url: str) -> None:
    assert [ask(url, "claude~error=529x2").status_code for _ in range(3)] == [529, 529, 200]


def test_a_credential_scripts_all_its_calls(url: str) -> None:
    answer = ask(url, headers={"x-api-key": "sk-ant-sick~error=credit"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("Your credit balance is too low")


def test_a_bad_key_is_refused(url: str) -> None:
    answer = ask(url, headers={"x-api-key": "sk-bad"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


def test_the_newer_version_refuses_sampling_fields(url: str) -> None:
    newer = {"anthropic-version": "2026-10-21"}
    assert ask(url, temperature=1).status_code == 200
    assert ask(url, temperature=1, headers=newer).json()["error"]["message"].startswith("temperature")


def test_a_typo_in_a_script_is_an_error(url: str) -> None:
    assert ask(url, "claude~eror=529").status_code == 400


@pytest.mark.parametrize("fault", ["reset=before", "reset=2", "cut=2"])
def test_a_broken_connection_raises(url: str, fault: str) -> None:
    with pytest.raises(httpx.TransportError):
        ask(url, f"claude~{fault}", stream=True)


def test_a_clean_end_without_the_terminal_event_raises_nothing(url: str) -> None:
    stream = events(ask(url, "claude~eof=2", stream=True).text)
    assert [event["type"] for event in stream].count("content_block_delta") == 2
    assert stream[-1]["type"] == "content_block_delta"


def test_an_error_event_can_come_first_or_late(url: str) -> None:
    first = events(ask(url, "claude~fail=overloaded_error", stream=True).text)
    late = events(ask(url, "claude~fail=529@3", stream=True).text)
    assert [event["type"] for event in first] == ["error"]
    assert len(late) == 7 and late[-1]["error"]["type"] == "overloaded_error"


def cached(text: str, **control: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral", **control}}


def test_a_cached_prefix_is_written_once_and_read_afterwards(url: str) -> None:
    system = [cached("a" * 400, ttl="1h"), cached("b" * 200)]
    first, second = (ask(url, system=system).json()["usage"] for _ in range(2))
    assert first["cache_creation"] == {"ephemeral_5m_input_tokens": 50, "ephemeral_1h_input_tokens": 100}
    assert (first["cache_creation_input_tokens"], first["cache_read_input_tokens"], first["input_tokens"]) == (
        150,
        0,
        4,
    )
    assert (second["cache_creation_input_tokens"], second["cache_read_input_tokens"]) == (0, 150)


def test_caches_of_two_accounts_are_apart(url: str) -> None:
    system = [cached("c" * 400)]
    keys = ("sk-ant-one", "sk-ant-two")
    written = [ask(url, system=system, headers={"x-api-key": key}).json()["usage"] for key in keys]
    assert [usage["cache_creation_input_tokens"] for usage in written] == [100, 100]


@pytest.mark.parametrize(
    "placement, start, delta",
    [
        ("both", {"input_tokens": 4, "output_tokens": 1}, {"input_tokens": 4, "output_tokens": 7}),
        ("start", {"input_tokens": 4, "output_tokens": 7}, None),
        ("delta", None, {"input_tokens": 4, "output_tokens": 7}),
        ("zero", {"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 4, "output_tokens": 7}),
        ("cache", {"input_tokens": 4, "output_tokens": 1}, {"output_tokens": 7, "cache_read_input_tokens": 9}),
        ("none", None, None),
    ],
)
def test_usage_stands_where_the_script_says(
    url: str, placement: str, start: dict[str, int] | None, delta: dict[str, int] | None
) -> None:
    stream = events(ask(url, sim=f"usage={placement},cache_read=9", stream=True).text)
    found = (stream[0]["message"].get("usage"), stream[-2].get("usage"))
    for usage, expected in zip(found, (start, delta), strict=True):
        assert (usage is None) == (expected is None)
        assert expected is None or {name: usage[name] for name in expected} == expected
    assert placement != "cache" or "cache_read_input_tokens" not in found[0]


def test_usage_can_be_chosen_whole(url: str) -> None:
    usage = {"input_tokens": 7, "output_tokens": 3, "brand_new": {"x": 1}}
    assert ask(url, headers={"x-sim-usage": json.dumps(usage)}).json()["usage"] == usage


def test_iterations_stand_outside_the_totals(url: str) -> None:
    usage = ask(url, sim="compaction=5000+800,advisor=claude-opus-5-5+300+40").json()["usage"]
    assert [(item["type"], item["input_tokens"], item["output_tokens"]) for item in usage["iterations"]] == [
        ("compaction", 5000, 800),
        ("advisor_message", 300, 40),
        ("message", 4, 7),
    ]
    assert (usage["input_tokens"], usage["output_tokens"]) == (4, 7)


def test_a_fallback_model_serves_what_the_first_declined(url: str) -> None:
    answer = ask(url, sim="fallback=claude-sonnet-5").json()
    hops = [(item["type"], item["model"]) for item in answer["usage"]["iterations"]]
    assert answer["model"] == "claude-sonnet-5"
    assert hops == [("message", "claude-sonnet-5-5"), ("fallback_message", "claude-sonnet-5")]


def test_the_sdk_reads_thinking_searches_and_a_tool_call(url: str) -> None:
    client = anthropic.Anthropic(api_key="sk-ant-sim", base_url=url, max_retries=0)
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    }
    with client.messages.stream(
        model="claude~thinking=20~searches=2",
        max_tokens=1000,
        messages=[{"role": "user", "content": "weather?"}],
        tools=[{"name": "weather", "input_schema": schema}],
    ) as stream:
        message = stream.get_final_message()
    searches = ["server_tool_use", "web_search_tool_result"] * 2
    assert [block.type for block in message.content] == ["thinking", *searches, "text", "tool_use"]
    assert message.content[-1].to_dict()["input"] == {"city": "simulated", "days": 1}
    assert message.stop_reason == "tool_use"
    assert message.usage.to_dict()["output_tokens_details"] == {"thinking_tokens": 20}
    assert message.usage.to_dict()["server_tool_use"] == {"web_search_requests": 2, "web_fetch_requests": 0}


def test_no_tool_is_called_once_its_result_has_come(url: str) -> None:
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}
    answer = ask(url, tools=tools, messages=[{"role": "user", "content": [result]}]).json()
    assert answer["stop_reason"] == "end_turn"


def test_max_tokens_cut_the_answer(url: str) -> None:
    answer = ask(url, sim="chunks=500", max_tokens=10).json()
    assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", 10)


def test_deltas_have_the_size_that_was_asked_for(url: str) -> None:
    stream = events(ask(url, sim="chunks=3,size=1000,text=unicode", max_tokens=10_000, stream=True).text)
    texts = [event["delta"]["text"] for event in stream if event["type"] == "content_block_delta"]
    assert [len(text.encode()) for text in texts] == [1000, 1000, 1000]


def test_counting_needs_no_answer(url: str) -> None:
    body = {"model": "claude", "messages": [{"role": "user", "content": "x" * 41}]}
    assert httpx.post(f"{url}/v1/messages/count_tokens", json=body, headers=KEY).json() == {"input_tokens": 11}


def test_models_come_in_pages(url: str) -> None:
    first = httpx.get(f"{url}/v1/models?limit=2", headers=KEY).json()
    second = httpx.get(f"{url}/v1/models?limit=100&after_id={first['last_id']}", headers=KEY).json()
    assert (len(first["data"]), first["has_more"], second["has_more"]) == (2, True, False)
    assert second["data"][0]["id"] not in {model["id"] for model in first["data"]}


def test_an_error_answer_carries_the_vendors_headers(url: str) -> None:
    answer = ask(url, sim="error=429,retry_after=7,should_retry=false,resets=30,code=x")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("7", "false")
    assert answer.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert answer.headers["request-id"].startswith("req_")
    assert answer.json()["error"]["details"] == {"error_code": "x"}


@pytest.mark.parametrize("how, body", [("html", "<html>"), ("empty", ""), ("notjson", "upstream"), ("truncated", "{")])
def test_a_body_can_be_unreadable(url: str, how: str, body: str) -> None:
    answer = ask(url, sim=f"error=502,body={how}")
    assert answer.status_code == 502
    assert answer.text.startswith(body)


@pytest.mark.parametrize("stream", [False, True])
def test_gzip_comes_to_who_did_not_ask_for_it(url: str, stream: bool) -> None:
    answer = ask(url, sim="gzip=1", stream=stream, headers={"accept-encoding": "identity"})
    assert answer.headers["content-encoding"] == "gzip"
    assert "message" in answer.text


def test_half_a_body_and_then_nothing_raises(url: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        ask(url, sim="cut=1")


def test_a_whole_answer_can_be_an_error_in_a_success(url: str) -> None:
    answer = ask(url, sim="fail=overloaded_error")
    assert (answer.status_code, answer.json()["error"]["type"]) == (200, "overloaded_error")


def test_half_a_body_can_end_cleanly(url: str) -> None:
    whole, half = (ask(url, sim=sim).content for sim in ("", "eof=1"))
    assert 0 < len(half) < len(whole) and half.startswith(b'{"id":')


def test_a_pause_holds_back_what_follows(url: str) -> None:
    with httpx.stream(
        "POST", f"{url}/v1/messages", headers={**KEY, "x-sim": "pause=0.3@2"}, json={**HANGING, "model": "claude"}
    ) as answer:
        chunks = []
        for chunk in answer.iter_bytes():
            chunks.append((time.monotonic(), chunk))
    before = next(at for at, chunk in chunks if b"said:" in chunk)
    after = next(at for at, chunk in chunks if b"hi" in chunk)
    assert after - before >= 0.25


@pytest.mark.parametrize("script", ["hang=sometimes", "chunks=many", "frame=lfcr", "usage=maybe", "error=nonsense"])
def test_a_value_that_means_nothing_is_an_error(url: str, script: str) -> None:
    assert ask(url, sim=script).status_code == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": 1, "max_tokens": 1, "messages": "no list"}'])
def test_a_body_that_is_no_call_gets_400(url: str, body: bytes) -> None:
    assert httpx.post(f"{url}/v1/messages", content=body, headers=KEY).status_code == 400


def test_a_refresh_token_buys_new_tokens(url: str) -> None:
    sent = {"grant_type": "refresh_token", "refresh_token": "sk-ant-ort-x"}
    token = httpx.post(f"{url}/v1/oauth/token", json=sent).json()["access_token"]
    assert ask(url, headers={"x-api-key": "", "authorization": f"Bearer {token}"}).status_code == 200
    refused = httpx.post(f"{url}/v1/oauth/token", data={**sent, "refresh_token": "bad"})
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


def test_the_log_holds_what_arrived_byte_for_byte(url: str) -> None:
    body = b'{"model": "claude",  "max_tokens": 9, "messages": [{"role":"user","content":"\\u00e9"}]}'
    httpx.post(f"{url}/v1/messages?beta=true", content=body, headers={**KEY, "X-Odd-Case": "Yes"})
    entry = httpx.get(f"{url}/_sim/requests").json()[-1]
    assert base64.b64decode(entry["body"]) == body
    assert (entry["query"], entry["end"]) == ("beta=true", "completed")
    assert ["X-Odd-Case", "Yes"] in entry["headers"]


def test_the_log_says_when_the_client_left(url: str) -> None:
    with httpx.stream("POST", f"{url}/v1/messages", headers=KEY, json=HANGING) as answer:
        arriving = answer.iter_bytes()
        next(arriving)
        assert httpx.get(f"{url}/_sim/open").json() == {"open": 1}
    assert last_entry(url)["end"] == "client_closed"


def test_the_page_names_every_key_of_a_script() -> None:
    page = (Path(__file__).parent.parent / "docs" / "simulator.md").read_text()
    assert [key for key in KEYS if f"`{key}`" not in page] == []


def test_it_runs_as_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "relay.simulator", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip().removeprefix("listening on ")
        assert httpx.get(f"{address}/_sim/open").json() == {"open": 0}
        process.terminate()
        assert process.wait(timeout=10) == 0


def test_a_half_sent_request_is_no_request(url: str) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.sendall(b"POST /v1/messages HTTP/1.1\r\ncontent-length: 10\r\n\r\n{")
    assert httpx.get(f"{url}/_sim/open").json() == {"open": 0}
