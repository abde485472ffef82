"""What one answer in Gemini's format used, folded piece by piece: events, elements of an array, or a whole body."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec.structs import replace

from relay.call import Outcome, Quantity, Usage, UsageSource
from relay.dialects import gemini_usage
from relay.dialects.base import Meter
from relay.dialects.gemini_array import elements, is_array
from relay.sse import BLANK_LINE, events

BYTES_PER_TOKEN = 4
MAX_NAME = 200
# An error in the middle of a stream comes as plain JSON, in no event.
PLAIN_JSON = re.compile(rb"(?:^|[\r\n])(?=\{)")
# What may come after the last part of an answer: the counts alone. The upstream ends its response after it.
LINGER_SECONDS = 5.0
# Of several answers one may end long before the others.
PATIENCE_SECONDS = 300.0


class Part(msgspec.Struct, rename="camel"):
    text: Any = None
    function_call: msgspec.Raw = msgspec.Raw()
    executable_code: msgspec.Raw = msgspec.Raw()
    code_execution_result: msgspec.Raw = msgspec.Raw()


class Content(msgspec.Struct):
    parts: list[Part] | None = None


class Grounding(msgspec.Struct, rename="camel"):
    web_search_queries: list[str] | None = None
    image_search_queries: list[str] | None = None
    grounding_chunks: list[dict[str, Any]] | None = None


class Candidate(msgspec.Struct, rename="camel"):
    content: msgspec.Raw = msgspec.Raw()
    finish_reason: Any = None
    index: Any = None
    grounding_metadata: msgspec.Raw = msgspec.Raw()


class Feedback(msgspec.Struct, rename="camel"):
    block_reason: Any = None


class Error(msgspec.Struct):
    code: Any = None
    message: Any = None
    status: Any = None


class Chunk(msgspec.Struct, rename="camel"):
    candidates: msgspec.Raw = msgspec.Raw()
    usage_metadata: msgspec.Raw = msgspec.Raw()
    prompt_feedback: msgspec.Raw = msgspec.Raw()
    model_version: Any = None
    response_id: Any = None
    error: msgspec.Raw = msgspec.Raw()


CHUNK = msgspec.json.Decoder(Chunk)
CANDIDATES = msgspec.json.Decoder(list[Candidate] | None)
CONTENT = msgspec.json.Decoder(Content | None)
FEEDBACK = msgspec.json.Decoder(Feedback | None)
GROUNDING = msgspec.json.Decoder(Grounding | None)
ERROR = msgspec.json.Decoder(Error)
LIST = msgspec.json.Decoder(list[msgspec.Raw])
UNREADABLE = gemini_usage.UNREADABLE


class GeminiMeter(Meter):
    """`answers` were asked for; `tier` is what the request wanted, until the answer says what it got."""

    def __init__(self, *, metered: bool, answers: int = 1, tier: str = "") -> None:
        self.linger = LINGER_SECONDS if answers <= 1 else PATIENCE_SECONDS
        self.array: bool | None = None  # how the stream is framed, once it began
        self.closed = False  # the array's end was seen
        self._metered = metered
        self._tier = tier
        self._model = ""
        self._id = ""
        self._usage: Usage | None = None
        self._since = 0  # bytes of text since output was last reported
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._queries: set[str] = set()
        self._mapped = False
        self._flag = ""

    # -- streams -------------------------------------------------------------------------------------

    def feed(self, block: bytes) -> int:
        if self.array is None:
            self.array = is_array(block)
        return self._feed_elements(block) if self.array else self._feed_events(block)

    def _feed_events(self, block: bytes) -> int:
        cut = -1
        for offset, _, data in events(block):
            if self._fold(data) and cut < 0:
                cut = offset
        plain = PLAIN_JSON.search(block)
        if plain is not None:
            end = BLANK_LINE.search(block, plain.end())
            if self._fold(block[plain.end() : end.start() if end else len(block)]) and cut < 0:
                cut = plain.end()
        return cut

    def _feed_elements(self, block: bytes) -> int:
        """Fold the elements; the closing bracket is what ends an array well, whatever they said."""
        whole, closing = elements(block)
        try:
            listed = LIST.decode(whole)
        except UNREADABLE:
            listed = []
        for element in listed:
            self._fold(bytes(element))
        if closing < 0:
            return -1
        self.terminal = self.closed = True
        return closing

    def _fold(self, data: bytes) -> bool:
        """Take what one piece says; returns whether the answer ends with it. What can't be read counts as nothing."""
        try:
            chunk = CHUNK.decode(data)
        except UNREADABLE:
            return False
        if is_object(chunk.error):
            self._fail(chunk.error)
            return True
        self._model = text(chunk.model_version) or self._model
        self._id = text(chunk.response_id) or self._id
        ends = self._choose(chunk.candidates)
        if is_object(chunk.prompt_feedback):
            ends = blocks(chunk.prompt_feedback) or ends
        if is_object(chunk.usage_metadata):
            self._count(bytes(chunk.usage_metadata))
        self.terminal = self.terminal or ends
        return ends

    def _choose(self, raw: msgspec.Raw) -> bool:
        """Fold the candidates; returns whether one ended here, and none that has begun goes on."""
        ended = False
        for candidate in decoded(CANDIDATES, raw) or ():
            self.content_seen = True
            index = candidate.index if isinstance(candidate.index, int) else 0
            self._seen.add(index)
            content = decoded(CONTENT, candidate.content)
            self._since += sum(size_of(part) for part in (content.parts if content else None) or ())
            if is_object(candidate.grounding_metadata):
                self._ground(candidate.grounding_metadata)
            if candidate.finish_reason is not None:
                self._finished.add(index)
                ended = True
        return ended and self._finished >= self._seen

    def _ground(self, raw: msgspec.Raw) -> None:
        found = decoded(GROUNDING, raw)
        if found is not None:
            self._queries.update(found.web_search_queries or (), found.image_search_queries or ())
            self._mapped = self._mapped or any("maps" in chunk for chunk in found.grounding_chunks or ())

    def _count(self, raw: bytes) -> None:
        """The last usage object that has counts is the one that holds."""
        usage = gemini_usage.read(raw, asked=self._tier)
        if usage is None:
            return
        self._usage = usage
        self._tier = usage.service_tier
        if usage.output_tokens is not None:
            self._since = 0

    def _fail(self, raw: msgspec.Raw) -> None:
        """An error inside a 200."""
        error = decoded(ERROR, raw) or Error()
        self.error = text(error.status) or text(str(error.code or "")) or "UNKNOWN"
        self.error_message = text(error.message)
        self.error_body = b'{"error":' + bytes(raw) + b"}"
        self.terminal = True

    # -- whole answers -------------------------------------------------------------------------------

    def whole(self, body: bytes) -> None:
        self._fold(body)
        self._flag = "" if self._usage is not None or self.error or not self._metered else "no_usage"
        self.content_seen = self.terminal = True

    # -- what it comes to ----------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        usage, source = self._counted() if self._metered else (Usage(), UsageSource.NONE)
        return Outcome(
            usage=usage,
            source=source,
            response_model=self._model,
            response_id=self._id,
            terminal=self.terminal,
            error=self.error,
        )

    def _counted(self) -> tuple[Usage, UsageSource]:
        whole = self.terminal and not self.error
        estimate = -(-self._since // BYTES_PER_TOKEN)
        if self._usage is None:
            flags = ("no_usage",) if whole else ()
            if not estimate and not self._flag:
                return Usage(flags=flags), UsageSource.NONE
            usage = Usage(output_tokens=estimate, extra=self._beside(), service_tier=self._tier, flags=flags)
            return usage, UsageSource.ESTIMATED
        output = self._usage.output_tokens
        usage = replace(
            self._usage,
            output_tokens=(output or 0) + estimate if whole or estimate else output,
            extra=(*self._usage.extra, *self._beside()),
            service_tier=self._tier,
        )
        return usage, UsageSource.PROVIDER if whole and not estimate else UsageSource.PARTIAL

    def _beside(self) -> tuple[Quantity, ...]:
        """What is billed beside the tokens."""
        searches = gemini_usage.searches(self._queries, model=self._model)
        found = [Quantity("web_searches", searches)] if searches else []
        return (*found, Quantity("maps_searches", 1)) if self._mapped else tuple(found)


def decoded(decoder: msgspec.json.Decoder[Any], raw: msgspec.Raw) -> Any:
    """What the bytes say, None where they say something else."""
    try:
        return decoder.decode(raw) if raw else None
    except UNREADABLE:
        return None


def is_object(raw: msgspec.Raw) -> bool:
    return bytes(raw).startswith(b"{")


def blocks(raw: msgspec.Raw) -> bool:
    """Whether the prompt was refused: then no candidate comes."""
    feedback = decoded(FEEDBACK, raw)
    return feedback is not None and feedback.block_reason is not None


def size_of(part: Part) -> int:
    """Bytes of text, code and tool arguments."""
    said = part.text if isinstance(part.text, str) else ""
    return len(said.encode("utf-8", "replace")) + len(part.function_call) + len(part.executable_code)


def text(value: object) -> str:
    """A vendor's name for something, as it can stand in a record."""
    return value[:MAX_NAME] if isinstance(value, str) else ""
