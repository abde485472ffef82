"""Google's Gemini API: generate, stream as events or as one JSON array, count, embed, models, in all its versions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import parse_qs

import msgspec

from relay.simulator.base import CONTENT, TERMINAL, Dialect, Event, Memory, Reply, credential_of, encode, tokens
from relay.simulator.google import error_body, read_error
from relay.simulator.http import Headers, Request
from relay.simulator.openai import Said, say, scripted_usage, weight
from relay.simulator.script import Script

PATH = re.compile(r"^/v1(?:beta|alpha)?/models(?:/(?P<model>[^/]+?))?(?::(?P<verb>[A-Za-z]+))?$")
MODELS = (
    ("gemini-3.1-pro-preview", "Gemini 3.1 Pro Preview", ("generateContent", "countTokens")),
    ("gemini-3.8-flash", "Gemini 3.8 Flash", ("generateContent", "countTokens")),
    ("gemini-2.5-flash", "Gemini 2.5 Flash", ("generateContent", "countTokens")),
    ("gemini-embedding-001", "Gemini Embedding 001", ("embedContent", "countTokens")),
)
ECHOED_CHARACTERS = 400
BETWEEN = b"\n,\r\n"


class Gemini(Dialect):
    """Streams of events, and everything that is no stream."""

    name: ClassVar[str] = "gemini"
    ping: ClassVar[bytes] = b"\n"
    path: ClassVar[re.Pattern[str]] = PATH
    traffic: ClassVar[str] = ""  # what usage says of the traffic

    def serves(self, request: Request) -> bool:
        match = self.path.match(request.path)
        if match is None:
            return False
        return bool(match["verb"] or request.header("x-goog-api-key") or not request.path.startswith("/v1/"))

    def model(self, request: Request) -> str:
        match = self.path.match(request.path)
        return (match["model"] or "") if match else ""

    def answer(self, request: Request, model: str, script: Script, memory: Memory) -> Reply:
        match = self.path.match(request.path)
        assert match is not None
        refused = self.refuse(request)
        if refused is not None:
            return refused
        verb = match["verb"] or ""
        if request.method == "GET" and not verb:
            return models(request, model)
        if request.method != "POST" or verb not in ANSWERS:
            return self.error("404", script=script, message=f"{request.method} {request.path} is not found.")
        body = request.json()
        wrong = fault_of(body, verb)
        if wrong:
            return self.error("400", script=script, message=wrong)
        if verb in EMBEDDINGS:
            return Reply(headers=HEADERS, body=encode(embedded(body, verb, script=script)))
        if verb == "countTokens":
            inner = body.get("generateContentRequest") or body
            total = script.count("in", prompt_tokens(inner))
            return Reply(headers=HEADERS, body=encode({"totalTokens": total, "promptTokensDetails": details(total)}))
        made = Generated.of(body, model=model, script=script, memory=memory, request=request, traffic=self.traffic)
        if verb == "generateContent":
            return Reply(headers=HEADERS, body=encode(made.whole()))
        return self.stream(made)

    def refuse(self, request: Request) -> Reply | None:
        """What is wrong with the credential, None = nothing."""
        key = credential_of(request)
        if not key:
            return self.error("403", script=Script(), message="Method doesn't allow unregistered callers.")
        return self.error("key", script=Script()) if "bad" in key else None

    def stream(self, made: Generated) -> Reply:
        events = [Event(b"data: " + encode(chunk) + b"\n\n", kind) for chunk, kind in made.chunks()]
        last = Event(events[-1].data, TERMINAL)
        return Reply(headers=HEADERS, events=[*events[:-1], last], content_type="text/event-stream")

    def error(self, name: str, *, script: Script, model: str = "", message: str = "") -> Reply:
        status, body = error_body(name, script, model=model, message=message)
        scripted = (
            (header, script.text(key).encode())
            for key, header in (("retry_after", b"retry-after"), ("should_retry", b"x-should-retry"))
            if script.has(key)
        )
        return Reply(status=status, headers=(*HEADERS, *scripted), body=encode({"error": body}))

    def error_event(self, name: str, script: Script) -> bytes:
        read_error(name)
        return b"data: " + encode({"error": error_body(name, script)[1]}) + b"\n\n"


class GeminiArray(Gemini):
    """The stream without `alt=sse`: one JSON array, pretty as Google writes it."""

    name = "gemini_array"

    def serves(self, request: Request) -> bool:
        events = "sse" in parse_qs(request.query).get("alt", [])
        return super().serves(request) and request.path.endswith(":streamGenerateContent") and not events

    def stream(self, made: Generated) -> Reply:
        events = []
        for number, (chunk, kind) in enumerate(made.chunks()):
            events.append(Event((BETWEEN if number else b"[") + encode(chunk), kind))
        return Reply(headers=HEADERS, events=[*events, Event(b"\n]\n", TERMINAL)], sse=False)

    def error_event(self, name: str, script: Script) -> bytes:
        first = script.point("fail") in {"first", "0"}
        return (b"[" if first else BETWEEN) + encode({"error": error_body(name, script)[1]}) + b"\n]\n"


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer: `answers` candidates that all say the same."""

    id: str
    model: str
    said: Said
    usage: dict[str, Any] | None
    growing: bool  # whether every event tells the counts so far
    stop: str
    answers: int
    grounding: dict[str, Any] | None

    @classmethod
    def of(
        cls, body: dict[str, Any], *, model: str, script: Script, memory: Memory, request: Request, traffic: str
    ) -> Generated:
        config = body.get("generationConfig") or body.get("generation_config") or {}
        limit = config.get("maxOutputTokens") or config.get("max_output_tokens")
        reasoning = script.count("thinking", 8 if (config.get("thinkingConfig") or {}) else 0)
        said = say(last_words(body), tool=tool_to_call(body, script), script=script, limit=limit, reasoning=reasoning)
        queries = [f"query {number}" for number in range(script.count("searches", int(offers_search(body))))]
        given = usage_of(body, said, script=script, answers=int(config.get("candidateCount") or 1), traffic=traffic)
        stop = "MAX_TOKENS" if said.full else "STOP"
        return cls(
            id=memory.next_id("sim"),
            model=script.text("model") or model,
            said=said,
            usage=None if script.text("usage") == "none" else scripted_usage(request) or given,
            growing=script.text("usage", "both") == "both" and not scripted_usage(request),
            stop=script.text("stop", stop),
            answers=int(config.get("candidateCount") or 1),
            grounding={"webSearchQueries": queries, "groundingChunks": []} if queries else None,
        )

    def whole(self) -> dict[str, Any]:
        return self.chunk(self.parts(), stop=self.stop, usage=self.usage)

    def chunks(self) -> Iterator[tuple[dict[str, Any], str]]:
        """What a stream carries, each with its kind; the last has the end and the counts."""
        spoken = ""
        for piece in self.said.pieces:
            spoken += piece
            yield self.chunk([{"text": piece}], usage=self.so_far(spoken)), CONTENT
        if self.said.tool:
            yield self.chunk([self.called()], usage=self.so_far(spoken)), CONTENT
        yield self.chunk([{"text": ""}], stop=self.stop, usage=self.usage), ""

    def so_far(self, spoken: str) -> dict[str, Any] | None:
        if not self.growing or self.usage is None:
            return None
        made = min(tokens(len(spoken.encode())), self.usage["candidatesTokenCount"])
        known: dict[str, Any] = {
            name: self.usage[name] for name in ("promptTokenCount", "cachedContentTokenCount") if name in self.usage
        }
        return {**known, "candidatesTokenCount": made, "totalTokenCount": self.usage["promptTokenCount"] + made}

    def parts(self) -> list[dict[str, Any]]:
        text = [{"text": self.said.text}] if self.said.text or not self.said.tool else []
        return [*text, self.called()] if self.said.tool else text

    def called(self) -> dict[str, Any]:
        assert self.said.tool is not None
        try:
            arguments = msgspec.json.decode("".join(self.said.arguments))
        except msgspec.DecodeError:
            arguments = {}  # the answer's maximum has cut them
        return {"functionCall": {"name": self.said.tool["name"], "args": arguments}}

    def chunk(self, parts: list[dict[str, Any]], *, stop: str = "", usage: dict[str, Any] | None) -> dict[str, Any]:
        candidates = []
        for index in range(self.answers):
            candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": index}
            if stop:
                candidate["finishReason"] = stop
                candidate |= {"groundingMetadata": self.grounding} if self.grounding else {}
            candidates.append(candidate)
        body: dict[str, Any] = {"candidates": candidates, "modelVersion": self.model, "responseId": self.id}
        return body if usage is None else {**body, "usageMetadata": usage}


