"""What Baton reads of a request in Gemini's format; everything else passes unread.

Google takes every field by two names, `maxOutputTokens` and `max_output_tokens`, and numbers as text too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from relay.call import Envelope
from relay.dialects import body as json_body
from relay.dialects.body import Fields
from relay.errors import InvalidRequest

STREAM = "streamGenerateContent"
EMBEDS = frozenset({"embedContent", "batchEmbedContents"})
VERBS = EMBEDS | {"generateContent", STREAM, "countTokens"}
SESSION_HEADERS = (b"x-session-id", b"session_id", b"session-id")
MAX_NAME = 200
LARGEST = 2**31 - 1  # Google's numbers are of 32 bits

NOT_TEXT = re.compile(rb'"(?:inline|file)_?[dD]ata"|"file_?[uU]ri"')
ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")
# Functions of the client's own; every other tool searches, runs code or adds text unseen.
CLIENT_TOOLS = frozenset({"functionDeclarations", "function_declarations"})
# More than Google documents for the prompt that goes with tools.
TOOLS_PROMPT_TOKENS = 1024
OTHER_INPUT = tuple(
    f"{name}_{meter}" for name in ("audio", "image", "video") for meter in ("input_tokens", "cache_read_input_tokens")
)
OTHER_OUTPUT = ("audio_output_tokens", "image_output_tokens", "video_output_tokens")
FIRST_MESSAGE_BYTES = 64 * 1024

_any = msgspec.json.Decoder()
_list = msgspec.json.Decoder(list[msgspec.Raw])
_fields = msgspec.json.Decoder(Fields)
_UNREADABLE = (ValueError, RecursionError, msgspec.MsgspecError)


def split(path_model: str) -> tuple[str, str]:
    """Model and verb of a path's `{model}:{verb}`; a name without a verb has none."""
    model, colon, verb = path_model.rpartition(":")
    return (model, verb) if colon and verb in VERBS else (path_model, "")


def read(body: bytes, headers: Mapping[bytes, bytes], path_model: str) -> Envelope:
    """Raises `InvalidRequest` that names the field. What bounds the call is left to `bounded`."""
    model, verb = split(path_model)
    if not model.strip(" .") or len(model) > MAX_NAME or not model.isprintable():
        raise invalid("model", f"model: 1 to {MAX_NAME} printable characters are expected in the path")
    fields = json_body.fields(body)
    config = config_of(fields)
    session = next((headers[name].decode("latin1")[:MAX_NAME] for name in SESSION_HEADERS if headers.get(name)), "")
    cached = named(fields, "cachedContent", "cached_content")
    return Envelope(
        model=model,
        stream=verb == STREAM,
        max_output_tokens=0 if verb in EMBEDS else whole_number(config, "maxOutputTokens", "max_output_tokens"),
        answers=whole_number(config, "candidateCount", "candidate_count") or 1,
        affinity=affinity(fields, session, cached),
        session=session,
        tied=bool(cached),
        repeats=json_body.repeats(body, fields) or twice_inside(config_raw(fields), config),
    )


def bounded(body: bytes, envelope: Envelope) -> Envelope:
    """The envelope with what bounds the call."""
    fields = json_body.fields(body)
    tools = raw_of(fields, "tools")
    # An escaped letter could hide any of the words that are looked for.
    plain = b"\\u00" not in body or ESCAPED_LETTER.search(body) is None
    inline = plain and NOT_TEXT.search(body) is None
    unbounded = ["cachedContent"] if named(fields, "cachedContent", "cached_content") else []
    if tools and not only_functions(tools):
        unbounded.append("tools")
    if "requests" in fields and not inline:
        unbounded.append("requests")  # each of them may fill the model's context
    return replace(
        envelope,
        inline_text=inline,
        unbounded=tuple(unbounded),
        hidden_input_tokens=TOOLS_PROMPT_TOKENS if tools else 0,
        ruled_out=ruled_out(fields, inline=inline),
    )


def canonical(body: bytes) -> bytes:
    """The body with each field once, `generationConfig`'s too: what was read is then what any upstream reads."""
    fields = json_body.fields(body)
    name = next((name for name in ("generationConfig", "generation_config") if name in fields), "")
    if name and bytes(fields[name]).startswith(b"{"):
        return json_body.join({**fields, name: json_body.join(config_of(fields))})
    return json_body.join(fields)


