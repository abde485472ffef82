"""What Baton reads of a request in Anthropic's Messages format; everything else passes unread."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import msgspec
from msgspec.structs import replace

from relay.call import Envelope
from relay.dialects import body as json_body
from relay.dialects.anthropic_usage import CACHE_1H, CACHE_5M
from relay.dialects.body import Fields
from relay.errors import InvalidRequest

SESSION_HEADERS = (b"x-session-id", b"session_id", b"session-id", b"x-claude-code-session-id")
OLD_USER_ID = re.compile(r"^user_(?P<user>.*?)_account_.*_session_(?P<session>[0-9A-Za-z-]+)$")
MAX_NAME = 200  # characters of a model, a session or a user, as the record keeps them
MAX_USER_ID = 1000  # longer ones name no session: the pattern above takes the square of their length

# Beside text, every content block has a source or names a file.
NOT_TEXT = (b'"source"', b'"file_id"')
ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")
# Work that the vendor does on its own, or state that it holds: tokens that stand nowhere in the body.
UNBOUNDED_FIELDS = ("mcp_servers", "container", "fallbacks", "thread", "compaction")
# Of the vendor's typed tools these run at the client; the others make further model calls or add text unseen.
CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_", "browser_")
# More than the vendor documents for the prompt that goes with tools, and for the definition of one of its own.
TOOLS_PROMPT_TOKENS = 1024
TYPED_TOOL_TOKENS = 2048
FIRST_MESSAGE_BYTES = 64 * 1024


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Thread(msgspec.Struct):
    previous_message_id: str | None = None


class _UserId(msgspec.Struct):
    session_id: str = ""
    account_uuid: str = ""
    device_id: str = ""


class _Tool(msgspec.Struct):
    type: str | None = None


class _Message(msgspec.Struct):
    content: msgspec.Raw


class _Block(msgspec.Struct):
    text: str = ""
    cache_control: Any = None


_any = msgspec.json.Decoder()
_metadata = msgspec.json.Decoder(_Metadata)
_threads = msgspec.json.Decoder(_Thread)
_user_id = msgspec.json.Decoder(_UserId)
_tools = msgspec.json.Decoder(list[_Tool])
_raws = msgspec.json.Decoder(list[msgspec.Raw])
_message = msgspec.json.Decoder(_Message)
_blocks = msgspec.json.Decoder(list[_Block])
_UNREADABLE = (ValueError, RecursionError, msgspec.MsgspecError)


def read(body: bytes, headers: dict[bytes, bytes]) -> Envelope:
    """Raises `InvalidRequest` that names the field. What bounds the call is left to `bounded`."""
    fields = json_body.fields(body)
    session, end_user = _who(fields, headers)
    return Envelope(
        model=_model(fields),
        stream=_stream(fields),
        max_output_tokens=_max_tokens(fields),
        affinity=_affinity(fields, session),
        session=session,
        end_user=end_user,
        previous_response_id=_thread(fields),
        tied="thread" in fields or "fallback_credit_token" in fields,
        repeats=json_body.repeats(body, fields),
    )


def bounded(body: bytes, envelope: Envelope) -> Envelope:
    """The envelope with what bounds the call."""
    fields = json_body.fields(body)
    tools = _tool_types(fields.get("tools"))
    # An escaped letter could hide any of the words that are looked for.
    plain = b"\\u00" not in body or ESCAPED_LETTER.search(body) is None
    return replace(
        envelope,
        inline_text=plain and not any(marker in body for marker in NOT_TEXT),
        unbounded=_unbounded(fields, tools),
        hidden_input_tokens=_hidden(tools),
        ruled_out=_ruled_out(body, fields, plain=plain),
    )


def _decoded(fields: Fields, name: str) -> object:
    raw = fields.get(name)
    try:
        return None if raw is None else _any.decode(raw)
    except _UNREADABLE as error:
        raise InvalidRequest(f"{name}: can't be read.", reason=f"bad_{name}") from error


def _model(fields: Fields) -> str:
    if "model" not in fields:
        raise InvalidRequest("model: Field required", reason="no_model")
    model = _decoded(fields, "model")
    if not isinstance(model, str):
        raise InvalidRequest("model: Input should be a valid string", reason="bad_model")
    if not model.strip() or len(model) > MAX_NAME or not model.isprintable():
        raise InvalidRequest(f"model: Input should be 1 to {MAX_NAME} printable characters", reason="bad_model")
    return model


def _stream(fields: Fields) -> bool:
    stream = _decoded(fields, "stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("stream: Input should be a valid boolean", reason="bad_stream")
    return bool(stream)


def _max_tokens(fields: Fields) -> int | None:
    value = _decoded(fields, "max_tokens")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest("max_tokens: Input should be a valid integer", reason="bad_max_tokens")
    if value < 0:
        raise InvalidRequest("max_tokens: Input should not be negative", reason="bad_max_tokens")
    return value


def _who(fields: Fields, headers: dict[bytes, bytes]) -> tuple[str, str]:
    """Return session and end user, as the request names them."""
    session, user = "", ""
    try:
        user_id = _metadata.decode(fields["metadata"]).user_id or ""
        user = user_id
        if user_id.startswith("{"):
            known = _user_id.decode(user_id.encode())
            session, user = known.session_id, known.account_uuid or known.device_id
        elif len(user_id) <= MAX_USER_ID and (old := OLD_USER_ID.match(user_id)) is not None:
            session, user = old["session"], old["user"]
    except (KeyError, *_UNREADABLE):
        pass  # the vendor's to judge; it tells us nothing
    named = next((value for header in SESSION_HEADERS if (value := headers.get(header))), b"")
    return (named.decode("latin1") or session)[:MAX_NAME], user[:MAX_NAME]


def _thread(fields: Fields) -> str:
    """The answer whose conversation the vendor holds and this call goes on with, "" = none."""
    if "thread" not in fields:
        return ""
    try:
        return (_threads.decode(fields["thread"]).previous_message_id or "")[:MAX_NAME]
    except _UNREADABLE:
        return ""


def _affinity(fields: Fields, session: str) -> str:
    """Name the conversation by the first that exists: session, cached texts, system prompt, first message."""
    if session:
        return _hash(b"session", session.encode("utf-8", "replace"))
    system, first = bytes(fields.get("system", b"")), b""
    if cached := _cached_texts(system):
        return _hash(b"cached", cached)
    messages = bytes(memoryview(fields["messages"])[:FIRST_MESSAGE_BYTES]) if "messages" in fields else b""
    if not system or b'"cache_control"' in messages:
        first = _first_message(messages)
        if cached := _cached_texts(first):
            return _hash(b"cached", cached)
    if system:
        return _hash(b"system", system)
    return _hash(b"first", first) if first else ""


def _hash(kind: bytes, text: bytes) -> str:
    return hashlib.sha256(kind + b"\0" + text).hexdigest()[:32]  # what processors have instructions for


def _cached_texts(content: bytes) -> bytes:
    """The texts of a list of blocks that carry `cache_control`."""
    if b'"cache_control"' not in content:
        return b""
    try:
        return "\0".join(block.text for block in _blocks.decode(content) if block.cache_control is not None).encode()
    except _UNREADABLE:
        return b""


def _first_message(messages: bytes) -> bytes:
    """The first message's content as it stands there; of a very long one its beginning. Reads no further than that."""
    try:
        if len(messages) < FIRST_MESSAGE_BYTES:
            return bytes(_message.decode(_raws.decode(messages)[0]).content)
        text = messages.decode("utf-8", "replace")
        start = len(text) - len(text[1:].lstrip())
        _, end = json.JSONDecoder().raw_decode(text, start)
        return bytes(_message.decode(text[start:end].encode()).content)
    except (*_UNREADABLE, IndexError):
        return messages


