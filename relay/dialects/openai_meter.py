"""Counting what a Chat Completions or Embeddings answer used."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec.structs import replace

from relay.call import Outcome, Usage, UsageSource
from relay.dialects.base import Meter
from relay.dialects.openai_common import JsonObject, error_name, error_object, read_usage, text
from relay.sse import BLANK_LINE, events

BYTES_PER_TOKEN = 4
DONE = b"[DONE]"
NULL = b"null"
OBJECT = re.compile(rb"\s*\{")
NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


class Function(msgspec.Struct):
    name: Any = None
    arguments: Any = None
    input: Any = None  # of custom tools


class ToolCall(msgspec.Struct):
    function: Function | None = None
    custom: Function | None = None


class Audio(msgspec.Struct):
    transcript: Any = None


class Text(msgspec.Struct):
    """A delta or a whole message; compatible servers name their reasoning in two ways."""

    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    audio: Audio | None = None


class Choice(msgspec.Struct):
    delta: Text | None = None
    message: Text | None = None
    finish_reason: Any = None


class Loose(msgspec.Struct):
    """What is read of a chunk whose choices are not as the format says."""

    id: Any = None
    model: Any = None
    usage: msgspec.Raw = msgspec.Raw()
    service_tier: Any = None
    error: msgspec.Raw = msgspec.Raw()


class Chunk(Loose):
    choices: list[Choice] | None = None


class AnyChoice(msgspec.Struct):
    delta: Any = None
    finish_reason: Any = None


class Choices(msgspec.Struct):
    choices: list[AnyChoice] | None = None


class Last(Chunk):
    """What tells the chunk of nothing but usage from others without choices."""

    moderation: msgspec.Raw = msgspec.Raw()
    prompt_filter_results: msgspec.Raw = msgspec.Raw()


CHUNK = msgspec.json.Decoder(Chunk)
LOOSE = msgspec.json.Decoder(Loose)
LAST = msgspec.json.Decoder(Last)
CHOICES = msgspec.json.Decoder(Choices)
NOTHING: tuple[object, ...] = (None, "", [], {})
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class OpenAIMeter(Meter):
    """What both formats' meters keep: names, the usage object, and how many bytes of text went by."""

    def __init__(self, *, metered: bool) -> None:
        self.metered = metered
        self.usage: Usage | None = None
        self.final = False  # the usage is the whole answer's, not a count on the way
        self.text_bytes = 0
        self.reported_bytes = 0  # of them, those that a usage object came after
        self.model = ""
        self.answer_id = ""
        self.service_tier = ""
        self.unreadable = False  # a whole body that says nothing

    def outcome(self) -> Outcome:
        usage, source = self.counted()
        return Outcome(
            usage=replace(usage, service_tier=self.service_tier) if self.service_tier else usage,
            source=source,
            response_model=self.model,
            response_id=self.answer_id,
            terminal=self.terminal,
            error=self.error,
        )

    def counted(self) -> tuple[Usage, UsageSource]:
        """The counts known now, and where they come from."""
        if not self.metered:
            return Usage(), UsageSource.NONE
        estimate = -(-(self.text_bytes - self.reported_bytes) // BYTES_PER_TOKEN)
        whole = self.terminal and not self.error and not self.failed_answer
        if self.unreadable:
            return Usage(flags=("unreadable_answer",)), UsageSource.NONE
        if self.usage is None:
            usage = Usage(output_tokens=estimate or None, flags=("no_usage",) if whole else ())
            return usage, UsageSource.ESTIMATED if estimate or whole else UsageSource.NONE
        if (self.final and not estimate) or (self.terminal and not self.error):
            return self.usage, UsageSource.PROVIDER
        if estimate:
            output = (self.usage.output_tokens or 0) + estimate
            return replace(self.usage, output_tokens=output), UsageSource.PARTIAL
        return self.usage, UsageSource.PARTIAL

    def unasked(self, body: bytes) -> None:
        """Take a whole body that is no object: some compatible servers stream whether asked to or not."""
        self.feed(body)
        self.unreadable = self.usage is None and not self.text_bytes and not self.error

    def report(self, usage: Usage, *, final: bool) -> None:
        """Take the counts of all that was said until now; a zero is no count of what was said before it."""
        self.usage, self.final = usage, final
        if usage.output_tokens:
            self.reported_bytes = self.text_bytes

    def name(self, *, answer_id: object, model: object) -> None:
        """Keep what an event says of the answer; later ones win."""
        self.answer_id = text(answer_id) or self.answer_id
        self.model = text(model) or self.model

    def fail(self, error: JsonObject) -> None:
        """An error inside a 200."""
        said = {name: error.get(name) for name in ("message", "type", "param", "code")}
        self.error = error_name(error)
        self.error_message = str(said["message"] or "")[:500]
        self.error_body = msgspec.json.encode({"error": said})
        self.terminal = True

    def saw(self, *values: object) -> None:
        """Count text that was generated."""
        for value in values:
            if isinstance(value, str) and value:
                self.text_bytes += len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
                self.content_seen = True


class ChatMeter(OpenAIMeter):
    """Of one chat answer, streamed or whole, or one embedding answer."""

    def feed(self, block: bytes) -> int:
        end = -1
        for offset, _, data in events(block):
            if data.startswith(DONE):
                self.terminal = True
            else:
                self.fold(data)
            if self.terminal and end < 0:
                end = offset
        return end

    def whole(self, body: bytes) -> None:
        if OBJECT.match(body) is None:
            self.unasked(body)
            return
        self.fold(body)
        self.final = self.terminal = True

    def fold(self, data: bytes) -> None:
        """Take what one chunk says; what can't be read counts as nothing."""
        try:
            chunk = CHUNK.decode(data)
        except UNREADABLE:
            chunk = read_loosely(data)
        if chunk.id != self.answer_id or not self.model:
            self.name(answer_id=chunk.id, model=chunk.model)
        self.service_tier = text(chunk.service_tier) or self.service_tier
        for choice in chunk.choices or ():
            self.choose(choice)
        if not self.content_seen:
            self.content_seen = says_something(data)
        if chunk.error and is_object(chunk.error):
            self.fail(error_object(data) or {})
        if chunk.usage and is_object(chunk.usage) and (usage := read_usage(bytes(chunk.usage))) is not None:
            self.report(usage, final=self.final or not chunk.choices)

    def choose(self, choice: Choice) -> None:
        said = choice.delta or choice.message
        if said is None:
            return
        self.saw(said.content, said.refusal, said.reasoning_content or said.reasoning)
        for call in said.tool_calls or ():
            self.called(call.function or call.custom)
        self.called(said.function_call)
        if said.audio is not None:
            self.saw(said.audio.transcript)

    def called(self, function: Function | None) -> None:
        if function is not None:
            self.saw(function.name, function.arguments, function.input)


def says_something(data: bytes) -> bool:
    """Whether a chunk has more than names, counts and the role: also what only its vendor's own fields say."""
    try:
        choices = CHOICES.decode(data).choices or []
    except UNREADABLE:
        return True
    return any(
        choice.finish_reason is not None
        or not isinstance(choice.delta, dict)
        or any(value not in NOTHING for name, value in choice.delta.items() if name != "role")
        for choice in choices
    )


def read_loosely(data: bytes) -> Chunk:
    try:
        loose = LOOSE.decode(data)
    except UNREADABLE:
        return Chunk()
    return Chunk(loose.id, loose.model, loose.usage, loose.service_tier, loose.error)


def is_object(raw: msgspec.Raw) -> bool:
    """Whether there is something: compatible servers send `null`, and a string for an error."""
    return bool(raw) and bytes(raw) not in {NULL, b'""', b"{}", b"false"}


def without_usage_chunk(block: bytes) -> bytes:
    """The block without the chunk that carries nothing but the usage: no choice, no moderation, no filter result."""
    if NO_CHOICES.search(block) is None:
        return block
    cuts = []
    for offset, _, data in events(block):
        if not data.startswith(DONE) and is_usage_chunk(data):
            match = BLANK_LINE.search(block, offset)
            cuts.append((offset, match.end() if match else len(block)))
    for start, end in reversed(cuts):
        block = block[:start] + block[end:]
    return block


def is_usage_chunk(data: bytes) -> bool:
    try:
        chunk = LAST.decode(data)
    except UNREADABLE:
        return False
    more = is_object(chunk.moderation) or is_object(chunk.prompt_filter_results) or is_object(chunk.error)
    return chunk.choices == [] and bytes(chunk.usage).startswith(b"{") and not more
