"""The Anthropic API: messages, count_tokens, models, in both of its versions."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from relay.simulator.base import Dialect, Event, Memory, Reply, credential_of, encode
from relay.simulator.http import Headers, Request
from relay.simulator.message import build
from relay.simulator.prompt import prompt_tokens
from relay.simulator.script import Script, ScriptError

TOKEN_PATH = "/v1/oauth/token"  # noqa: S105 - a path
VERSIONS = {"2023-06-01", "2026-10-21"}
MODELS = (
    ("claude-opus-5-5", "Claude Opus 5.5"),
    ("claude-sonnet-5-5", "Claude Sonnet 5.5"),
    ("claude-haiku-5-5", "Claude Haiku 5.5"),
    ("claude-opus-4-8", "Claude Opus 4.8"),
    ("claude-sonnet-4-5", "Claude Sonnet 4.5"),
    ("claude-haiku-4-5", "Claude Haiku 4.5"),
)
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# Errors by what they mean: status, message, error code. As the vendor words them (reference/clients.md).
NAMED = {
    "credit": (400, "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.", ""),
    "spent": (400, "You have reached your specified API usage limits. You will regain access on 2026-12-01.", ""),
    "enforced_limit": (429, "The enforced spend limit has been reached.", "enforced_spend_limit_reached"),
    "contract_limit": (429, "The contract's spend limit has been reached.", "contract_spend_limit_reached"),
    "linked": (402, "The linked organization can't be billed.", "linked_organization_billing"),
    "nomodel": (404, "model: {model}", ""),
    "model_forbidden": (403, "Your organization does not have access to model {model}.", ""),
    "toolong": (400, "prompt is too long: 208341 tokens > 200000 maximum", ""),
    "overloaded": (529, "Overloaded", ""),
}
MESSAGES = {401: "invalid x-api-key", 404: "Not found", 413: "Request exceeds the maximum size", 529: "Overloaded"}


class Anthropic(Dialect):
    name = "anthropic"
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'

    def serves(self, request: Request) -> bool:
        if request.path == TOKEN_PATH or request.path.startswith("/v1/messages"):
            return True
        return request.path.startswith("/v1/models") and bool(request.header("anthropic-version"))

    def model(self, request: Request) -> str:
        if request.path == TOKEN_PATH:
            # No model here: the script stands in the refresh token, the caller's credential for this path.
            return refresh_token_of(request)
        if request.path.startswith("/v1/models/"):
            return request.path.removeprefix("/v1/models/")
        return str(request.json().get("model", "")) if request.method == "POST" else ""

    def answer(self, request: Request, model: str, script: Script, memory: Memory) -> Reply:
        if request.path == TOKEN_PATH:
            return self._refresh(model, script, memory)
        refusal = self._authenticate(request)
        if refusal:
            return refusal
        if request.method == "GET" and request.path.startswith("/v1/models"):
            return self._models(request, model)
        if request.method != "POST" or request.path not in {"/v1/messages", "/v1/messages/count_tokens"}:
            return self.error("404", script=script, message=f"{request.method} {request.path} is not served")
        body = request.json()
        wrong = fault_of(body, request)
        if wrong:
            return self.error("400", script=script, message=wrong)
        if request.path.endswith("/count_tokens"):
            return self._success(memory, body=encode({"input_tokens": prompt_tokens(body)}))
        message = build(body, model=model, script=script, memory=memory, request=request)
        if body.get("stream"):
            return self._success(memory, events=message.events())
        return self._success(memory, body=encode(message.whole()))

    def error(self, name: str, *, script: Script, model: str = "", message: str = "") -> Reply:
        status, text, code = read_error(name, script, model=model)
        request_id = "req_sim_error"
        body = error_body(status, script, text=message or text, code=code, request_id=request_id)
        headers = [
            *vendor_headers(request_id),
            *rate_limit_headers(remaining=0 if status == 429 else 99, script=script),
        ]
        headers += [
            (header, script.text(key).encode())
            for key, header in (("retry_after", b"retry-after"), ("should_retry", b"x-should-retry"))
            if script.has(key)
        ]
        return Reply(status=status, headers=tuple(headers), body=encode(body))

    def error_event(self, name: str, script: Script) -> bytes:
        status, text, code = read_error(name, script, model="")
        return sse("error", error_body(status, script, text=text, code=code, request_id="req_sim_error"))

    def _refresh(self, token: str, script: Script, memory: Memory) -> Reply:
        """Return new tokens; each has a name of its own, and the old ones stay good. The script goes on with them."""
        if not token or "bad" in token:
            wrong = {"error": "invalid_grant", "error_description": "Refresh token not found or invalid"}
            return Reply(status=400, body=encode(wrong))
        kept = f"~expires={script.text('expires')}" if script.has("expires") else ""
        life = script.count("expires", 3600)
        tokens = {
            "access_token": memory.next_id("sk-ant-oat-sim-"),
            "refresh_token": memory.next_id("sk-ant-ort-sim-") + kept,
        }
        return Reply(body=encode({"token_type": "Bearer", "expires_in": life, "scope": "user:inference", **tokens}))

    def _authenticate(self, request: Request) -> Reply | None:
        credential = credential_of(request)
        if credential and "bad" not in credential:
            return None
        message = "invalid x-api-key" if credential else "x-api-key header is required"
        return self.error("401", script=Script(), message=message)

    def _success(self, memory: Memory, *, body: bytes = b"", events: list[Event] | None = None) -> Reply:
        headers = (*vendor_headers(memory.next_id("req_sim_")), *rate_limit_headers(remaining=99, script=Script()))
        content_type = "application/json" if events is None else "text/event-stream; charset=utf-8"
        return Reply(headers=headers, body=body, events=events, content_type=content_type)

    def _models(self, request: Request, model: str) -> Reply:
        if request.path.startswith("/v1/models/"):
            known = dict(MODELS)
            if model not in known:
                return self.error("nomodel", script=Script(), model=model)
            return Reply(headers=vendor_headers("req_sim_models"), body=encode(model_info(model, known[model])))
        return Reply(headers=vendor_headers("req_sim_models"), body=encode(model_page(request.query)))


def refresh_token_of(request: Request) -> str:
    """Return the refresh token of a JSON or form body."""
    if request.header("content-type").startswith("application/json"):
        return str(request.json().get("refresh_token", ""))
    return parse_qs(request.body.decode()).get("refresh_token", [""])[0]


def fault_of(body: dict[str, Any], request: Request) -> str:
    """Return what the vendor would refuse the body for, "" for nothing."""
    version = request.header("anthropic-version")
    if not version:
        return "anthropic-version: header is required"
    if version not in VERSIONS:
        return f"anthropic-version: {version!r} is not a valid version"
    missing = [name for name in ("model", "messages") if not body.get(name)]
    if not missing and "max_tokens" not in body and request.path == "/v1/messages":
        missing = ["max_tokens"]
    if missing:
        return f"{missing[0]}: Field required"
    return fault_of_2026(body) if version == "2026-10-21" else ""


def fault_of_2026(body: dict[str, Any]) -> str:
    for name in ("temperature", "top_p", "top_k"):
        if name in body:
            return f"{name}: Extra inputs are not permitted"
    for number, message in enumerate(body["messages"]):
        content = message.get("content")
        for position, block in enumerate(content if isinstance(content, list) else []):
            where = f"messages.{number}.content.{position}"
            if message.get("role") == "assistant" and block.get("type") == "document":
                return f"{where}: document blocks are not permitted in assistant messages"
            if message.get("role") == "user" and block.get("type") == "text" and block.get("citations"):
                return f"{where}.citations: Extra inputs are not permitted"
    return ""


def read_error(name: str, script: Script, *, model: str) -> tuple[int, str, str]:
    """Return status, message and error code of a scripted error."""
    if name in NAMED:
        status, text, code = NAMED[name]
        return status, script.text("message", text.format(model=model)), script.text("code", code)
    by_type = {kind: status for status, kind in TYPES.items()}
    if not name.isdigit() and name not in by_type:
        raise ScriptError(f"unknown error {name!r}; a status, a type, or one of {', '.join(NAMED)}")
    status = int(name) if name.isdigit() else by_type[name]
    return status, script.text("message", MESSAGES.get(status, f"simulated error {status}")), script.text("code")


def error_body(status: int, script: Script, *, text: str, code: str, request_id: str) -> dict[str, Any]:
    kind = script.text("kind", TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error"))
    error: dict[str, Any] = {"type": kind, "message": text}
    if code:
        error["details"] = {"error_code": code}
    return {"type": "error", "error": error, "request_id": request_id}


def sse(name: str, value: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + encode(value) + b"\n\n"


def vendor_headers(request_id: str) -> Headers:
    """What the vendor sends with every answer, some of it not for a relay's clients."""
    return (
        (b"request-id", request_id.encode()),
        (b"anthropic-organization-id", b"00000000-0000-4000-8000-5150deadbeef"),
        (b"set-cookie", b"_cfuvid=simulated; Path=/; HttpOnly"),
        (b"strict-transport-security", b"max-age=31536000"),
        (b"alt-svc", b'h3=":443"'),
        (b"server", b"simulator"),
    )


