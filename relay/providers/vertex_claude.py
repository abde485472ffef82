"""Claude on Vertex: addresses, versions, betas, fields, errors. Dated data, and how it is applied.

Sources, as of 2026-11-28: Anthropic's Python SDK 2.12.0 (lib/vertex), Claude Code 2.1.330 in Vertex mode, LiteLLM's
header map, Anthropic's pages on Claude on Vertex AI. Betas change monthly, and reports of what Vertex takes contradict
one another (anthropics/claude-agent-sdk-typescript#307): where it names betas that it does not expect, the call is sent
once more without them.
"""

from __future__ import annotations

import re
from urllib.parse import quote

import msgspec

from relay.call import Call
from relay.dialects import body as json_body
from relay.dialects.anthropic import type_of
from relay.errors import UpstreamError
from relay.providers import google_errors
from relay.providers.base import Headers, UpstreamRequest
from relay.providers.claude_official import ClaudeOfficial
from relay.providers.claude_table import ClaudeTable, Fields, asked_betas
from relay.providers.gemini import readable_headers
from relay.providers.headers import first

API = "v1"
OLD_VERSION = "vertex-2023-10-16"
# Taken for every model that Google serves (Anthropic, "Versioning").
NEW_VERSION = "2026-10-21"
# Everywhere but in the global location Claude costs more, from 4.5 on (Anthropic, "Claude on Vertex AI").
REGIONAL = "regional"
TABLE = ClaudeTable(
    keep=(
        "context-management-2025-06-27",
        "context-1m-2025-08-07",
        "compact-2026-01-12",
        "computer-use-*",
        "interleaved-thinking-2025-05-14",
        "effort-2025-11-24",
        "tool-search-tool-2025-10-19",
        "web-search-2025-03-05",
    ),
    rename={"advanced-tool-use-2025-11-20": "tool-search-tool-2025-10-19"},
    # Top-level fields that are the first party's alone; automatic caching (`cache_control`) among them.
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
    # A beta and its field are a pair: without the beta the field is a 400. Effort has left its beta since.
    paired={
        "thinking-display-updates-2026-08-18": ("thinking.display",),
        "per-turn-control-2026-07-01": ("messages[].output_config",),
        "context-management-2025-06-27": ("context_management",),
    },
)
# The first party's names end in a date; Vertex writes it behind an `@`. One model has a name of its own.
DATED = re.compile(r"^(claude-.+)-(20\d{6})$")
RENAMED = {"claude-3-5-sonnet-20241022": "claude-3-5-sonnet-v2@20241022"}
UNEXPECTED = re.compile(r"Unexpected value\(s\) (.+?) for the `anthropic-beta` header")
NOT_UP = frozenset({b"anthropic-version", b"anthropic-beta"})
COUNTING = "count-tokens"
OFFICIAL = ClaudeOfficial()


class Said(msgspec.Struct):
    type: str = ""
    message: str = ""


class ErrorBody(msgspec.Struct):
    type: str
    error: Said


def vertex_id(model: str) -> str:
    """The name that Vertex has for a model of Anthropic's."""
    return RENAMED.get(model) or DATED.sub(r"\1@\2", model)


def version_for(asked: str) -> str:
    """The `anthropic_version` of the body for the version that the client's header asked for."""
    return NEW_VERSION if asked == NEW_VERSION else OLD_VERSION


def request(call: Call, parent: str, model: str, *, refused: frozenset[str] = frozenset()) -> UpstreamRequest:
    """The request without its credential; `parent` is the address of the project's location, `refused` are betas that
    Vertex has turned down for this call."""
    fields: Fields = dict(json_body.fields(call.body))
    for name in ("model", "anthropic_version"):
        fields.pop(name, None)
    betas, dropped = TABLE.apply(fields, asked_betas(call.headers), refused=refused)
    version = version_for(first(call.headers, b"anthropic-version").decode("latin1"))
    head: Fields = {"anthropic_version": msgspec.json.encode(version)}
    name, verb = quote(model, safe="@"), "streamRawPredict" if call.envelope.stream else "rawPredict"
    if not call.endpoint.metered:
        head["model"] = msgspec.json.encode(model)
        name, verb = COUNTING, "rawPredict"
    headers, left_out = readable_headers(call.headers)
    sent = [item for item in headers if item[0] not in NOT_UP]
    if betas:
        sent.append((b"anthropic-beta", ",".join(betas).encode("latin1")))
    url = f"{parent}/publishers/anthropic/models/{name}:{verb}"
    return UpstreamRequest("POST", url, tuple(sent), json_body.join({**head, **fields}), (*dropped, *left_out))


def unexpected_betas(error: UpstreamError) -> frozenset[str]:
    """The betas that Vertex says it does not know, none where it rejects something else."""
    said = error_body(error.body)
    match = UNEXPECTED.search(said.error.message) if said is not None and error.upstream_status == 400 else None
    return frozenset(re.findall(r"`([^`]+)`", match[1])) if match else frozenset()


def classify(status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
    """Whose fault an error in Anthropic's own shape is; Google's wrapper around it says the rest."""
    return OFFICIAL.classify(status, headers, body, now=now)


def error_body(body: bytes) -> ErrorBody | None:
    """The error that Anthropic's side of Vertex answered with, None where Google's side did."""
    try:
        said = msgspec.json.decode(body, type=ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return said if said.type == "error" else None


def native_error(status: int, body: bytes) -> bytes:
    """Google's error as Anthropic words its own, without the name of our project; Anthropic's as it came."""
    if error_body(body) is not None:
        return body
    message = google_errors.hidden(google_errors.Said(body).message) or "The upstream failed."
    return msgspec.json.encode({"type": "error", "error": {"type": type_of(status), "message": message}})
