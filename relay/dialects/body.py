"""A JSON request body as its top-level fields: one of them changes, every other value keeps its bytes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from relay.errors import InvalidRequest

Fields = dict[str, msgspec.Raw]

_FIELDS = msgspec.json.Decoder(Fields)
_STRING = msgspec.json.Decoder(str)
SPACE = b" \t\r\n"
SMALL = 64 * 1024


def fields(body: bytes) -> Fields:
    """The top-level fields, the last one of a name that stands twice; raises `InvalidRequest`."""
    try:
        return _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("The request body is not a JSON object.", reason="bad_json") from error


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
    while body[position : position + 1] == b'"':
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
    while position < len(body) and body[position] in SPACE:
        position += 1
    return position


def string_end(body: bytes, start: int) -> int:
    """The offset behind the JSON string that begins at `start`."""
    end = start + 1
    while True:
        end = body.index(b'"', end)
        backslashes = end - len(body[start + 1 : end].rstrip(b"\\")) - start - 1
        end += 1
        if backslashes % 2 == 0:
            return end