def rate_limit_headers(*, remaining: int, script: Script) -> Headers:
    seconds = script.seconds("resets") or 60
    resets = datetime.fromtimestamp(int(time.time() + seconds), UTC).isoformat().replace("+00:00", "Z").encode()
    pairs: list[tuple[bytes, bytes]] = []
    for meter, limit in (
        (b"requests", 100),
        (b"tokens", 100_000),
        (b"input-tokens", 80_000),
        (b"output-tokens", 20_000),
    ):
        prefix = b"anthropic-ratelimit-" + meter
        left = limit * remaining // 100
        pairs += [
            (prefix + b"-limit", b"%d" % limit),
            (prefix + b"-remaining", b"%d" % left),
            (prefix + b"-reset", resets),
        ]
    return tuple(pairs)


def model_info(name: str, title: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": title,
        "created_at": "2026-09-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }


def model_page(query: str) -> dict[str, Any]:
    """Return a page of the list; `limit`, `after_id` and `before_id` as the vendor reads them."""
    parameters = parse_qs(query)
    names = [name for name, _ in MODELS]
    after, before = (parameters.get(key, [""])[0] for key in ("after_id", "before_id"))
    start = names.index(after) + 1 if after in names else 0
    stop = names.index(before) if before in names else len(names)
    limit = int(parameters.get("limit", ["20"])[0])
    page = list(MODELS)[start:stop][:limit]
    return {
        "data": [model_info(name, title) for name, title in page],
        "has_more": start + len(page) < stop,
        "first_id": page[0][0] if page else None,
        "last_id": page[-1][0] if page else None,
    }
