"""OpenAI's Responses format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from relay.call import Endpoint, Envelope
from relay.dialects import body as json_body
from relay.dialects.base import Meter
from relay.dialects.openai_common import (
    JsonObject,
    OpenAIDialect,
    Opening,
    as_object,
    conversation,
    decoded,
    error_name,
    invalid,
    native_error,
    passed_body,
    readable_model,
    ruled_out,
    session_of,
    text,
)
from relay.dialects.openai_responses_meter import ResponsesMeter
from relay.errors import RelayError

SYSTEM_ROLES = frozenset({"system", "developer"})
TEXT_PARTS = frozenset({"input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"})
# Items whose whole content stands in the body, apart from parts that are no text.
INLINE_ITEMS = frozenset(
    "message additional_tools reasoning function_call function_call_output custom_tool_call custom_tool_call_output "
    "local_shell_call local_shell_call_output shell_call shell_call_output apply_patch_call apply_patch_call_output "
    "tool_search_call tool_search_output mcp_list_tools mcp_call mcp_approval_request mcp_approval_response program "
    "program_output compaction_trigger".split()
)
# Tools that the client runs. All others run at the vendor: their calls and what they read are in no bound.
CLIENT_TOOLS = frozenset(
    "function custom namespace apply_patch local_shell computer computer_use_preview tool_search "
    "programmatic_tool_calling".split()
)


class Tool(msgspec.Struct):
    type: Any = None
    tools: msgspec.Raw = msgspec.Raw()
    environment: Any = None


class Item(msgspec.Struct):
    type: Any = "message"
    role: Any = None
    content: msgspec.Raw = msgspec.Raw()
    output: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    encrypted_content: Any = None


class Part(msgspec.Struct):
    type: Any = None


class Request(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    background: Any = None
    conversation: Any = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    prompt: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    store: Any = None
    context_management: Any = None
    instructions: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    safety_identifier: Any = None
    user: Any = None
    service_tier: Any = None


REQUEST = msgspec.json.Decoder(Request)
ITEMS = msgspec.json.Decoder(list[Item])
PARTS = msgspec.json.Decoder(list[Part])
TOOLS = msgspec.json.Decoder(list[Tool])
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class OpenAIResponses(OpenAIDialect):
    name: ClassVar = "openai_responses"
    entrance: ClassVar = ("responses", "/v1/responses")

    def read_envelope(self, body: bytes, *, headers: dict[bytes, bytes], path_model: str = "") -> Envelope:
        fields = json_body.fields(body)
        read = decoded(body, REQUEST)
        refuse_unbookable(read)
        session = session_of(headers)
        items = read_items(read.input)
        previous = text(read.previous_response_id)
        opening: list[Opening] = [
            ("session", session),
            ("prompt_cache_key", text(read.prompt_cache_key)),
            ("previous_response_id", previous),
            *openings(read, items),
        ]
        return Envelope(
            model=readable_model(path_model or read.model),
            stream=bool(read.stream),
            max_output_tokens=read.max_output_tokens,
            affinity=conversation(opening),
            session=session,
            end_user=text(read.safety_identifier) or text(read.user),
            previous_response_id=previous,
            stored=read.store is not False,
            tied=any(item.encrypted_content is not None for item in items or ()),
            repeats=json_body.repeats(body, fields),
        )

    def bounded(self, body: bytes, envelope: Envelope) -> Envelope:
        read = decoded(body, REQUEST)
        items = read_items(read.input)
        inline = not read.previous_response_id and read.prompt is None and is_inline(items)
        return replace(
            envelope,
            inline_text=inline,
            unbounded=unbounded(read, items),
            ruled_out=ruled_out(
                service_tier=read.service_tier,
                text_in=inline,
                text_out=True,  # images come from a tool, which is in no bound anyway
                cache_ttl=as_object(read.prompt_cache_options).get("ttl"),
            ),
        )

    def error_event(self, error: RelayError, request_id: str) -> bytes:
        return failed_event(error, request_id, answer_id="", model="", sequence=0)

    def last_event(self, error: RelayError, request_id: str, *, meter: Meter) -> bytes:
        if not isinstance(meter, ResponsesMeter):
            return self.error_event(error, request_id)
        return failed_event(
            error, request_id, answer_id=meter.answer_id, model=meter.model, sequence=meter.sequence + 1
        )

    def meter(self, endpoint: Endpoint) -> Meter:
        return ResponsesMeter(metered=endpoint.metered)

    def probe(self, model: str) -> tuple[str, str, tuple[tuple[bytes, bytes], ...], bytes]:
        return "responses", "responses", (), msgspec.json.encode({"model": model, "input": "Hi", "store": False})


def refuse_unbookable(read: Request) -> None:
    """Raises `InvalidRequest` for what would be used with nobody listening, or by a state that no record names."""
    if read.background:
        raise invalid("background", "background: true is not served by this relay; leave it out and stream instead.")
    if read.conversation is not None:
        raise invalid("conversation", "conversation is not served by this relay; use previous_response_id.")
    if read.max_output_tokens is not None and read.max_output_tokens < 0:
        raise invalid("max_output_tokens", "max_output_tokens must not be negative.")


def read_items(raw: msgspec.Raw) -> list[Item] | None:
    """The input's items, none of a plain text; None where they are not what the format says (the vendor's to judge)."""
    if not bytes(raw).startswith(b"["):
        return []
    try:
        return ITEMS.decode(raw)
    except UNREADABLE:
        return None


def openings(read: Request, items: list[Item] | None) -> list[Opening]:
    """System prompt, else first message: the same at every turn of a conversation."""
    known = items or []
    given = bytes(read.instructions)
    system = b"" if given == b"null" else given
    system += b"".join(bytes(item.content) for item in known if item.role in SYSTEM_ROLES)
    return [("system", system), ("first", bytes(known[0].content) if known else bytes(read.input))]


def is_inline(items: list[Item] | None) -> bool:
    """Whether all that the input says is text in the body."""
    return items is not None and all(
        item.type in INLINE_ITEMS and is_text(bytes(item.content)) and is_text(bytes(item.output)) for item in items
    )


def is_text(content: bytes) -> bool:
    if not content.startswith(b"["):
        return True
    try:
        return all(part.type in TEXT_PARTS for part in PARTS.decode(content))
    except UNREADABLE:
        return False


def unbounded(read: Request, items: list[Item] | None) -> tuple[str, ...]:
    """Fields that make the worst case impossible to bound."""
    found = [] if read.context_management in (None, []) else ["context_management"]
    lists = [read.tools, *(item.tools for item in items or ())]
    if any(runs_at_vendor(tool) for raw in lists for tool in read_tools(raw)):
        found.append("tools")
    return tuple(found)


def read_tools(raw: msgspec.Raw) -> Iterator[Tool]:
    """The tools of a list and of the namespaces in it; one that says nothing where the list can't be read."""
    if not raw or bytes(raw) == b"null":
        return
    try:
        tools = TOOLS.decode(raw)
    except UNREADABLE:
        yield Tool()
        return
    for tool in tools:
        yield tool
        yield from read_tools(tool.tools)