HEADERS: Headers = (
    (b"server", b"scaffolding on HTTPServer2"),
    (b"server-timing", b"gfet4t7; dur=12"),
    (b"set-cookie", b"NID=simulated"),
    (b"alt-svc", b'h3=":443"'),
)
EMBEDDINGS = frozenset({"embedContent", "batchEmbedContents"})
WANTED = {
    "embedContent": ("content",),
    "batchEmbedContents": ("requests",),
    "countTokens": ("contents", "generateContentRequest"),
}
ANSWERS = EMBEDDINGS | {"generateContent", "streamGenerateContent", "countTokens"}


def fault_of(body: dict[str, Any], verb: str) -> str:
    """What the vendor would refuse the body for, "" for nothing."""
    wanted = WANTED.get(verb, ("contents",))
    if not any(body.get(name) for name in wanted):
        return f"* {'.'.join(('Request', wanted[0]))}: {wanted[0]} is not specified\n"
    return ""


# --- Counts ------------------------------------------------------------------------------------------


def prompt_tokens(body: dict[str, Any]) -> int:
    """All input tokens: four bytes each, rounded up, at least one."""
    system = body.get("systemInstruction") or body.get("system_instruction") or {}
    parts = [part for content in (system, *(body.get("contents") or ())) for part in content.get("parts") or ()]
    return max(1, tokens(sum(weight(part) for part in parts) + weight(body.get("tools"))))


