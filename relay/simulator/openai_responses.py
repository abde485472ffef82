"""OpenAI's Responses, stored ones included, under OpenAI's and Azure's paths."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from relay.simulator.base import CONTENT, TERMINAL, Event, Memory, Reply, credential_of, encode, tokens
from relay.simulator.http import Request
from relay.simulator.openai import (
    OpenAIDialect,
    Place,
    Said,
    counts,
    error_of,
    plain_error,
    say,
    scripted_usage,
    weight,
)
from relay.simulator.script import Script

ECHOED_CHARACTERS = 400
KEPT = 1000


@dataclass(frozen=True, slots=True)
class Stored:
    """A response that can be retrieved, by the credential that made it."""

    owner: str
    response: dict[str, Any]
    items: list[dict[str, Any]]


class OpenAIResponses(OpenAIDialect):
    name = "openai_responses"

    def operates(self, operation: str) -> bool:
        return operation == "responses" or operation.startswith("responses/")

    def healthy(self, request: Request, place: Place, *, model: str, script: Script, memory: Memory) -> Reply:
        what = place.operation.removeprefix("responses").removeprefix("/")
        if request.method == "POST" and what in {"", "compact", "input_tokens"}:
            return self.create(request, what, model=model, script=script, memory=memory)
        response_id, _, action = what.partition("/")
        stored = memory.stored.get(response_id)
        if not isinstance(stored, Stored) or stored.owner != credential_of(request):
            return plain_error(404, None, f"Response with id '{response_id}' not found.")
        return on_stored(request, action, stored, memory)

    def create(self, request: Request, what: str, *, model: str, script: Script, memory: Memory) -> Reply:
        body = request.json()
        if not model:
            return plain_error(400, "missing_required_parameter", "Missing required parameter: 'model'.", param="model")
        earlier = earlier_of(body, memory, owner=credential_of(request))
        if earlier is None:
            named = body["previous_response_id"]
            text = f"Previous response with id '{named}' not found."
            return plain_error(400, "previous_response_not_found", text, param="previous_response_id")
        size = prompt_size(body) + weight(earlier)
        if what == "input_tokens":
            return Reply(body=encode({"object": "response.input_tokens", "input_tokens": max(1, tokens(size))}))
        answer = Answer.of(body, size, model=model, script=script, memory=memory, request=request)
        if what == "compact":
            return Reply(body=encode(answer.compaction(memory)))
        if body.get("store") is not False:
            keep(memory, answer, earlier + items_of(body), owner=credential_of(request))
        return Reply(events=answer.events()) if body.get("stream") else Reply(body=encode(answer.whole()))

    def error_event(self, name: str, script: Script) -> bytes:
        error = error_of(name, script, model="")[1]
        said = {"code": error["code"] or "server_error", "message": error["message"]}
        response = {"id": "resp_sim_failed", "object": "response", "status": "failed", "error": said, "output": []}
        return event("response.failed", 0, response=response).data


def on_stored(request: Request, action: str, stored: Stored, memory: Memory) -> Reply:
    """Answer a call on a stored response."""
    response = stored.response
    match request.method, action:
        case "GET", "":
            if parse_qs(request.query).get("stream") == ["true"]:
                return Reply(events=[event("response.completed", 0, kind=TERMINAL, response=response)])
            return Reply(body=encode(response))
        case "DELETE", "":
            del memory.stored[response["id"]]
            return Reply(body=encode({"id": response["id"], "object": "response", "deleted": True}))
        case "POST", "cancel":
            return plain_error(400, None, "Cannot cancel a synchronous response.")
        case "GET", "input_items":
            ids = [item["id"] for item in stored.items]
            page = {"object": "list", "data": stored.items, "has_more": False}
            return Reply(
                body=encode({**page, "first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None})
            )
    return plain_error(404, None, f"Invalid URL ({request.method} {request.path})")


def earlier_of(body: dict[str, Any], memory: Memory, *, owner: str) -> list[dict[str, Any]] | None:
    """What was said before by `previous_response_id`; None where this credential has no such response."""
    if not body.get("previous_response_id"):
        return []
    found = memory.stored.get(body["previous_response_id"])
    if not isinstance(found, Stored) or found.owner != owner:
        return None
    return [*found.items, *found.response["output"]]


def keep(memory: Memory, answer: Answer, items: list[dict[str, Any]], *, owner: str) -> None:
    known = [{**item, "id": item.get("id") or memory.next_id("msg_sim")} for item in items]
    memory.stored[answer.id] = Stored(owner, answer.whole(), known)
    while len(memory.stored) > KEPT:
        memory.stored.popitem(last=False)


def items_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    given = body.get("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return list(given or ())


def prompt_size(body: dict[str, Any]) -> int:
    """Bytes that count as input: instructions, tools, and the input's texts."""
    given = body.get("input")
    texts = given if isinstance(given, str) else [item.get("content", item) for item in given or ()]
    return weight(body.get("instructions")) + weight(body.get("tools")) + weight(texts)


