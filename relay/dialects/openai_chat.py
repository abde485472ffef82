"""OpenAI's Chat Completions format, and Embeddings beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from relay.call import Endpoint, Envelope
from relay.dialects import body as json_body
from relay.dialects.base import Meter
from relay.dialects.openai_common import (
    OpenAIDialect,
    Opening,
    as_object,
    conversation,
    decoded,
    invalid,
    native_error,
    readable_model,
    ruled_out,
    session_of,
    text,
)
from relay.dialects.openai_meter import ChatMeter
from relay.errors import RelayError

# Roles whose text opens a conversation the same way each time.
SYSTEM_ROLES = frozenset({"system", "developer"})
TEXT_PARTS = frozenset({"text", "refusal"})
# They add output beyond the maximum, or input and searches that stand nowhere in the body.
UNBOUNDED = ("prediction", "web_search_options")


class Message(msgspec.Struct):
    role: Any = None
    content: msgspec.Raw = msgspec.Raw()
    audio: Any = None  # names an earlier answer's audio, kept by the vendor


class Part(msgspec.Struct):
    type: Any = None


class Request(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    prediction: Any = None
    web_search_options: Any = None
    service_tier: Any = None
    audio: Any = None
    modalities: Any = None
    prompt_cache_options: Any = None


class StreamOptions(msgspec.Struct):
    include_usage: Any = None


class Options(msgspec.Struct):
    stream: Any = None
    stream_options: StreamOptions | None = None


REQUEST = msgspec.json.Decoder(Request)
MESSAGES = msgspec.json.Decoder(list[Message])
PARTS = msgspec.json.Decoder(list[Part])
INPUT = msgspec.json.Decoder(str | list[str | int | list[int]])
OPTIONS = msgspec.json.Decoder(Options)
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class OpenAIChat(OpenAIDialect):
    name: ClassVar = "openai_chat"
    entrance: ClassVar = ("chat_completions", "/v1/chat/completions")
    roots: ClassVar = frozenset({"openai", "azure"})

    def read_envelope(self, body: bytes, *, headers: dict[bytes, bytes], path_model: str = "") -> Envelope:
        fields = json_body.fields(body)
        read = decoded(body, REQUEST)
        session = session_of(headers)
        cache_key = text(read.prompt_cache_key)
        opening: list[Opening] = [("session", session), ("prompt_cache_key", cache_key), *openings(read)]
        limit, answers = read.max_completion_tokens or read.max_tokens, read.n or 1
        if (limit is not None and limit < 0) or answers < 0:
            raise invalid("max_tokens", "max_tokens and n must not be negative.")
        return Envelope(
            model=readable_model(path_model or read.model),
            stream=bool(read.stream),
            max_output_tokens=0 if embeds(read) else limit,
            answers=answers,
            affinity=conversation(opening),
            session=session,
            end_user=text(read.safety_identifier) or text(read.user),
            repeats=json_body.repeats(body, fields),
        )

    def bounded(self, body: bytes, envelope: Envelope) -> Envelope:
        read = decoded(body, REQUEST)
        inline = is_plain_input(read.input) if embeds(read) else is_inline(read_messages(read.messages))
        return replace(
            envelope,
            inline_text=inline,
            unbounded=tuple(name for name in UNBOUNDED if getattr(read, name) is not None),
            ruled_out=ruled_out(
                service_tier=read.service_tier,
                text_in=inline,
                text_out=read.audio is None and read.modalities in (None, [], ["text"]),
                cache_ttl=as_object(read.prompt_cache_options).get("ttl"),
            ),
        )

    def error_event(self, error: RelayError, request_id: str) -> bytes:
        """An error chunk, and no `[DONE]` behind it: that is what the SDKs raise on."""
        return b"data: " + msgspec.json.encode({"error": native_error(error)}) + b"\n\n"

    def meter(self, endpoint: Endpoint) -> Meter:
        return ChatMeter(metered=endpoint.metered)

    def probe(self, model: str) -> tuple[str, str, tuple[tuple[bytes, bytes], ...], bytes]:
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        return "chat_completions", "chat/completions", (), msgspec.json.encode(body)


def read_messages(raw: msgspec.Raw) -> list[Message] | None:
    """The messages' roles and unread contents; None where they are not what the format says (the vendor's to judge)."""
    if not raw:
        return []
    try:
        return MESSAGES.decode(raw)
    except UNREADABLE:
        return None


def embeds(read: Request) -> bool:
    """Whether this is an embedding's body; an `input` beside messages hides no output."""
    return bool(read.input) and not read.messages


def openings(read: Request) -> list[Opening]:
    """System prompt, else first message: the same at every turn of a conversation."""
    known = read_messages(read.messages) or []
    system = b"".join(bytes(message.content) for message in known if message.role in SYSTEM_ROLES)
    return [("system", system), ("first", bytes(known[0].content) if known else b"")]


def is_inline(messages: list[Message] | None) -> bool:
    """Whether all that the messages say is text in the body."""
    return messages is not None and all(is_text(bytes(item.content)) and item.audio is None for item in messages)


def is_text(content: bytes) -> bool:
    if not content.startswith(b"["):
        return True
    try:
        return all(part.type in TEXT_PARTS for part in PARTS.decode(content))
    except UNREADABLE:
        return False


def is_plain_input(raw: msgspec.Raw) -> bool:
    """Whether an embedding's input is text or tokens."""
    try:
        INPUT.decode(raw)
    except UNREADABLE:
        return False
    return True


# -- the usage chunk, which the vendor sends only when asked -------------------------------------------


def with_usage(body: bytes) -> bytes:
    """The body of a stream, asking for the usage chunk too; the same bytes where it asks already."""
    if asks_for_usage(body):
        return body
    found = json_body.fields(body).get("stream_options")
    given: Mapping[str, object] = {}
    if found is not None:
        options = msgspec.json.decode(found)
        given = options if isinstance(options, dict) else {}
    return json_body.with_field(body, "stream_options", {**given, "include_usage": True})


def asks_for_usage(body: bytes) -> bool:
    """Whether the client wants the usage chunk; of a body that can't be read, yes: it is not ours to change."""
    try:
        options = OPTIONS.decode(body).stream_options
    except UNREADABLE:
        return True
    return options is not None and options.include_usage is True
