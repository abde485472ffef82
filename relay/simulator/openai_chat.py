"""OpenAI's Chat Completions, Embeddings and Models, under OpenAI's and Azure's paths."""

from __future__ import annotations

import base64
import hashlib
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from relay.simulator.base import CONTENT, TERMINAL, Event, Memory, Reply, encode, tokens
from relay.simulator.http import Request
from relay.simulator.openai import (
    OpenAIDialect,
    Place,
    Said,
    counts,
    data,
    error_of,
    plain_error,
    say,
    scripted_usage,
    weight,
)
from relay.simulator.script import Script

MODELS = (
    "gpt-6-astra",
    "gpt-6-sol",
    "gpt-6-luna",
    "gpt-5.6-sol",
    "gpt-5.6-luna",
    "gpt-4o",
    "text-embedding-3-small",
)
CREATED = 1_780_000_000
ECHOED_CHARACTERS = 400


class OpenAIChat(OpenAIDialect):
    name = "openai_chat"

    def operates(self, operation: str) -> bool:
        return operation in {"chat/completions", "embeddings", "models"} or operation.startswith("models/")

    def healthy(self, request: Request, place: Place, *, model: str, script: Script, memory: Memory) -> Reply:
        if request.method == "GET" and place.operation.startswith("models"):
            return models(place.operation.removeprefix("models").removeprefix("/"))
        if request.method != "POST" or place.operation.startswith("models"):
            return plain_error(404, None, f"Invalid URL ({request.method} {request.path})")
        body = request.json()
        missing = "messages" if place.operation == "chat/completions" else "input"
        if not body.get(missing):
            return plain_error(
                400, "missing_required_parameter", f"Missing required parameter: '{missing}'.", param=missing
            )
        if not model:
            return plain_error(400, None, "you must provide a model parameter", param="model")
        if place.operation == "embeddings":
            return embeddings(body, model=model, script=script, request=request)
        answer = Completion.of(body, model=model, script=script, memory=memory, request=request, azure=place.azure)
        return Reply(events=answer.events()) if body.get("stream") else Reply(body=encode(answer.whole()))

    def error_event(self, name: str, script: Script) -> bytes:
        return data({"error": error_of(name, script, model="")[1]}).data


@dataclass(frozen=True, slots=True)
class Completion:
    """One chat answer: `n` choices that all say the same."""

    id: str
    model: str
    said: Said
    usage: dict[str, Any] | None
    call_id: str
    stop: str
    choices: int
    tier: str
    wants_usage: bool
    azure: bool

    @classmethod
    def of(
        cls, body: dict[str, Any], *, model: str, script: Script, memory: Memory, request: Request, azure: bool
    ) -> Completion:
        choices = int(body.get("n") or 1)
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        reasoning = script.count("thinking", 8 if body.get("reasoning_effort") not in {None, "none"} else 0)
        said = say(last_words(body), tool=tool_to_call(body, script), script=script, limit=limit, reasoning=reasoning)
        size = weight(body.get("tools")) + sum(weight(message.get("content")) for message in body["messages"])
        stop = "length" if said.full else "tool_calls" if said.tool else "stop"
        given = usage_of(counts(size, said.tokens * choices, reasoning * choices, script=script))
        return cls(
            id=memory.next_id("chatcmpl-sim"),
            model=script.text("model") or model,
            said=said,
            usage=None if script.text("usage") == "none" else scripted_usage(request) or given,
            call_id=memory.next_id("call_sim"),
            stop=script.text("stop", stop),
            choices=choices,
            tier=script.text("tier", "default"),
            wants_usage=bool((body.get("stream_options") or {}).get("include_usage")),
            azure=azure,
        )

    def envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
            "choices": choices,
            "service_tier": self.tier,
            "system_fingerprint": "fp_simulated",
        }

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.said.text or None, "refusal": None}
        if self.said.tool:
            message["tool_calls"] = [self.tool_call("".join(self.said.arguments))]
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": self.stop}
            for index in range(self.choices)
        ]
        body = self.envelope("chat.completion", choices)
        return body if self.usage is None else {**body, "usage": self.usage}

    def tool_call(self, arguments: str) -> dict[str, Any]:
        assert self.said.tool is not None
        function = {"name": self.said.tool["name"], "arguments": arguments}
        return {"id": self.call_id, "type": "function", "function": function}

    def events(self) -> list[Event]:
        return list(self._events())

    def _events(self) -> Iterator[Event]:
        if self.azure:
            yield data({**self.envelope("", []), "id": "", "model": "", "prompt_filter_results": []})
        for index in range(self.choices):
            yield self.chunk(index, {"role": "assistant", "content": "", "refusal": None})
            for piece in self.said.pieces:
                yield self.chunk(index, {"content": piece}, kind=CONTENT)
            yield from self._tool_events(index)
            yield self.chunk(index, {}, stop=self.stop)
        if self.wants_usage and self.usage is not None:
            yield data({**self.envelope("chat.completion.chunk", []), "usage": self.usage})
        yield Event(b"data: [DONE]\n\n", TERMINAL)

    def _tool_events(self, index: int) -> Iterator[Event]:
        if self.said.tool is None:
            return
        yield self.chunk(index, {"tool_calls": [{"index": 0, **self.tool_call("")}]})
        for part in self.said.arguments:
            call = {"index": 0, "function": {"arguments": part}}
            yield self.chunk(index, {"tool_calls": [call]}, kind=CONTENT)

    def chunk(self, index: int, delta: dict[str, Any], *, kind: str = "", stop: str | None = None) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": stop}
        body = self.envelope("chat.completion.chunk", [choice])
        return data({**body, "usage": None} if self.wants_usage else body, kind)


