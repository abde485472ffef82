"""Counting what a Responses answer used, hosted tools included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from relay.call import Outcome, Quantity
from relay.dialects.openai_common import JsonObject, as_object, count, error_object, read_usage, text
from relay.dialects.openai_meter import OBJECT, OpenAIMeter, is_object
from relay.sse import events

ENDS = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled", "response.error", "error"}
)
# The life of a response before it says anything: another account can still make it.
BEFORE_CONTENT = ENDS | {"response.created", "response.queued", "response.in_progress"}
# Deltas that carry no text of the model's: sound, and what a tool put out.
NO_TEXT = frozenset({"response.audio.delta", "response.shell_call_output_content.delta"})
# A failed answer that is not the caller's fault. One that is passes as it came: with HTTP 200, as the vendor does.
VENDORS_FAULT = frozenset({"server_error", "rate_limit_exceeded", "vector_store_timeout", "server_is_overloaded"})


class OutputItem(msgspec.Struct):
    type: Any = None
    action: Any = None
    status: Any = None
    container_id: Any = None


class Tool(msgspec.Struct):
    type: Any = None
    model: Any = None


class Response(msgspec.Struct):
    id: Any = None
    model: Any = None
    status: Any = None
    service_tier: Any = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    tool_usage: Any = None
    prompt_cache_options: Any = None
    output: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()


class Event(msgspec.Struct):
    type: Any = None
    sequence_number: Any = None
    delta: Any = None
    response: msgspec.Raw = msgspec.Raw()


EVENT = msgspec.json.Decoder(Event)
RESPONSE = msgspec.json.Decoder(Response)
OUTPUT = msgspec.json.Decoder(list[OutputItem])
TOOLS = msgspec.json.Decoder(list[Tool])
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ResponsesMeter(OpenAIMeter):
    """Of one response, streamed or whole, or of a compaction; counts nothing on an unmetered endpoint."""

    def __init__(self, *, metered: bool) -> None:
        super().__init__(metered=metered)
        self.sequence = -1
        self.tools: tuple[Quantity, ...] = ()
        self.flags: tuple[str, ...] = ()

    def feed(self, block: bytes) -> int:
        end = -1
        for offset, _, data in events(block):
            self.fold(data)
            if self.terminal and end < 0:
                end = offset
        return end

    def fold(self, data: bytes) -> None:
        """Take what one event says; what can't be read counts as nothing."""
        try:
            event = EVENT.decode(data)
        except UNREADABLE:
            return
        if not isinstance(event.type, str):
            if (error := error_object(data)) is not None:
                self.fail(error)  # some servers break into the stream with a plain error body
            return
        self.sequence = event.sequence_number if count(event.sequence_number) is not None else self.sequence + 1
        if event.type not in BEFORE_CONTENT:
            self.content_seen = True
        if event.type.endswith(".delta"):
            if event.type not in NO_TEXT:
                self.saw(event.delta)
        elif event.type in {"error", "response.error"}:
            self.fail(error_object(data) or {})
        elif event.response:
            self.take(event.response, end=event.type in ENDS)

    def take(self, raw: msgspec.Raw, *, end: bool) -> None:
        """Take the response object that events of its life carry; the last one carries the usage."""
        self.terminal = self.terminal or end
        try:
            response = RESPONSE.decode(raw)
        except UNREADABLE:
            return
        self.read(response, end=end)
        if is_object(response.error):
            self.failed_answer = bool(self.answer_id)
            self.fail(error_object(b'{"error":' + bytes(response.error) + b"}") or {})

    def read(self, response: Response, *, end: bool) -> None:
        self.name(answer_id=response.id, model=response.model)
        self.service_tier = text(response.service_tier) or self.service_tier
        if is_object(response.usage):
            ttl = text(as_object(response.prompt_cache_options).get("ttl"))
            if (usage := read_usage(bytes(response.usage), cache_ttl=ttl)) is not None:
                self.report(usage, final=end)
        if end:
            self.tools, self.flags = hosted_tools(response)

    def whole(self, body: bytes) -> None:
        if OBJECT.match(body) is None:
            self.unasked(body)
            return
        self.take(msgspec.Raw(body), end=True)
        self.content_seen = True
        if self.metered and self.usage is None:
            self.saw(*texts(body))
        if self.answer_id and self.error not in VENDORS_FAULT:
            self.error = self.error_message = ""

    def outcome(self) -> Outcome:
        known = super().outcome()
        if not self.metered or not (self.tools or self.flags):
            return known
        usage = known.usage
        return replace(
            known, usage=replace(usage, extra=(*usage.extra, *self.tools), flags=(*usage.flags, *self.flags))
        )


