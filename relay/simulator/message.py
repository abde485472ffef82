"""Builds the answer of a Messages call: blocks, usage, and the same as a stream of events."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import msgspec

from relay.simulator.base import CONTENT, TERMINAL, Event, Memory, credential_of, encode, tokens
from relay.simulator.http import Request
from relay.simulator.prompt import weigh
from relay.simulator.script import Script

# Lines inside JSON strings that are no line ends in a stream of events, and characters of two to four bytes.
UNICODE = "naïve \u2028 line \u2029 paragraph \u0085 next 漢字 \U0001f600 end "
ECHOED_CHARACTERS = 400
PLACEHOLDER = 1  # output tokens of message_start: the vendor's too are no count


@dataclass(frozen=True, slots=True)
class Block:
    """A content block: as a whole, as it starts in a stream, and its deltas."""

    whole: dict[str, Any]
    start: dict[str, Any]
    deltas: tuple[dict[str, Any], ...] = ()
    size: int = 0  # bytes that count as output


@dataclass(frozen=True, slots=True)
class Message:
    id: str
    model: str
    blocks: tuple[Block, ...]
    usage: dict[str, Any]
    stop_reason: str
    placement: str = "both"

    def whole(self) -> dict[str, Any]:
        """Return the body of a non-streamed answer."""
        message = self._envelope([block.whole for block in self.blocks], self.stop_reason)
        return message if self.placement == "none" else {**message, "usage": self.usage}

    def events(self) -> list[Event]:
        """Return the stream, one event each."""
        return list(self._events())

    def _envelope(self, content: list[dict[str, Any]], stop_reason: str | None) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            **stop_details(stop_reason),
        }

    def _events(self) -> Iterator[Event]:
        at_start, at_end = place(self.usage, self.placement)
        yield event("message_start", message={**self._envelope([], None), **at_start})
        for index, block in enumerate(self.blocks):
            yield event("content_block_start", index=index, content_block=block.start)
            if index == 0:
                yield Event(b'event: ping\ndata: {"type": "ping"}\n\n')
            for delta in block.deltas:
                kind = "" if delta["type"] == "signature_delta" else CONTENT
                yield event("content_block_delta", kind=kind, index=index, delta=delta)
            yield event("content_block_stop", index=index)
        delta = {"stop_reason": self.stop_reason, "stop_sequence": None, **stop_details(self.stop_reason)}
        yield event("message_delta", delta=delta, **at_end)
        yield event("message_stop", kind=TERMINAL)


def event(name: str, *, kind: str = "", **fields: Any) -> Event:
    return Event(b"event: %s\ndata: %s\n\n" % (name.encode(), encode({"type": name, **fields})), kind)


def stop_details(reason: str | None) -> dict[str, Any]:
    details = {"type": "refusal", "category": "cyber", "explanation": "simulated"}
    return {"stop_details": details} if reason == "refusal" else {}


def place(usage: dict[str, Any], placement: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the usage of message_start and that of message_delta, each as the members to add."""
    late = {"output_tokens", "output_tokens_details", "server_tool_use", "iterations", "fallback_credit"}
    cached = {"cache_creation_input_tokens", "cache_read_input_tokens"}
    cumulative = {key: value for key, value in usage.items() if key in late | cached | {"input_tokens"}}
    start = {key: value for key, value in usage.items() if key not in late} | {"output_tokens": PLACEHOLDER}
    match placement:
        case "start":
            return {"usage": usage}, {}
        case "delta":
            return {}, {"usage": usage}
        case "zero":
            return {"usage": {"input_tokens": 0, "output_tokens": 0}}, {"usage": cumulative}
        case "cache":
            plain = {key: value for key, value in start.items() if key not in cached | {"cache_creation"}}
            only = {key: value for key, value in cumulative.items() if key != "input_tokens"}
            return {"usage": plain}, {"usage": only}
        case "none":
            return {}, {}
    return {"usage": start}, {"usage": cumulative}


@dataclass(slots=True)
class Room:
    """How many bytes of output `max_tokens` still allows."""

    left: int
    full: bool = field(default=False)

    def take(self, text: str) -> str:
        """Return as much of the text as fits, whole characters only."""
        data = text.encode()
        if len(data) > self.left:
            data, self.full = data[: self.left], True
        fitting = data.decode(errors="ignore")
        self.left -= len(fitting.encode())
        return fitting


