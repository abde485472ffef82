"""What the bench calls: each scenario is a model name that Baton has a price for, so that pricing is measured too."""

from __future__ import annotations

import json
from dataclasses import dataclass

REPLY_BYTES = 888
REQUEST_BYTES = 4096
EVENT_BYTES = 130
INPUT_TOKENS = 25
REPLY_TOKENS = 150


@dataclass(frozen=True, slots=True)
class Scenario:
    """`deltas` text events, each `interval` seconds after the one before (0 = all in one write)."""

    name: str
    model: str
    stream: bool = True
    deltas: int = 0
    interval: float = 0.0
    ends: bool = True  # False: the upstream falls silent after the first events
    speaks: bool = True  # False: the upstream does not even send headers

    @property
    def output_tokens(self) -> int:
        """What the provider reports for a whole answer; nothing is relayed of one that does not end."""
        return (self.deltas if self.stream else REPLY_TOKENS) if self.ends else 0

    @property
    def events(self) -> int:
        """How many events a whole stream has."""
        return self.deltas + 6


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("json", "claude-haiku-4-5", stream=False),
        Scenario("burst", "claude-sonnet-4-5", deltas=50),
        Scenario("p50", "claude-opus-4-5", deltas=50, interval=0.004),
        Scenario("p500", "claude-sonnet-4-6", deltas=500, interval=0.004),
        Scenario("idle", "claude-opus-4-6", ends=False),
        Scenario("silent", "claude-opus-4-7", ends=False, speaks=False),
        Scenario("slow", "claude-opus-4-8", deltas=30, interval=0.5),
    )
}
BY_MODEL = {scenario.model.encode(): scenario for scenario in SCENARIOS.values()}


def request_body(scenario: Scenario) -> bytes:
    """Return a Messages body of exactly `REQUEST_BYTES`."""

    def body(text: str) -> bytes:
        messages = [{"role": "user", "content": text}]
        value = {"model": scenario.model, "max_tokens": 1024, "stream": scenario.stream, "messages": messages}
        return json.dumps(value, separators=(",", ":")).encode()

    return body(("lorem ipsum " * 400)[: REQUEST_BYTES - len(body(""))])


def usage(output: int) -> dict[str, int]:
    cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {"input_tokens": INPUT_TOKENS, **cached, "output_tokens": output}


def reply_body(scenario: Scenario) -> bytes:
    """Return a whole answer of exactly `REPLY_BYTES`."""

    def body(text: str) -> bytes:
        value = {**message(scenario), "content": [{"type": "text", "text": text}], "stop_reason": "end_turn"}
        return json.dumps({**value, "usage": usage(REPLY_TOKENS)}, separators=(",", ":")).encode()

    return body("x" * (REPLY_BYTES - len(body(""))))


def message(scenario: Scenario) -> dict[str, object]:
    identity = {"id": "msg_bench000000000000000000", "type": "message", "role": "assistant", "model": scenario.model}
    return {**identity, "content": [], "stop_reason": None, "stop_sequence": None}


def stream_events(scenario: Scenario) -> list[bytes]:
    """Return the whole stream, one event each, deltas of `EVENT_BYTES`."""
    text_block = {"type": "text", "text": ""}
    opening = [
        event("message_start", message={**message(scenario), "usage": usage(1)}),
        event("content_block_start", index=0, content_block=text_block),
        event("ping"),
    ]
    room = EVENT_BYTES - len(delta(""))
    closing = [
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=usage(scenario.deltas)),
        event("message_stop"),
    ]
    return [*opening, *[delta(("token " * 20)[:room])] * scenario.deltas, *closing]


def delta(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def event(name: str, **fields: object) -> bytes:
    data = json.dumps({"type": name, **fields}, separators=(",", ":"))
    return f"event: {name}\ndata: {data}\n\n".encode()
