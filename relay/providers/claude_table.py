"""What a cloud that resells Claude takes of Anthropic's Messages format: a dated table, and how it is applied.

The tables themselves stand in the clouds' own files. A beta that a table does not name is dropped, because the clouds
answer 400 for what they do not know; the record and `x-relay-dropped` say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec

from relay.dialects import body as json_body
from relay.providers.base import Headers

Raws = dict[str, msgspec.Raw]
Fields = dict[str, msgspec.Raw | bytes]
_raws = msgspec.json.Decoder(Raws)
_list = msgspec.json.Decoder(list[msgspec.Raw])
_names = msgspec.json.Decoder(list[str])
# A body may name anything; what is kept stands in a header.
BETA = re.compile(r"[a-zA-Z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True)
class ClaudeTable:
    """`keep` are patterns; a beta and its `paired` fields (dotted paths, [] means each item of a list) go together."""

    keep: tuple[str, ...]
    rename: Mapping[str, str]
    drop_fields: tuple[str, ...]
    paired: Mapping[str, tuple[str, ...]]

    def betas(self, asked: Iterable[str], *, refused: frozenset[str] = frozenset()) -> tuple[list[str], list[str]]:
        """Return the betas that the cloud gets, and those that were dropped; `refused` ones it would not take."""
        kept: list[str] = []
        dropped: list[str] = []
        for name in asked:
            renamed = self.rename.get(name, name)
            known = BETA.fullmatch(renamed) and any(fnmatchcase(renamed, pattern) for pattern in self.keep)
            if known and renamed not in refused:
                if renamed not in kept:
                    kept.append(renamed)
            else:
                dropped.append(name)
        return kept, dropped

    def apply(
        self, fields: Fields, asked: Iterable[str], *, refused: frozenset[str] = frozenset()
    ) -> tuple[list[str], tuple[str, ...]]:
        """Take out of a body's fields what the cloud refuses; returns the betas it gets, and all that was left out."""
        own = named(bytes(fields.pop("anthropic_beta", b"[]")))
        kept, dropped = self.betas(dict.fromkeys([*asked, *own]), refused=refused)
        for name in self.drop_fields:
            if fields.pop(name, None) is not None:
                dropped.append(name)
        for beta in [beta for beta in dropped if beta in self.paired]:
            dropped += [path for path in self.paired[beta] if without(fields, path)]
        return kept, tuple(dropped)


def asked_betas(headers: Headers) -> list[str]:
    """The betas of the client's `anthropic-beta` headers, in order."""
    values = (value for name, value in headers if name == b"anthropic-beta")
    parts = (part.strip() for value in values for part in value.split(b","))
    return [part.decode("latin1") for part in parts if part]


def named(raw: bytes) -> list[str]:
    """The betas of a body's own `anthropic_beta`, as the clouds' formats have it; none where it is no such list."""
    try:
        return _names.decode(raw)
    except msgspec.DecodeError:
        return []


def without(fields: Fields, path: str) -> bool:
    """Take the field at a dotted path out; returns whether it was there."""
    name, _, rest = path.partition(".")
    if not rest:
        return fields.pop(name, None) is not None
    name, each = name.removesuffix("[]"), name.endswith("[]")
    if name not in fields:
        return False
    raw = bytes(fields[name])
    try:
        changed = in_each(raw, lambda item: in_object(item, rest)) if each else in_object(raw, rest)
    except msgspec.DecodeError:
        return False  # not the shape that the field has where it means something
    if changed is None:
        return False
    fields[name] = changed
    return True


def in_object(raw: bytes, path: str) -> bytes | None:
    """The object without the field; None where it did not have it."""
    fields: Fields = dict(_raws.decode(raw))
    return json_body.join(fields) if without(fields, path) else None


def in_each(raw: bytes, change: Callable[[bytes], bytes | None]) -> bytes | None:
    items = [bytes(item) for item in _list.decode(raw)]
    changed = [change(item) for item in items]
    if all(item is None for item in changed):
        return None
    return b"[" + b",".join(new or old for new, old in zip(changed, items, strict=True)) + b"]"
