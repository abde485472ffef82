"""What one answer in Anthropic's Messages format used, folded event by event."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from relay.call import Outcome, Usage, UsageSource
from relay.dialects import anthropic_usage
from relay.dialects.base import Meter
from relay.sse import events

# The vendor's own framing of the one event that comes by the thousand; everything else takes the general way.
DELTA = b"event: content_block_delta\ndata: "
BYTES_PER_TOKEN = 4
MAX_NAME = 200
# Events that commit to nothing: the call can still go to another account.
BEFORE_CONTENT = frozenset({"ping", "message_start", "error"})
NAMES = BEFORE_CONTENT | frozenset(
    ("content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop")
)


class _Delta(msgspec.Struct):
    text: str = ""
    partial_json: str = ""
    thinking: str = ""


class _DeltaEvent(msgspec.Struct):
    delta: _Delta


class _Typed(msgspec.Struct):
    type: str = ""


class _Message(msgspec.Struct):
    type: str = ""
    id: Any = None
    model: Any = None
    usage: msgspec.Raw = msgspec.Raw(b"null")
    content: msgspec.Raw = msgspec.Raw(b"[]")
    stop_reason: Any = None
    error: Any = None


class _Start(msgspec.Struct):
    message: _Message


class _Stop(msgspec.Struct):
    stop_reason: Any = None


class _MessageDelta(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw(b"null")
    delta: _Stop | None = None


_delta = msgspec.json.Decoder(_DeltaEvent)
_typed = msgspec.json.Decoder(_Typed)
_start = msgspec.json.Decoder(_Start)
_message_delta = msgspec.json.Decoder(_MessageDelta)
_message = msgspec.json.Decoder(_Message)
_any = msgspec.json.Decoder()
_UNREADABLE = (ValueError, RecursionError, msgspec.MsgspecError)


class AnthropicMeter(Meter):
    """`metered=False`: the answer bills nothing (count_tokens), only errors are read."""

    def __init__(self, *, metered: bool) -> None:
        self._metered = metered
        self._model = ""
        self._id = ""
        self._raw: dict[str, msgspec.Raw] = {}
        self._fields: dict[str, Any] = {}  # usage so far, without message_start's placeholder of the output
        self._reported: int | None = None  # output tokens, cumulative
        self._since = 0  # bytes relayed since they were reported
        self._whole = False
        self._flag = ""
        self._stopped: Any = None  # the reason
        self._empty = True  # no content block yet

    def feed(self, block: bytes) -> int:
        cut, start, size = -1, 0, len(block)
        if b"\r" in block:
            return self._feed_any(block, 0)
        while start < size:
            end = block.find(b"\n\n", start)
            end = size if end < 0 else end
            if block.startswith(DELTA, start) and block.find(b"\n", start + len(DELTA), end) < 0:
                self.content_seen = True
                self._content(block[start + len(DELTA) : end])
            else:
                offset = self._feed_any(block[start : end + 2], start)
                cut = offset if cut < 0 else cut
            start = end + 2
        return cut

    def _feed_any(self, block: bytes, base: int) -> int:
        cut = -1
        for offset, event, data in events(block):
            name = event.decode("latin1")
            ends = self._event(name if name in NAMES else _type_of(data) or name, data)
            if ends and cut < 0:
                cut = base + offset
        return cut

    def _event(self, name: str, data: bytes) -> bool:
        """Fold one event; returns whether it ends the stream."""
        if name not in BEFORE_CONTENT:
            self.content_seen = True
        if name == "content_block_delta":
            self._content(data)
        elif name == "content_block_start":
            self._empty = False
        elif name == "message_start":
            self._begin(data)
        elif name == "message_delta":
            self._report(data)
        elif name == "error":
            self._fail(data)
        elif name != "message_stop":
            return False
        if name in {"message_stop", "error"}:
            self.terminal = True
            return True
        return False

    def _content(self, data: bytes) -> None:
        try:
            delta = _delta.decode(data).delta
        except _UNREADABLE:
            return
        text = delta.text or delta.partial_json or delta.thinking
        self._since += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

    def _begin(self, data: bytes) -> None:
        try:
            message = _start.decode(data).message
        except _UNREADABLE:
            return
        self._name(message)
        fields = _object(message.usage)
        if fields:
            self._raw["message_start"] = msgspec.Raw(bytes(message.usage))
            # Its output tokens are a placeholder, often 1 or 8, before anything was made.
            fields.pop(anthropic_usage.OUTPUT, None)
            fields.pop("output_tokens_details", None)
            self._fields = anthropic_usage.merge(self._fields, fields)

    def _report(self, data: bytes) -> None:
        try:
            event = _message_delta.decode(data)
        except _UNREADABLE:
            return
        if event.delta is not None and event.delta.stop_reason is not None:
            self._stopped = event.delta.stop_reason
        fields = _object(event.usage)
        if fields:
            self._raw["message_delta"] = msgspec.Raw(bytes(event.usage))
            self._fields = anthropic_usage.merge(self._fields, fields)
            self._note_output()

    def _note_output(self) -> None:
        output = anthropic_usage.output_of(self._fields)
        if output is not None:
            self._reported, self._since = output, 0

    def _fail(self, data: bytes) -> None:
        self.error_body = data
        try:
            error = _message.decode(data).error
        except _UNREADABLE:
            error = None
        self._set_error(error)

    def _set_error(self, error: Any) -> None:
        fields = anthropic_usage.mapping(error)
        self.error = anthropic_usage.text(fields.get("type"), MAX_NAME) or "api_error"
        self.error_message = anthropic_usage.text(fields.get("message"), MAX_NAME)

    def _name(self, message: _Message) -> None:
        self._id = anthropic_usage.text(message.id, MAX_NAME)
        self._model = anthropic_usage.text(message.model, MAX_NAME)

    def whole(self, body: bytes) -> None:
        try:
            message = _message.decode(body)
        except _UNREADABLE:
            self.feed(body)  # some compatible servers stream whether asked to or not
            self._flag = "" if self._fields else "unreadable_answer"
            return
        if message.type == "error":
            self.error_body = body
            self._set_error(message.error)
            return
        self._name(message)
        self.content_seen = self.terminal = self._whole = True
        self._stopped, self._empty = message.stop_reason, bytes(message.content) == b"[]"
        fields = _object(message.usage)
        if fields:
            self._raw["usage"] = msgspec.Raw(bytes(message.usage))
            self._fields = fields
            self._note_output()
        if self._reported is None:
            self._since = _content_bytes(message.content)

    def outcome(self) -> Outcome:
        usage, source = self._usage() if self._metered else (Usage(), UsageSource.NONE)
        return Outcome(
            usage=usage,
            source=source,
            response_model=anthropic_usage.served_by(self._fields) or self._model,
            response_id=self._id,
            terminal=self.terminal,
            error=self.error,
        )

    def _usage(self) -> tuple[Usage, UsageSource]:
        ended = self._stopped is not None or (self.terminal and not self.error)
        final = self._reported is not None and ended
        estimate = None if final else (self._reported or 0) + self._since // BYTES_PER_TOKEN
        if not self._fields:
            flags = (self._flag,) if self._flag else ("no_usage",) if self.terminal and not self.error else ()
            if not self._since:
                return Usage(flags=flags), UsageSource.NONE
            return Usage(output_tokens=max(1, estimate or 0), flags=flags), UsageSource.ESTIMATED
        usage = anthropic_usage.read(self._fields, raw=self._raw_usage(), output=estimate)
        if not final:
            return usage, UsageSource.PARTIAL
        if usage.input_tokens is None and not usage.cache_read_input_tokens:
            return replace(usage, flags=(*usage.flags, "input_not_reported")), UsageSource.PARTIAL
        if self._stopped == "refusal" and self._empty:
            # Anthropic says that it bills none of these; its usage object does not.
            return replace(usage, flags=(*usage.flags, "refused_without_output")), UsageSource.PROVIDER
        return usage, UsageSource.PROVIDER

    def _raw_usage(self) -> bytes:
        """The usage object of a whole answer, or those of a stream by the events that carried them, as they came."""
        return bytes(self._raw["usage"]) if self._whole else msgspec.json.encode(self._raw)


def _type_of(data: bytes) -> str:
    try:
        return _typed.decode(data).type
    except _UNREADABLE:
        return ""


def _object(raw: msgspec.Raw) -> dict[str, Any]:
    try:
        value = _any.decode(raw)
    except _UNREADABLE:
        return {}
    return value if isinstance(value, dict) else {}


def _content_bytes(content: msgspec.Raw) -> int:
    """Bytes of text and tool arguments of a whole answer."""
    try:
        blocks = _any.decode(content)
    except _UNREADABLE:
        return 0
    total = 0
    for block in blocks if isinstance(blocks, list) else []:
        fields = anthropic_usage.mapping(block)
        for name in ("text", "thinking"):
            total += len(str(fields.get(name) or "").encode("utf-8", "replace"))
        if "input" in fields:
            total += len(msgspec.json.encode(fields["input"]))
    return total