def runs_at_vendor(tool: Tool) -> bool:
    if tool.type == "shell":
        return not (isinstance(tool.environment, dict) and tool.environment.get("type") == "local")
    return tool.type not in CLIENT_TOOLS


def failed_event(error: RelayError, request_id: str, *, answer_id: str, model: str, sequence: int) -> bytes:
    """The event that SDK and Codex take for a failed response, as the vendor's own would be."""
    response: JsonObject = {
        "id": answer_id or f"resp_{request_id.replace('-', '')}",
        "object": "response",
        "created_at": moment(request_id),
        "status": "failed",
        "background": False,
        "error": response_error(error),
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None,
    }
    event = {"type": "response.failed", "sequence_number": sequence, "response": response}
    return b"event: response.failed\ndata: " + msgspec.json.encode(event) + b"\n\n"


def response_error(error: RelayError) -> JsonObject:
    """The `error` of a failed response: code and message."""
    said = native_error(error)
    ours = said["type"] == "server_error" and passed_body(error) is None
    return {"code": "server_error" if ours else error_name(said), "message": said["message"]}


def moment(request_id: str) -> int:
    """The Unix time in a UUIDv7, 0 in anything else."""
    digits = request_id.replace("-", "")
    return int(digits[:12], 16) // 1000 if len(digits) == 32 and digits[12] == "7" else 0