def usage_of(count: dict[str, int]) -> dict[str, Any]:
    return {
        "prompt_tokens": count["input"],
        "completion_tokens": count["output"],
        "total_tokens": count["input"] + count["output"],
        "prompt_tokens_details": {
            "cached_tokens": count["cached"],
            "cache_write_tokens": count["ttl_30m"] + count["ttl_12h"],
            "audio_tokens": count["audio_in"],
        },
        "completion_tokens_details": {
            "reasoning_tokens": count["reasoning"],
            "audio_tokens": count["audio_out"],
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def last_words(body: dict[str, Any]) -> str:
    """Return the text of the last user message, shortened."""
    users = [message for message in body["messages"] if message.get("role") == "user"]
    said = users[-1].get("content") if users else ""
    if not isinstance(said, str):
        said = " ".join(str(part.get("text", "")) for part in said or () if part.get("type") == "text")
    return said[:ECHOED_CHARACTERS]


def tool_to_call(body: dict[str, Any], script: Script) -> dict[str, Any] | None:
    """Return the first function of the client's own, once: not again after its result has come."""
    if body["messages"][-1].get("role") == "tool" or script.text("tools") == "0" or body.get("tool_choice") == "none":
        return None
    own = [tool["function"] for tool in body.get("tools") or () if tool.get("type") == "function"]
    return own[0] if own else None


def embeddings(body: dict[str, Any], *, model: str, script: Script, request: Request) -> Reply:
    """Vectors that depend on the text alone."""
    given = body["input"]
    several = isinstance(given, list) and not (given and isinstance(given[0], int))
    inputs = given if several else [given]
    total = script.count("in", max(1, sum(size_in_tokens(item) for item in inputs)))
    listed = [
        {"object": "embedding", "index": index, "embedding": vector(item, body)} for index, item in enumerate(inputs)
    ]
    usage = scripted_usage(request) or {"prompt_tokens": total, "total_tokens": total}
    answer = {"object": "list", "data": listed, "model": script.text("model") or model, "usage": usage}
    return Reply(body=encode(answer))


def size_in_tokens(item: Any) -> int:
    return len(item) if isinstance(item, list) else tokens(len(str(item).encode()))


def vector(item: Any, body: dict[str, Any]) -> list[float] | str:
    seed = hashlib.sha256(encode(item)).digest()
    numbers = [seed[index % 32] / 255 - 0.5 for index in range(int(body.get("dimensions") or 8))]
    if body.get("encoding_format") == "base64":
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    return numbers


def models(name: str) -> Reply:
    listed = [{"id": item, "object": "model", "created": CREATED, "owned_by": "org-simulated0001"} for item in MODELS]
    if not name:
        return Reply(body=encode({"object": "list", "data": listed}))
    found = next((item for item in listed if item["id"] == name), None)
    if found is None:
        return plain_error(404, "model_not_found", f"The model '{name}' does not exist", param="model")
    return Reply(body=encode(found))