def build(body: dict[str, Any], *, model: str, script: Script, memory: Memory, request: Request) -> Message:
    """Return the answer to a well-formed body."""
    room = Room(4 * int(body.get("max_tokens") or 1_000_000))
    blocks = tuple(content(body, script=script, memory=memory, room=room))
    tool_called = blocks[-1].whole["type"] == "tool_use"
    stop = "max_tokens" if room.full else "tool_use" if tool_called else "end_turn"
    chosen = request.header("x-sim-usage")
    served = script.text("model") or script.text("fallback") or model
    owner = f"{credential_of(request)}/{model}"
    return Message(
        id=memory.next_id("msg_sim_"),
        model=served,
        blocks=blocks,
        usage=msgspec.json.decode(chosen)
        if chosen
        else usage_of(body, blocks, script=script, owner=owner, memory=memory),
        stop_reason=script.text("stop", stop),
        placement=script.text("usage", "both"),
    )


# --- Content ----------------------------------------------------------------------------------------


def content(body: dict[str, Any], *, script: Script, memory: Memory, room: Room) -> Iterator[Block]:
    thinking = script.count("thinking", 8 if wants_thinking(body) else 0)
    if thinking:
        yield thinking_block(room.take("".join(islice(cycle("I think. "), 4 * thinking))))
    if script.has("compaction"):
        yield compaction_block()
    if script.has("advisor"):
        yield from advised(memory)
    for _ in range(searches(body, script)):
        yield from searched(memory)
    yield text_block(text_pieces(body, script), room)
    tool = tool_to_call(body, script)
    if tool and not room.full:
        yield tool_block(tool, memory, room)


def wants_thinking(body: dict[str, Any]) -> bool:
    return (body.get("thinking") or {}).get("type") in {"enabled", "adaptive"}


def thinking_block(text: str) -> Block:
    half = len(text) // 2
    signature = "c2ltdWxhdGVkIHNpZ25hdHVyZQ=="
    deltas = (
        {"type": "thinking_delta", "thinking": text[:half]},
        {"type": "thinking_delta", "thinking": text[half:]},
        {"type": "signature_delta", "signature": signature},
    )
    whole = {"type": "thinking", "thinking": text, "signature": signature}
    return Block(whole, {"type": "thinking", "thinking": "", "signature": ""}, deltas, len(text.encode()))


def compaction_block() -> Block:
    whole = {"type": "compaction", "content": "A summary of what was said."}
    return Block(whole, {"type": "compaction", "content": None}, ({**whole, "type": "compaction_delta"},))


def searches(body: dict[str, Any], script: Script) -> int:
    offered = any(str(tool.get("type", "")).startswith("web_search") for tool in body.get("tools") or ())
    return script.count("searches", 1 if offered else 0)


def searched(memory: Memory) -> Iterator[Block]:
    call_id = memory.next_id("srvtoolu_sim_")
    call = {"type": "server_tool_use", "id": call_id, "name": "web_search", "input": {"query": "simulated"}}
    argument = {"type": "input_json_delta", "partial_json": '{"query":"simulated"}'}
    yield Block(call, {**call, "input": {}}, (argument,))
    found = {
        "type": "web_search_result",
        "url": "https://example.org/",
        "title": "Example",
        "encrypted_content": "c2ltdWxhdGVk",
        "page_age": None,
    }
    result = {"type": "web_search_tool_result", "tool_use_id": call_id, "content": [found]}
    yield Block(result, result)


def advised(memory: Memory) -> Iterator[Block]:
    call_id = memory.next_id("srvtoolu_sim_")
    call = {"type": "server_tool_use", "id": call_id, "name": "advisor", "input": {}}
    advice = {"type": "advisor_result", "text": "Go on."}
    yield Block(call, call)
    result = {"type": "advisor_tool_result", "tool_use_id": call_id, "content": advice}
    yield Block(result, result)


def text_block(pieces: Iterator[str], room: Room) -> Block:
    taken: list[str] = []
    for piece in pieces:
        taken.append(room.take(piece))
        if room.full:
            break
    deltas = tuple({"type": "text_delta", "text": piece} for piece in taken if piece)
    text = "".join(taken)
    return Block({"type": "text", "text": text}, {"type": "text", "text": ""}, deltas, len(text.encode()))


def text_pieces(body: dict[str, Any], script: Script) -> Iterator[str]:
    """Yield the text of each delta: the words of the text, over and over if `chunks` asks for more."""
    text = script.text("say") or (UNICODE if script.text("text") == "unicode" else f"You said: {last_words(body)}")
    words = re.findall(r"\S+\s*|\s+", text) or [" "]
    size = script.count("size")
    pieces = (sized(word, size) for word in words) if size else iter(words)
    return islice(cycle(pieces), script.count("chunks", len(words)))


