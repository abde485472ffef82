"""Claude on AWS Bedrock's runtime: InvokeModel whole and streamed, CountTokens; signatures are verified."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import struct
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote
from zlib import crc32

import msgspec

from relay.simulator.base import TERMINAL, Dialect, Event, Memory, Reply, credential_of, encode
from relay.simulator.http import Request
from relay.simulator.message import build
from relay.simulator.prompt import prompt_tokens
from relay.simulator.script import Script, ScriptError

PATH = re.compile(r"^/model/(?P<model>.+)/(?P<operation>invoke|invoke-with-response-stream|count-tokens)$")
# The secret of every access key id that begins with AKIASIM.
SECRET = "sim-secret"  # noqa: S105 - the simulator's, good for nothing else
VERSIONS = {"bedrock-2023-05-31", "2026-10-21"}
BETAS = re.compile(
    r"^(context-management|context-1m|compact|computer-use|interleaved-thinking|effort|fine-grained-tool-streaming|"
    r"mid-conversation-tool-changes|tool-search-tool|tool-examples|token-efficient-tools|output-128k)-"
)
REFUSED_FIELDS = ("model", "stream", "fallbacks", "cache_control", "tags", "service_tier", "container", "mcp_servers")
EXCEPTIONS = {
    "400": ("ValidationException", 400),
    "401": ("UnrecognizedClientException", 403),
    "403": ("AccessDeniedException", 403),
    "404": ("ResourceNotFoundException", 404),
    "408": ("ModelTimeoutException", 408),
    "424": ("ModelErrorException", 424),
    "429": ("ThrottlingException", 429),
    "500": ("InternalServerException", 500),
    "503": ("ServiceUnavailableException", 503),
    "529": ("ServiceUnavailableException", 503),
    "overloaded_error": ("ServiceUnavailableException", 503),
    "notready": ("ModelNotReadyException", 429),
    "quota": ("ServiceQuotaExceededException", 400),
    "nomodel": ("AccessDeniedException", 403),
    "modelstream": ("ModelStreamErrorException", 424),
}
MESSAGES = {
    "401": "The security token included in the request is invalid.",
    "403": "User is not authorized to perform: bedrock:InvokeModel",
    "404": "Could not resolve the foundation model from the provided model identifier.",
    "nomodel": "You don't have access to the model with the specified model ID.",
}


class Bedrock(Dialect):
    name = "bedrock"

    def serves(self, request: Request) -> bool:
        return request.path.startswith("/model/")

    def model(self, request: Request) -> str:
        match = PATH.match(request.path)
        return match["model"] if match else ""

    def answer(self, request: Request, model: str, script: Script, memory: Memory) -> Reply:
        refusal = self._refuse(request)
        if refusal:
            return refusal
        operation = request.path.rpartition("/")[2]
        body = request.json()
        if operation == "count-tokens":
            body = msgspec.json.decode(base64.b64decode(body["input"]["invokeModel"]["body"]))
        wrong = fault_of(body, model, counting=operation == "count-tokens")
        if wrong:
            return self.error("400", script=script, message=wrong)
        headers = ((b"x-amzn-requestid", memory.next_id("sim-").encode()),)
        if operation == "count-tokens":
            return Reply(headers=headers, body=encode({"inputTokens": prompt_tokens(body)}))
        message = build(body, model=native_name(model), script=script, memory=memory, request=request)
        if operation == "invoke":
            return Reply(headers=headers, body=encode(message.whole()))
        events = [Event(framed(event.data, last=event.kind == TERMINAL), event.kind) for event in message.events()]
        return Reply(headers=headers, events=events, content_type="application/vnd.amazon.eventstream", sse=False)

    def error(self, name: str, *, script: Script, model: str = "", message: str = "") -> Reply:
        kind, status = read_error(name)
        text = message or script.text("message", MESSAGES.get(name, f"simulated {kind}"))
        headers = [(b"x-amzn-requestid", b"sim-error"), (b"x-amzn-errortype", f"{kind}:http://internal/".encode())]
        if script.has("retry_after"):
            headers.append((b"retry-after", script.text("retry_after").encode()))
        return Reply(status=status, headers=tuple(headers), body=encode({"message": text}))

    def error_event(self, name: str, script: Script) -> bytes:
        kind, _ = read_error(name)
        payload = encode({"message": script.text("message", f"simulated {kind}")})
        camel = kind[0].lower() + kind[1:]
        return message_frame({":message-type": "exception", ":exception-type": camel}, payload)

    def _refuse(self, request: Request) -> Reply | None:
        """What is wrong with the credential: none, a bad one, or a signature that is not what we compute."""
        credential = credential_of(request)
        if not credential or "bad" in credential:
            return self.error("401", script=Script())
        if request.header("authorization").startswith("AWS4-HMAC-SHA256") and not is_signed(request):
            return self.error("403", script=Script(), message="The request signature we calculated does not match.")
        return None


def fault_of(body: dict[str, Any], model: str, *, counting: bool) -> str:
    """What Bedrock would answer 400 for, "" for nothing."""
    if body.get("anthropic_version") not in VERSIONS:
        return "anthropic_version: Field required"
    for name in REFUSED_FIELDS:
        if name in body:
            return f"{name}: Extra inputs are not permitted"
    for beta in body.get("anthropic_beta", []):
        if not BETAS.match(beta):
            return "invalid beta flag"
    if any("output_config" in message for message in body.get("messages", [])):
        return "messages.0.output_config: Extra inputs are not permitted"
    if "display" in (body.get("thinking") or {}):
        return "thinking.display: Extra inputs are not permitted"
    if counting and not model.startswith("anthropic."):
        return "The provided model identifier is invalid."
    missing = [name for name in ("max_tokens", "messages") if name not in body]
    return f"{missing[0]}: Field required" if missing else ""


def native_name(model: str) -> str:
    """The name that the model has in its answers: the first party's, without profile and version."""
    return re.sub(r"-v\d+(:\d+)?$", "", model.rpartition("anthropic.")[2])