def texts(body: bytes) -> Iterator[object]:
    """What a whole answer says: texts, summaries of reasoning, and the arguments of tools."""
    try:
        items = as_object(msgspec.json.decode(body)).get("output")
    except UNREADABLE:
        return
    for item in map(as_object, items if isinstance(items, list) else ()):
        yield from (item.get(name) for name in ("name", "arguments", "input", "code"))
        for parts in (item.get("content"), item.get("summary")):
            for part in map(as_object, parts if isinstance(parts, list) else ()):
                yield from (part.get(name) for name in ("text", "refusal"))


def hosted_tools(response: Response) -> tuple[tuple[Quantity, ...], tuple[str, ...]]:
    """What the vendor bills beside the tokens, and a flag where that had to be counted from the output."""
    items, used, flags = read_output(response.output), as_object(response.tool_usage), []
    searches = count(as_object(used.get("web_search")).get("num_requests"))
    if searches is None:
        searches = sum(item.type == "web_search_call" and is_search(item) for item in items)
        flags += ["web_searches_counted"] if searches else []
    containers = {item.container_id for item in items if item.type == "code_interpreter_call"}
    found = [
        Quantity("web_searches", searches),
        Quantity("file_searches", sum(item.type == "file_search_call" for item in items)),
        Quantity("code_interpreter_sessions", len(containers)),
        *image_generation(as_object(used.get("image_gen")), image_model(response)),
    ]
    return tuple(item for item in found if item.quantity), tuple(flags)


def read_output(raw: msgspec.Raw) -> list[OutputItem]:
    try:
        return OUTPUT.decode(raw) if raw else []
    except UNREADABLE:
        return []


def is_search(item: OutputItem) -> bool:
    return item.status != "failed" and bool(as_object(item.action).get("type", "search") == "search")


def image_model(response: Response) -> str:
    """The model that drew, as far as the response names it; the tool's own name has no price, and so shows."""
    try:
        tools = TOOLS.decode(response.tools) if response.tools else []
    except UNREADABLE:
        tools = []
    named = {text(tool.model) for tool in tools if tool.type == "image_generation"} - {""}
    return named.pop() if len(named) == 1 else "image_generation"


def image_generation(used: JsonObject, model: str) -> list[Quantity]:
    """Tokens of hosted image generation: another model's, at its own rates for text and image."""
    into, out = as_object(used.get("input_tokens_details")), as_object(used.get("output_tokens_details"))
    cached = as_object(used.get("cached_tokens_details"))
    cached_image = count(cached.get("cached_image_tokens")) or 0
    cached_text = max((count(used.get("cached_tokens")) or 0) - cached_image, 0)
    image_in = count(into.get("image_tokens")) or 0
    text_in = max((count(used.get("input_tokens")) or 0) - image_in, 0)
    text_out = count(out.get("text_tokens")) or 0
    image_out = max((count(used.get("output_tokens")) or 0) - text_out, 0)
    counts = {
        "input_tokens": max(text_in - cached_text, 0),
        "cache_read_input_tokens": cached_text,
        "image_input_tokens": max(image_in - cached_image, 0),
        "image_cache_read_input_tokens": cached_image,
        "output_tokens": text_out,
        "image_output_tokens": image_out,
    }
    return [Quantity(meter, quantity, model, run=1) for meter, quantity in counts.items()]
