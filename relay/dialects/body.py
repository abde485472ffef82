"""A JSON request body as its top-level fields: one of them changes, every other value keeps its bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from relay.errors import InvalidRequest

Fields = dict[str, msgspec.Raw]

_FIELDS = msgspec.json.Decoder(Fields)
_STRING = msgspec.json.Decoder(str)
SMALL = 64 * 1024
# More than any vendor knows; each costs a step of Python while nobody else is served.
MAX_FIELDS = 1000
# Read by C and in one pass, whatever the body is: a key's holder must not stop everybody's calls with a few megabytes
# of spaces or of escaped quotes.
_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING_END = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def fields(body: bytes) -> Fields:
    """The top-level fields, the last one of a name that stands twice; raises `InvalidRequest`."""
    try:
        found = _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("The request body is not a JSON object.", reason="bad_json") from error
    if len(found) > MAX_FIELDS:
        raise InvalidRequest(f"The request body has more than {MAX_FIELDS} fields.", reason="too_many_fields")
    return found


def join(found: Mapping[str, msgspec.Raw | bytes]) -> bytes:
    return b"{" + b",".join(msgspec.json.encode(name) + b":" + bytes(raw) for name, raw in found.items()) + b"}"


def canonical(body: bytes) -> bytes:
    """The body with each top-level field once, its last value: what was read is then what any upstream reads."""
    return join(fields(body))


def with_field(body: bytes, name: str, value: object) -> bytes:
    """The body with this top-level field set, behind the others where it is new; the same bytes if it has the value."""
    found = fields(body)
    raw = msgspec.json.encode(value)
    if bytes(found.get(name, b"")) == raw:
        return body
    return join({**found, name: raw})


def repeats(body: bytes, found: Fields) -> bool:
    """Whether some field of the body stands in it more than once; `found` is what `fields` read from it."""
    if len(body) < SMALL and body == b"{%b}" % b",".join([b'"%b":%b' % (name.encode(), found[name]) for name in found]):
        return False  # as encoders without spaces write it: one copy is cheaper than the walk
    position = skip_space(body, skip_space(body, 0) + 1)
    seen = 0
    while body[position : position + 1] == b'"' and seen <= len(found):
        end = string_end(body, position)
        raw = bytes(found[_STRING.decode(body[position:end])])
        value = skip_space(body, skip_space(body, end) + 1)
        if not body.startswith(raw, value):
            return True
        seen += 1
        position = skip_space(body, value + len(raw))
        if body[position : position + 1] != b",":
            break
        position = skip_space(body, position + 1)
    return body[position : position + 1] != b"}" or seen != len(found)


def skip_space(body: bytes, position: int) -> int:
    match = _SPACE.match(body, position)
    return match.end() if match is not None else position


def string_end(body: bytes, start: int) -> int:
    """The offset behind the JSON string that begins at `start`; raises `ValueError` where it has no end."""
    match = _STRING_END.match(body, start + 1)
    if match is None:
        raise ValueError("a string without an end")
    return match.end()
