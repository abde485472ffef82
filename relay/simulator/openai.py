"""What OpenAI's simulated endpoints share: paths of OpenAI and Azure, credentials, errors, and what is said."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar
from urllib.parse import parse_qs

import msgspec

from relay.simulator.base import Dialect, Event, Memory, Reply, credential_of, encode, tokens
from relay.simulator.http import Headers, Request
from relay.simulator.message import UNICODE, Room, example, sized
from relay.simulator.script import Script, ScriptError

# Where a server's root ends and an operation begins; the deployment stands in Azure's dated paths only.
FAMILY = re.compile(r"^/(?:v1|openai/v1|openai/deployments/(?P<deployment>[^/]+)|openai)/(?P<operation>.+)$")
TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "request_forbidden",
    404: "invalid_request_error",
    409: "invalid_request_error",
    429: "requests",
}
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded", 503: "server_is_overloaded"}
# Errors by what they mean: status, type, code, message. As the vendor words them.
NAMED = {
    "quota": (
        429,
        "insufficient_quota",
        "insufficient_quota",
        "You exceeded your current quota, please check your plan.",
    ),
    "billing": (400, "billing_limit_user_error", "billing_hard_limit_reached", "Billing hard limit has been reached."),
    "nomodel": (
        404,
        "invalid_request_error",
        "model_not_found",
        "The model `{model}` does not exist or you do not have access to it.",
    ),
    "model_forbidden": (
        403,
        "invalid_request_error",
        "model_not_found",
        "Project `proj_simulated` does not have access to model `{model}`",
    ),
    "deployment": (404, "", "DeploymentNotFound", "The API deployment for this resource does not exist."),
    "toolong": (
        400,
        "invalid_request_error",
        "context_length_exceeded",
        "Your input exceeds the context window of this model.",
    ),
    "filter": (400, "", "content_filter", "The response was filtered due to the prompt triggering the content policy."),
    "region": (
        403,
        "request_forbidden",
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
    ),
    "overloaded": (
        503,
        "server_error",
        "server_is_overloaded",
        "That model is currently overloaded with other requests.",
    ),
}
MESSAGES = {
    401: "Incorrect API key provided.",
    429: "Rate limit reached for requests in organization org-simulated0001. Please try again in 1s.",
    500: "The server had an error while processing your request. Sorry about that!",
}


@dataclass(frozen=True, slots=True)
class Place:
    """What a path means: the operation, as OpenAI names it, and Azure's deployment where it names one."""

    operation: str
    deployment: str = ""
    azure: bool = False


class OpenAIDialect(Dialect):
    ping: ClassVar[bytes] = b": keep-alive\n\n"

    def model(self, request: Request) -> str:
        place = place_of(request)
        if place.deployment:
            return place.deployment
        return str(request.json().get("model") or "") if request.method == "POST" and request.body else ""

    def serves(self, request: Request) -> bool:
        match = FAMILY.match(request.path)
        return match is not None and self.operates(match["operation"])

    @abstractmethod
    def operates(self, operation: str) -> bool:
        """Whether this dialect answers the operation."""

    def answer(self, request: Request, model: str, script: Script, memory: Memory) -> Reply:
        place = place_of(request)
        reply = refusal_of(request, script) or self.healthy(request, place, model=model, script=script, memory=memory)
        if reply.status != 200:
            return reply
        return Reply(
            headers=vendor_headers(memory.next_id("req_sim_"), remaining=99),
            body=reply.body,
            events=reply.events,
            content_type="application/json" if reply.events is None else "text/event-stream; charset=utf-8",
        )

    @abstractmethod
    def healthy(self, request: Request, place: Place, *, model: str, script: Script, memory: Memory) -> Reply:
        """The answer to an authenticated request, the vendor's refusals included."""

    def error(self, name: str, *, script: Script, model: str = "", message: str = "") -> Reply:
        status, body = error_of(name, script, model=model, message=message)
        headers = vendor_headers("req_sim_error", remaining=0 if status == 429 else 99, resets=script.seconds("resets"))
        scripted = tuple(
            (header, script.text(key).encode())
            for key, header in (("retry_after", b"retry-after"), ("should_retry", b"x-should-retry"))
            if script.has(key)
        )
        return Reply(status=status, headers=(*headers, *scripted), body=encode({"error": body}))


def place_of(request: Request) -> Place:
    match = FAMILY.match(request.path)
    if match is None:
        return Place("")
    return Place(match["operation"], match["deployment"] or "", azure=request.path.startswith("/openai/"))


def refusal_of(request: Request, script: Script) -> Reply | None:
    """What the vendor refuses before it reads the body; and a field that the script has it not know."""
    place, credential = place_of(request), credential_of(request)
    if not credential or "bad" in credential:
        return plain_error(401, "invalid_api_key", MESSAGES[401])
    dated = place.azure and not request.path.startswith("/openai/v1/")
    if dated and "api-version" not in parse_qs(request.query):
        return plain_error(404, "404", "Resource not found")
    field = script.text("reject")
    if field and request.method == "POST" and request.body and field in request.json():
        return plain_error(400, None, f"Unrecognized request argument supplied: {field}")
    return None