def _ruled_out(body: bytes, fields: Fields, *, plain: bool) -> tuple[str, ...]:
    """Tiers and meters that this body can't cause: one without marks writes nothing to the cache."""
    found = ["batch"] if "speed" in fields else ["batch", "fast"]
    if plain and b'"cache_control"' not in body:
        found += (CACHE_5M, CACHE_1H)
    elif plain and b'"1h"' not in body:
        found.append(CACHE_1H)
    return tuple(found)


def _unbounded(fields: Fields, tools: list[str | None]) -> tuple[str, ...]:
    found = [name for name in UNBOUNDED_FIELDS if name in fields and bytes(fields[name]) not in {b"null", b"[]", b"{}"}]
    if "context_management" in fields and b"compact" in bytes(fields["context_management"]):
        found.append("context_management")
    if any(kind is not None and not kind.startswith(CLIENT_TOOLS) for kind in tools):
        found.append("tools")
    return tuple(found)


def _hidden(tools: list[str | None]) -> int:
    """Input tokens of the tools that stand nowhere in the body."""
    return TOOLS_PROMPT_TOKENS + TYPED_TOOL_TOKENS * sum(kind is not None for kind in tools) if tools else 0


def _tool_types(tools: msgspec.Raw | None) -> list[str | None]:
    if tools is None:
        return []
    try:
        return [tool.type for tool in _tools.decode(tools)]
    except _UNREADABLE:
        return ["unreadable"]
