"""What Bedrock takes of Anthropic's Messages format: versions, betas, fields. Dated data, and how it is applied.

Sources, as of 2026-11-22: Claude Code 2.1.330 in Bedrock mode, the gateway protocol that it speaks, LiteLLM's
header map, Anthropic's pages on Claude on Bedrock. Betas change monthly: one that is not named here is dropped, because
Bedrock answers 400 for what it does not know, and the record says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import msgspec

from relay.dialects import body as json_body

OLD_VERSION = "bedrock-2023-05-31"
NEW_VERSION = "2026-10-21"
# Claude 4.7 and later take the new version; older, ARN-versioned models may answer 400 to it.
TAKES_NEW = re.compile(r"claude-[a-z]+-(?:4-(?:[7-9]|\d\d)|[5-9]|\d\d)(?:\D|$)")

KEEP = (
    "context-management-2025-06-27",
    "context-1m-2025-08-07",
    "compact-2026-01-12",
    "computer-use-*",
    "interleaved-thinking-2025-05-14",
    "effort-2025-11-24",
    "fine-grained-tool-streaming-2025-05-14",
    "mid-conversation-tool-changes-2026-07-01",
    "tool-search-tool-2025-10-19",
    "tool-examples-2025-10-29",
    "token-efficient-tools-*",
    "output-128k-*",
    "dev-full-thinking-*",
)
RENAME = {"advanced-tool-use-2025-11-20": "tool-search-tool-2025-10-19"}
# Top-level fields that are the first party's alone.
DROP_FIELDS = (
    "fallbacks",
    "cache_control",
    "tags",
    "service_tier",
    "inference_geo",
    "container",
    "mcp_servers",
    "speed",
)
# A beta and its field are a pair: without the beta the field is a 400. By dotted path; [] means each item of a list.
PAIRED = {
    "thinking-display-updates-2026-08-18": ("thinking.display",),
    "per-turn-control-2026-07-01": ("messages[].output_config",),
    "context-management-2025-06-27": ("context_management",),
    "effort-2025-11-24": ("output_config.effort",),
}

Raws = dict[str, msgspec.Raw]
_raws = msgspec.json.Decoder(Raws)
_list = msgspec.json.Decoder(list[msgspec.Raw])
_names = msgspec.json.Decoder(list[str])


def version_for(asked: str, model: str) -> str:
    """The `anthropic_version` of the body for the version that the client's header asked for."""
    return NEW_VERSION if asked == NEW_VERSION and TAKES_NEW.search(model) else OLD_VERSION


def betas_for(asked: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the betas that Bedrock gets, and those that were dropped."""
    kept: list[str] = []
    dropped: list[str] = []
    for name in asked:
        renamed = RENAME.get(name, name)
        if any(fnmatchcase(renamed, pattern) for pattern in KEEP):
            if renamed not in kept:
                kept.append(renamed)
        else:
            dropped.append(name)
    return kept, dropped


def invoke_body(body: bytes, *, model: str, version: str, betas: Iterable[str]) -> tuple[bytes, tuple[str, ...]]:
    """The Messages body as InvokeModel takes it, and what had to be left out. Every other value keeps its bytes."""
    fields: dict[str, msgspec.Raw | bytes] = dict(json_body.fields(body))
    for name in ("model", "stream"):
        fields.pop(name, None)
    own = _names.decode(bytes(fields.pop("anthropic_beta"))) if "anthropic_beta" in fields else []
    kept, dropped = betas_for(dict.fromkeys([*betas, *own]))
    for name in DROP_FIELDS:
        if fields.pop(name, None) is not None:
            dropped.append(name)
    for beta in [beta for beta in dropped if beta in PAIRED]:
        for path in PAIRED[beta]:
            if without(fields, path):
                dropped.append(path)
    head: dict[str, msgspec.Raw | bytes] = {"anthropic_version": msgspec.json.encode(version_for(version, model))}
    if kept:
        head["anthropic_beta"] = msgspec.json.encode(kept)
    fields.pop("anthropic_version", None)
    return json_body.join({**head, **fields}), tuple(dropped)


def without(fields: dict[str, msgspec.Raw | bytes], path: str) -> bool:
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
    fields: dict[str, msgspec.Raw | bytes] = dict(_raws.decode(raw))
    return json_body.join(fields) if without(fields, path) else None


def in_each(raw: bytes, change: Callable[[bytes], bytes | None]) -> bytes | None:
    items = [bytes(item) for item in _list.decode(raw)]
    changed = [change(item) for item in items]
    if all(item is None for item in changed):
        return None
    return b"[" + b",".join(new or old for new, old in zip(changed, items, strict=True)) + b"]"


def renamed(raw: bytes, changes: Mapping[str, bytes], *, drop: str = "") -> bytes:
    """A JSON object with some fields that it has set anew, and one dropped; the same bytes where nothing changes."""
    fields: dict[str, msgspec.Raw | bytes] = dict(_raws.decode(raw))
    wanted = {name: value for name, value in changes.items() if name in fields and bytes(fields[name]) != value}
    if not wanted and drop not in fields:
        return raw
    fields.update(wanted)
    fields.pop(drop, None)
    return json_body.join(fields)
