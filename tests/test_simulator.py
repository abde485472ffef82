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
