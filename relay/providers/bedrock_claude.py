"""What Bedrock takes of Anthropic's Messages format: versions, betas, fields. Dated data.

Sources, as of 2026-11-22: Claude Code 2.1.330 in Bedrock mode, the gateway protocol that it speaks, LiteLLM's
header map, Anthropic's pages on Claude on Bedrock. Betas change monthly: one that is not named here is dropped, because
Bedrock answers 400 for what it does not know, and the record says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from relay.dialects import body as json_body
from relay.providers.claude_table import ClaudeTable, Fields

OLD_VERSION = "bedrock-2023-05-31"
NEW_VERSION = "2026-10-21"
# Claude 4.7 and later take the new version; older, ARN-versioned models may answer 400 to it.
TAKES_NEW = re.compile(r"claude-[a-z]+-(?:4-(?:[7-9]|\d\d)|[5-9]|\d\d)(?:\D|$)")

TABLE = ClaudeTable(
    keep=(
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
    ),
    rename={"advanced-tool-use-2025-11-20": "tool-search-tool-2025-10-19"},
    # Top-level fields that are the first party's alone.
    drop_fields=(
        "fallbacks",
        "cache_control",
        "tags",
        "service_tier",
        "inference_geo",
        "container",
        "mcp_servers",
        "speed",
    ),
    # A beta and its field are a pair: without the beta the field is a 400.
    paired={
        "thinking-display-updates-2026-08-18": ("thinking.display",),
        "per-turn-control-2026-07-01": ("messages[].output_config",),
        "context-management-2025-06-27": ("context_management",),
        "effort-2025-11-24": ("output_config.effort",),
    },
)
_raws = msgspec.json.Decoder(dict[str, msgspec.Raw])


def version_for(asked: str, model: str) -> str:
    """The `anthropic_version` of the body for the version that the client's header asked for."""
    return NEW_VERSION if asked == NEW_VERSION and TAKES_NEW.search(model) else OLD_VERSION


def betas_for(asked: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the betas that Bedrock gets, and those that were dropped."""
    return TABLE.betas(asked)


def invoke_body(body: bytes, *, model: str, version: str, betas: Iterable[str]) -> tuple[bytes, tuple[str, ...]]:
    """The Messages body as InvokeModel takes it, and what had to be left out. Every other value keeps its bytes."""
    fields: Fields = dict(json_body.fields(body))
    for name in ("model", "stream", "anthropic_version"):
        fields.pop(name, None)
    kept, dropped = TABLE.apply(fields, betas)
    head: Fields = {"anthropic_version": msgspec.json.encode(version_for(version, model))}
    if kept:
        head["anthropic_beta"] = msgspec.json.encode(kept)
    return json_body.join({**head, **fields}), dropped


def renamed(raw: bytes, changes: Mapping[str, bytes], *, drop: str = "") -> bytes:
    """A JSON object with some fields that it has set anew, and one dropped; the same bytes where nothing changes."""
    fields: Fields = dict(_raws.decode(raw))
    wanted = {name: value for name, value in changes.items() if name in fields and bytes(fields[name]) != value}
    if not wanted and drop not in fields:
        return raw
    fields.update(wanted)
    fields.pop(drop, None)
    return json_body.join(fields)