def plain_error(status: int, code: str | None, message: str, *, param: str | None = None) -> Reply:
    error = {"message": message, "type": TYPES.get(status, "server_error"), "param": param, "code": code}
    return Reply(status=status, headers=vendor_headers("req_sim_error", remaining=99), body=encode({"error": error}))


def error_of(name: str, script: Script, *, model: str, message: str = "") -> tuple[int, dict[str, Any]]:
    """Return status and error object of a scripted error."""
    if name in NAMED:
        status, kind, code, text = NAMED[name]
        text = text.format(model=model)
    elif name.isdigit():
        status = int(name)
        kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        code, text = CODES.get(status, ""), MESSAGES.get(status, f"simulated error {status}")
    else:
        raise ScriptError(f"unknown error {name!r}; a status, or one of {', '.join(NAMED)}")
    error = {
        "message": script.text("message", message or text),
        "type": script.text("kind", kind) or None,
        "param": None,
        "code": script.text("code", code) or None,
    }
    return status, error


def vendor_headers(request_id: str, *, remaining: int, resets: float = 0) -> Headers:
    """What the vendor sends with every answer, some of it not for a relay's clients."""
    reset = b"%gs" % (resets or 60)
    meters = ((b"requests", 500), (b"tokens", 200_000))
    limits = [
        pair
        for meter, limit in meters
        for pair in (
            (b"x-ratelimit-limit-" + meter, b"%d" % limit),
            (b"x-ratelimit-remaining-" + meter, b"%d" % (limit * remaining // 100)),
            (b"x-ratelimit-reset-" + meter, reset),
        )
    ]
    return (
        (b"x-request-id", request_id.encode()),
        (b"openai-organization", b"org-simulated0001"),
        (b"openai-project", b"proj_simulated0001"),
        (b"openai-processing-ms", b"12"),
        (b"openai-version", b"2020-10-01"),
        (b"set-cookie", b"__cf_bm=simulated; Path=/; HttpOnly"),
        (b"strict-transport-security", b"max-age=31536000"),
        (b"alt-svc", b'h3=":443"'),
        *limits,
    )


# -- what is said, the same in both formats ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """One generated answer: pieces of text, at most one call of the client's own tool, and hidden reasoning."""

    pieces: tuple[str, ...]
    tool: dict[str, Any] | None
    arguments: tuple[str, ...]
    reasoning: int
    full: bool

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def tokens(self) -> int:
        size = len(self.text.encode()) + len("".join(self.arguments).encode())
        return max(1, tokens(size)) + self.reasoning


def say(last_words: str, *, tool: dict[str, Any] | None, script: Script, limit: int | None, reasoning: int) -> Said:
    """Return what is answered; `limit` is the most tokens, the reasoning's included."""
    room = Room(4 * max((1_000_000 if limit is None else limit) - reasoning, 0))
    pieces = []
    for piece in pieces_of(last_words, script):
        pieces.append(room.take(piece))
        if room.full:
            break
    arguments: tuple[str, ...] = ()
    if tool is not None and not room.full:
        text = room.take(encode(arguments_of(tool)).decode())
        arguments = (text[: len(text) // 2], text[len(text) // 2 :])
    called = tool if arguments else None
    return Said(tuple(piece for piece in pieces if piece), called, arguments, reasoning, room.full)


def pieces_of(last_words: str, script: Script) -> Iterator[str]:
    """Yield the text of each delta: the words of the text, over and over if `chunks` asks for more."""
    text = script.text("say") or (UNICODE if script.text("text") == "unicode" else f"You said: {last_words}")
    words = re.findall(r"\S+\s*|\s+", text) or [" "]
    size = script.count("size")
    pieces = (sized(word, size) for word in words) if size else iter(words)
    return islice(cycle(pieces), script.count("chunks", len(words)))


def arguments_of(tool: dict[str, Any]) -> dict[str, Any]:
    properties = ((tool.get("parameters") or {}).get("properties") or {}).items()
    return {name: example(schema) for name, schema in properties}


def counts(size: int, output: int, reasoning: int, *, script: Script, searches: int = 0) -> dict[str, int]:
    """Return what usage reports; `in` is what no cache had, the vendor's total adds the cache to it."""
    cached, half_hour, half_day = (script.count(key) for key in ("cache_read", "cache_30m", "cache_12h"))
    plain = script.count("in", max(1, tokens(size)))
    audio = script.count("audio_in"), script.count("audio_out")
    return {
        "input": plain + cached + half_hour + half_day + audio[0],
        "cached": cached,
        "ttl_30m": half_hour,
        "ttl_12h": half_day,
        "output": script.count("out", output) + audio[1],
        "reasoning": reasoning,
        "audio_in": audio[0],
        "audio_out": audio[1],
        "searches": searches,
    }


def scripted_usage(request: Request) -> Any:
    """The usage object that the caller wants to see, None without one."""
    chosen = request.header("x-sim-usage")
    return msgspec.json.decode(chosen) if chosen else None


def weight(value: Any) -> int:
    """Bytes of a content that count as input: a string's own, a text part's text, anything else its compact JSON."""
    if value is None:
        return 0
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list):
        return sum(weight(item) for item in value)
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return len(value["text"].encode())
    return len(encode(value))


def data(value: Any, kind: str = "") -> Event:
    return Event(b"data: " + encode(value) + b"\n\n", kind)