def sized(word: str, size: int) -> str:
    """Return the word repeated to exactly so many bytes, filled with dots where a character does not fit."""
    repeated = (word * (size // len(word.encode()) + 1)).encode()[:size].decode(errors="ignore")
    return repeated + "." * (size - len(repeated.encode()))


def last_words(body: dict[str, Any]) -> str:
    """Return the text of the last user message, shortened."""
    users = [message for message in body["messages"] if message.get("role") == "user"]
    said = users[-1].get("content") if users else ""
    if not isinstance(said, str):
        said = " ".join(str(block.get("text", "")) for block in said or () if block.get("type") == "text")
    return said[:ECHOED_CHARACTERS]


def tool_to_call(body: dict[str, Any], script: Script) -> dict[str, Any] | None:
    """Return the first tool of the client's own, once: not again after its result has come."""
    last = body["messages"][-1].get("content")
    answered = isinstance(last, list) and any(block.get("type") == "tool_result" for block in last)
    if answered or script.text("tools") == "0" or (body.get("tool_choice") or {}).get("type") == "none":
        return None
    own = [tool for tool in body.get("tools") or () if "input_schema" in tool]
    wanted = (body.get("tool_choice") or {}).get("name")
    return next((tool for tool in own if tool["name"] == wanted), own[0] if own else None)


def tool_block(tool: dict[str, Any], memory: Memory, room: Room) -> Block:
    properties = (tool["input_schema"].get("properties") or {}).items()
    arguments = {name: example(schema) for name, schema in properties}
    text = encode(arguments).decode()
    half = len(text) // 2
    fits = room.take(text) == text
    deltas = tuple({"type": "input_json_delta", "partial_json": part} for part in ("", text[:half], text[half:]))
    start = {"type": "tool_use", "id": memory.next_id("toolu_sim_"), "name": tool["name"], "input": {}}
    return Block({**start, "input": arguments}, start, deltas if fits else (), len(text.encode()) if fits else 0)


def example(schema: dict[str, Any]) -> Any:
    """Return a value of the schema's type."""
    if schema.get("enum"):
        return schema["enum"][0]
    kinds: dict[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}
    kind = schema.get("type")
    return kinds.get(kind, "simulated") if isinstance(kind, str) else "simulated"


# --- Usage ------------------------------------------------------------------------------------------


def usage_of(
    body: dict[str, Any], blocks: tuple[Block, ...], *, script: Script, owner: str, memory: Memory
) -> dict[str, Any]:
    weight = weigh(body, owner=owner, memory=memory)
    written_5m = script.count("cache_5m", weight.written_5m)
    written_1h = script.count("cache_1h", weight.written_1h)
    usage: dict[str, Any] = {
        "input_tokens": script.count("in", weight.plain),
        "cache_creation_input_tokens": written_5m + written_1h,
        "cache_read_input_tokens": script.count("cache_read", weight.read),
        "cache_creation": {"ephemeral_5m_input_tokens": written_5m, "ephemeral_1h_input_tokens": written_1h},
        "output_tokens": script.count("out", max(1, tokens(sum(block.size for block in blocks)))),
        "service_tier": script.text("tier", "standard"),
        "inference_geo": script.text("geo") or body.get("inference_geo") or "global",
    }
    speed = script.text("speed") or body.get("speed")
    if speed:
        usage["speed"] = speed
    thought = sum(tokens(block.size) for block in blocks if block.whole["type"] == "thinking")
    if thought:
        usage["output_tokens_details"] = {"thinking_tokens": thought}
    searched_, fetched = searches(body, script), script.count("fetches")
    if searched_ or fetched:
        usage["server_tool_use"] = {"web_search_requests": searched_, "web_fetch_requests": fetched}
    rounds = iterations(usage, model=str(body.get("model", "")).partition("~")[0], script=script)
    return {**usage, "iterations": rounds} if rounds else usage


def iterations(usage: dict[str, Any], *, model: str, script: Script) -> list[dict[str, Any]]:
    """Return what the vendor lists iteration by iteration, empty where nothing special happened."""
    own = {key: usage[key] for key in COUNTED}
    rounds: list[dict[str, Any]] = []
    if script.has("compaction"):
        _, (read, written) = script.counts("compaction", 2)
        rounds.append(iteration("compaction", read, written))
    if script.has("advisor"):
        advisor, (read, written) = script.counts("advisor", 2)
        rounds.append({**iteration("advisor_message", read, written), "model": advisor})
    if script.has("fallback"):
        declined = {**own, "output_tokens": 1, "type": "message", "model": model}
        return [*rounds, declined, {**own, "type": "fallback_message", "model": script.text("fallback")}]
    return [*rounds, {**own, "type": "message"}] if rounds else []


COUNTED = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "cache_creation")


def iteration(kind: str, read: int, written: int) -> dict[str, Any]:
    return {
        "type": kind,
        "input_tokens": read,
        "output_tokens": written,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    }