def usage_of(body: dict[str, Any], said: Said, *, script: Script, answers: int, traffic: str) -> dict[str, Any]:
    """The usage object; the prompt's count includes what a cache had, hosted tools' results come on top."""
    plain, cached, audio = script.count("in", prompt_tokens(body)), script.count("cache_read"), script.count("audio_in")
    fed = script.count("tool_use")
    output = script.count("out", (said.tokens - said.reasoning) * answers)
    prompt = plain + cached + audio
    usage: dict[str, Any] = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": output,
        "totalTokenCount": prompt + output + said.reasoning + fed,
        "promptTokensDetails": [
            *details(plain + cached),
            *([{"modality": "AUDIO", "tokenCount": audio}] * bool(audio)),
        ],
    }
    if cached:
        usage |= {"cachedContentTokenCount": cached, "cacheTokensDetails": details(cached)}
    if said.reasoning:
        usage["thoughtsTokenCount"] = said.reasoning
    if fed:
        usage |= {"toolUsePromptTokenCount": fed, "toolUsePromptTokensDetails": details(fed)}
    if traffic:
        usage["trafficType"] = script.text("tier", traffic)
    elif script.has("tier"):
        usage["serviceTier"] = script.text("tier")
    return usage


def details(count: int) -> list[dict[str, Any]]:
    return [{"modality": "TEXT", "tokenCount": count}]


# --- What is said ------------------------------------------------------------------------------------


def last_words(body: dict[str, Any]) -> str:
    """The text of the last user message, shortened."""
    users = [content for content in body["contents"] if content.get("role", "user") == "user"]
    parts = users[-1].get("parts") or () if users else ()
    return " ".join(str(part["text"]) for part in parts if "text" in part)[:ECHOED_CHARACTERS]


def declared(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        function
        for tool in body.get("tools") or ()
        for function in tool.get("functionDeclarations") or tool.get("function_declarations") or ()
    ]


def tool_to_call(body: dict[str, Any], script: Script) -> dict[str, Any] | None:
    """The first function of the client's own, once: not again after its result has come."""
    answered = any("functionResponse" in part for part in body["contents"][-1].get("parts") or ())
    return None if answered or script.text("tools") == "0" else next(iter(declared(body)), None)


def offers_search(body: dict[str, Any]) -> bool:
    return any("googleSearch" in tool or "google_search" in tool for tool in body.get("tools") or ())


def embedded(body: dict[str, Any], verb: str, *, script: Script) -> dict[str, Any]:
    """Vectors that depend on the content alone."""
    asked = body["requests"] if verb == "batchEmbedContents" else [body]
    size = sum(weight(part) for item in asked for part in (item.get("content") or {}).get("parts") or ())
    total = script.count("in", max(1, tokens(size)))
    vectors = [{"values": vector(item.get("content"), item.get("outputDimensionality") or 8)} for item in asked]
    known = {} if script.text("usage") == "none" else {"promptTokenCount": total, "promptTokensDetails": details(total)}
    found: dict[str, Any] = {"embeddings": vectors} if verb == "batchEmbedContents" else {"embedding": vectors[0]}
    return {**found, "usageMetadata": known} if known else found


def vector(content: Any, dimensions: int) -> list[float]:
    seed = hashlib.sha256(encode(content)).digest()
    return [seed[index % 32] / 255 - 0.5 for index in range(dimensions)]


# --- Models ------------------------------------------------------------------------------------------


def models(request: Request, name: str) -> Reply:
    listed = [model_info(*item) for item in MODELS]
    if name:
        found = next((item for item in listed if item["name"] == f"models/{name}"), None)
        if found is None:
            status, body = error_body("nomodel", Script(), model=name)
            return Reply(status=status, headers=HEADERS, body=encode({"error": body}))
        return Reply(headers=HEADERS, body=encode(found))
    size = int(parse_qs(request.query).get("pageSize", ["50"])[0])
    return Reply(headers=HEADERS, body=encode({"models": listed[:size]}))


def model_info(name: str, title: str, methods: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": title,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": list(methods),
    }