@dataclass(frozen=True, slots=True)
class Answer:
    """One response: the vendor's searches, reasoning, text, and a call of the client's tool."""

    id: str
    model: str
    said: Said
    output: tuple[dict[str, Any], ...]
    usage: dict[str, Any] | None
    searches: int
    tier: str
    body: dict[str, Any]

    @classmethod
    def of(
        cls, body: dict[str, Any], size: int, *, model: str, script: Script, memory: Memory, request: Request
    ) -> Answer:
        effort = (body.get("reasoning") or {}).get("effort")
        reasoning = script.count("thinking", 8 if effort not in {None, "none"} else 0)
        tool = tool_to_call(body, script)
        said = say(last_words(body), tool=tool, script=script, limit=body.get("max_output_tokens"), reasoning=reasoning)
        searches = script.count("searches", int(any(is_search(tool) for tool in body.get("tools") or ())))
        given = usage_of(counts(size, said.tokens, reasoning, script=script))
        return cls(
            id=memory.next_id("resp_sim"),
            model=script.text("model") or model,
            said=said,
            output=tuple(output_of(said, searches, memory)),
            usage=None if script.text("usage") == "none" else scripted_usage(request) or given,
            searches=searches,
            tier=script.text("tier", "default"),
            body=body,
        )

    def whole(self, status: str = "") -> dict[str, Any]:
        """The response object, in progress or at its end."""
        ended = status != "in_progress"
        cut = ended and self.said.full
        return {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "status": "incomplete" if cut else status or "completed",
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": self.body.get("instructions"),
            "max_output_tokens": self.body.get("max_output_tokens"),
            "metadata": self.body.get("metadata") or {},
            "model": self.model,
            "output": list(self.output) if ended else [],
            "parallel_tool_calls": True,
            "previous_response_id": self.body.get("previous_response_id"),
            "prompt_cache_key": self.body.get("prompt_cache_key"),
            "reasoning": {"effort": None, "summary": None},
            "service_tier": self.tier if ended else "auto",
            "store": self.body.get("store") is not False,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": self.body.get("tools") or [],
            "tool_usage": tool_usage(self.searches) if ended else None,
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": self.usage if ended else None,
        }

    def compaction(self, memory: Memory) -> dict[str, Any]:
        item = {"id": memory.next_id("cmp_sim"), "type": "compaction", "encrypted_content": "c2ltdWxhdGVk"}
        return {
            "id": self.id,
            "object": "response.compaction",
            "created_at": int(time.time()),
            "output": [item],
            "usage": self.usage,
        }

    def events(self) -> list[Event]:
        names = self._events()
        return [event(name, number, kind=kind, **fields) for number, (name, kind, fields) in enumerate(names)]

    def _events(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield name, kind and fields of each event."""
        begun = self.whole("in_progress")
        yield "response.created", "", {"response": begun}
        yield "response.in_progress", "", {"response": begun}
        for index, item in enumerate(self.output):
            yield "response.output_item.added", "", {"output_index": index, "item": opened(item)}
            for name, kind, fields in self._deltas(item):
                yield name, kind, {"item_id": item["id"], "output_index": index, **fields}
            yield "response.output_item.done", "", {"output_index": index, "item": item}
        end = self.whole()
        yield f"response.{end['status']}", TERMINAL, {"response": end}

    def _deltas(self, item: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
        match item["type"]:
            case "message":
                part = item["content"][0]
                at = {"content_index": 0}
                yield "response.content_part.added", "", {**at, "part": {**part, "text": ""}}
                for piece in self.said.pieces:
                    yield "response.output_text.delta", CONTENT, {**at, "delta": piece, "logprobs": []}
                yield "response.output_text.done", "", {**at, "text": part["text"], "logprobs": []}
                yield "response.content_part.done", "", {**at, "part": part}
            case "function_call":
                for piece in self.said.arguments:
                    yield "response.function_call_arguments.delta", CONTENT, {"delta": piece}
                done = {"arguments": item["arguments"], "name": item["name"]}
                yield "response.function_call_arguments.done", "", done
            case "web_search_call":
                for state in ("in_progress", "searching", "completed"):
                    yield f"response.web_search_call.{state}", "", {}


def event(name: str, number: int, /, *, kind: str = "", **fields: Any) -> Event:
    body = {"type": name, "sequence_number": number, **fields}
    return Event(b"event: %s\ndata: %s\n\n" % (name.encode(), encode(body)), kind)


def output_of(said: Said, searches: int, memory: Memory) -> Iterator[dict[str, Any]]:
    if said.reasoning:
        secret = {"id": memory.next_id("rs_sim"), "type": "reasoning", "summary": []}
        yield {**secret, "encrypted_content": "c2ltdWxhdGVk", "status": "completed"}
    for _ in range(searches):
        action = {"type": "search", "query": "simulated"}
        yield {"id": memory.next_id("ws_sim"), "type": "web_search_call", "status": "completed", "action": action}
    part = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
    message = {"id": memory.next_id("msg_sim"), "type": "message", "role": "assistant", "content": [part]}
    yield {**message, "status": "incomplete" if said.full else "completed"}
    if said.tool is not None:
        call = {"id": memory.next_id("fc_sim"), "type": "function_call", "call_id": memory.next_id("call_sim")}
        yield {**call, "name": said.tool["name"], "arguments": "".join(said.arguments), "status": "completed"}


def opened(item: dict[str, Any]) -> dict[str, Any]:
    """The item as it stands at its start."""
    empty: dict[str, Any] = {name: type(item[name])() for name in ("content", "arguments") if name in item}
    return {**item, **empty, "status": "in_progress"}


def usage_of(count: dict[str, int]) -> dict[str, Any]:
    written = {"ttl_30m_tokens": count["ttl_30m"], "ttl_12h_tokens": count["ttl_12h"]}
    return {
        "input_tokens": count["input"],
        "input_tokens_details": {
            "cached_tokens": count["cached"],
            "cache_write_tokens": sum(written.values()),
            "cache_write_tokens_details": written,
        },
        "output_tokens": count["output"],
        "output_tokens_details": {"reasoning_tokens": count["reasoning"]},
        "total_tokens": count["input"] + count["output"],
    }


def tool_usage(searches: int) -> dict[str, Any]:
    nothing = {"image_tokens": 0, "text_tokens": 0}
    image = {"input_tokens": 0, "input_tokens_details": nothing, "output_tokens": 0, "total_tokens": 0}
    return {"image_gen": image, "web_search": {"num_requests": searches}}


def is_search(tool: dict[str, Any]) -> bool:
    return str(tool.get("type", "")).startswith("web_search")


def tool_to_call(body: dict[str, Any], script: Script) -> dict[str, Any] | None:
    """Return the first function of the client's own, once: not again after its result has come."""
    items = items_of(body)
    answered = bool(items) and items[-1].get("type") == "function_call_output"
    if answered or script.text("tools") == "0" or body.get("tool_choice") == "none":
        return None
    return next((tool for tool in body.get("tools") or () if tool.get("type") == "function"), None)


def last_words(body: dict[str, Any]) -> str:
    """Return the text of the last user message, shortened."""
    users = [item for item in items_of(body) if item.get("role") == "user"]
    said = users[-1].get("content") if users else ""
    if not isinstance(said, str):
        said = " ".join(str(part.get("text", "")) for part in said or () if part.get("type") == "input_text")
    return said[:ECHOED_CHARACTERS]