def asked_tier(body: bytes) -> str:
    """The service tier that the request wants, "" = none named."""
    if b"service" not in body and b"\\u00" not in body:
        return ""
    wanted = value_of(json_body.fields(body), "serviceTier", "service_tier")
    return "" if not isinstance(wanted, str) or wanted.lower() in {"unspecified", "standard"} else wanted.lower()[:40]


# -- fields by either of their names ------------------------------------------------------------------


def invalid(field: str, message: str) -> InvalidRequest:
    error = InvalidRequest(message, reason=f"bad_{field}")
    error.field = field
    return error


def raw_of(fields: Fields, *names: str) -> bytes:
    """The value under whichever name it stands, b"" for none and for null; raises `InvalidRequest` for both."""
    found = [name for name in names if name in fields]
    if len(found) > 1:
        raise invalid(names[0], f"{names[0]}: it stands in the body as {' and as '.join(found)}")
    raw = bytes(fields[found[0]]) if found else b""
    return b"" if raw == b"null" else raw


def value_of(fields: Fields, *names: str) -> Any:
    raw = raw_of(fields, *names)
    try:
        return _any.decode(raw) if raw else None
    except _UNREADABLE as error:
        raise invalid(names[0], f"{names[0]}: can't be read") from error


def named(fields: Fields, *names: str) -> str:
    value = value_of(fields, *names)
    return value[:MAX_NAME] if isinstance(value, str) else ""


def config_raw(fields: Fields) -> bytes:
    return raw_of(fields, "generationConfig", "generation_config")


def config_of(fields: Fields) -> Fields:
    """The fields of `generationConfig`; none where it is no object, which is the vendor's to judge."""
    raw = config_raw(fields)
    try:
        return _fields.decode(raw) if raw else {}
    except _UNREADABLE:
        return {}


def twice_inside(raw: bytes, config: Fields) -> bool:
    return bool(config) and json_body.repeats(raw, config)


def whole_number(config: Fields, *names: str) -> int | None:
    """A positive number, however it is written; None where it is not there, or 0: Google takes that for unset."""
    value = value_of(config, *names)
    try:
        number = -1 if isinstance(value, bool) else int(value) if isinstance(value, (str, int, float)) else value
    except (ValueError, OverflowError):
        number = -1
    if number is None or number == 0:
        return None
    if not isinstance(number, int) or not 0 < number <= LARGEST or (isinstance(value, float) and value != number):
        field = f"generationConfig.{names[0]}"
        raise invalid(field, f"{field}: a positive whole number is expected")
    return number


# -- what it means --------------------------------------------------------------------------------------


def affinity(fields: Fields, session: str, cached: str) -> str:
    """Name the conversation by the first that exists: session, cached content, system prompt, first message."""
    if session:
        return digest(b"session", session.encode("utf-8", "replace"))
    if cached:
        return digest(b"cached", cached.encode("utf-8", "replace"))
    system = raw_of(fields, "systemInstruction", "system_instruction")
    if system:
        return digest(b"system", system)
    first = first_of(raw_of(fields, "contents"))
    return digest(b"first", first) if first else ""


def digest(kind: bytes, said: bytes) -> str:
    return hashlib.sha256(kind + b"\0" + said).hexdigest()


def first_of(contents: bytes) -> bytes:
    """The first message; of a very long one its beginning."""
    try:
        return bytes(_list.decode(contents)[0])[:FIRST_MESSAGE_BYTES]
    except (IndexError, *_UNREADABLE):
        return contents[:FIRST_MESSAGE_BYTES]


def only_functions(tools: bytes) -> bool:
    """Whether all tools run at the client."""
    try:
        return all(set(_fields.decode(tool)) <= CLIENT_TOOLS for tool in _list.decode(tools))
    except _UNREADABLE:
        return False


def ruled_out(fields: Fields, *, inline: bool) -> tuple[str, ...]:
    """Price tiers and meters that this body can't cause."""
    tier = value_of(fields, "serviceTier", "service_tier")
    modalities = value_of(config_of(fields), "responseModalities", "response_modalities")
    text_only = isinstance(modalities, list) and {str(item).upper() for item in modalities} == {"TEXT"}
    return (
        "batch",
        *(() if isinstance(tier, str) and tier.lower() not in {"standard", "flex"} else ("priority",)),
        *(OTHER_INPUT if inline else ()),
        *(OTHER_OUTPUT if text_only else ()),
    )