def read_error(name: str) -> tuple[str, int]:
    if name in EXCEPTIONS:
        return EXCEPTIONS[name]
    if name.isdigit():
        return "InternalServerException", int(name)
    raise ScriptError(f"unknown error {name!r}; a status, or one of {', '.join(EXCEPTIONS)}")


# --- Event stream frames -----------------------------------------------------------------------------


def framed(sse: bytes, *, last: bool) -> bytes:
    """Anthropic's event as Bedrock frames it; the last one carries Bedrock's own metrics."""
    data = sse.partition(b"data: ")[2].strip()
    if last:
        data = data[:-1] + b',"amazon-bedrock-invocationMetrics":{"inputTokenCount":1,"outputTokenCount":1}}'
    payload = encode({"bytes": base64.b64encode(data).decode(), "p": "abcdefgh"})
    return message_frame(
        {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}, payload
    )


def message_frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One AWS event stream message: prelude, its CRC, headers, payload, CRC of all."""
    packed = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack(">I", crc32(prelude)) + packed + payload
    return message + struct.pack(">I", crc32(message))


# --- SigV4 (AWS General Reference, "Create a signed AWS API request") --------------------------------


def is_signed(request: Request) -> bool:
    """Whether the signature is the one that AWS would compute from what arrived."""
    fields = dict(part.strip().split("=", 1) for part in request.header("authorization").split(" ", 1)[1].split(","))
    scope = fields["Credential"].split("/", 1)[1]
    names = fields["SignedHeaders"].split(";")
    canonical_headers = "".join(f"{name}:{' '.join(request.header(name).split())}\n" for name in names)
    path = request.target.decode("latin-1").partition("?")[0]
    canonical = "\n".join(
        [
            request.method,
            # The path is encoded once more than it arrived.
            quote(path, safe="/-_.~"),
            "",
            canonical_headers,
            fields["SignedHeaders"],
            hashlib.sha256(request.body).hexdigest(),
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", request.header("x-amz-date"), scope, digest])
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.compare_digest(hmac.new(key, text.encode(), "sha256").hexdigest(), fields["Signature"])
