"""A JSON request body as its top-level fields: one of them changes, every other value keeps its bytes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from relay.errors import InvalidRequest

Fields = dict[str, msgspec.Raw]

_FIELDS = msgspec.json.Decoder(Fields)
_STRING = msgspec.json.Decoder(str)
SPACE = b" \t\r\n"


def fields_of(body: bytes) -> Fields:
    """The top-level fields, the last one of a name that stands twice; raises `InvalidRequest`."""
    try:
        return _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("The request body is not a JSON object.") from error


def join(fields: Mapping[str, msgspec.Raw | bytes]) -> bytes:
    return b"{" + b",".join(msgspec.json.encode(name) + b":" + bytes(raw) for name, raw in fields.items()) + b"}"


def with_fields(body: bytes, changes: Mapping[str, bytes]) -> bytes:
    """The body with these top-level fields (JSON) set; the very same bytes where that changes nothing.

    A body in which a field stands twice is rebuilt too: the upstream might read the other one than we did.
    """
    fields = fields_of(body)
    wanted = {name: raw for name, raw in changes.items() if bytes(fields.get(name, b"")) != raw}
    if not wanted and not stands_twice(body, fields):
        return body
    return join({**fields, **wanted})


def stands_twice(body: bytes, fields: Fields) -> bool:
    """Whether some field of the body stands in it more than once; `fields` are what was read from it."""
    position = skip_space(body, skip_space(body, 0) + 1)
    seen = 0
    while body[position : position + 1] == b'"':
        end = string_end(body, position)
        raw = bytes(fields[_STRING.decode(body[position:end])])
        value = skip_space(body, skip_space(body, end) + 1)
        if not body.startswith(raw, value):
            return True
        seen += 1
        position = skip_space(body, value + len(raw))
        if body[position : position + 1] != b",":
            break
        position = skip_space(body, position + 1)
    return body[position : position + 1] != b"}" or seen != len(fields)


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
