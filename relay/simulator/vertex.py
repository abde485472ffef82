"""Google's Vertex AI: the token server of service accounts, Gemini models and Claude; signatures are verified."""

from __future__ import annotations

import base64
import re
import time
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar
from urllib.parse import parse_qs

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from relay.simulator.anthropic import Anthropic
from relay.simulator.base import Dialect, Memory, Reply, credential_of, encode
from relay.simulator.gemini import HEADERS, Gemini, GeminiArray
from relay.simulator.google import error_body, read_error
from relay.simulator.http import Request
from relay.simulator.message import build
from relay.simulator.prompt import prompt_tokens
from relay.simulator.script import Script

TOKEN_PATH = "/token"  # noqa: S105 - a path
PREFIX = "ya29.sim-"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
GOOGLES = r"^/v1(?:beta1)?/projects/[^/]+/locations/[^/]+/publishers/"
CLAUDE_PATH = re.compile(GOOGLES + r"anthropic/models/(?P<model>[^/]+):(?P<verb>rawPredict|streamRawPredict)$")
GEMINI_PATH = re.compile(GOOGLES + r"google/models/(?P<model>[^/]+?):(?P<verb>[A-Za-z]+)$")
VERSIONS = {"vertex-2023-10-16", "2026-10-21"}
BETAS = re.compile(
    r"^(context-management|context-1m|compact|computer-use|interleaved-thinking|effort|tool-search-tool|web-search)-"
)
REFUSED_FIELDS = ("fallbacks", "cache_control", "tags", "service_tier", "container", "mcp_servers", "anthropic_beta")
# What the Gemini API has at the top of a body, and Vertex does not know there.
UNKNOWN_FIELDS = ("model", "generateContentRequest", "taskType", "title", "outputDimensionality")


@cache
def key() -> rsa.RSAPrivateKey:
    """The service account's key, another one in every process."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def service_account(url: str, *, script: str = "", token_script: str = "") -> dict[str, str]:
    """The JSON that Google's console would hand out. `script` goes along with every access token that it gets,
    `token_script` is that of the token server's own answers."""
    pem = key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account",
        "project_id": "sim-project",
        "private_key_id": "sim" + (f"~{script}" if script else ""),
        "private_key": pem.decode(),
        "client_email": f"sim{f'~{token_script}' if token_script else ''}@sim-project.iam.gserviceaccount.com",
        "client_id": "100000000000000000001",
        "token_uri": f"{url}{TOKEN_PATH}",
        "universe_domain": "googleapis.com",
    }


class GoogleTokens(Dialect):
    """The token server: a signed assertion in, an access token out (RFC 7523)."""

    name = "google_tokens"

    def serves(self, request: Request) -> bool:
        return request.path == TOKEN_PATH

    def model(self, request: Request) -> str:
        """No model here: the script stands in the service account's name, in front of the `@`."""
        return str(unverified(request)[1].get("iss", "")).partition("@")[0]

    def answer(self, request: Request, model: str, script: Script, memory: Memory) -> Reply:
        header, claims = unverified(request)
        wrong = fault_of_assertion(request, claims)
        if wrong:
            return Reply(status=400, body=encode({"error": "invalid_grant", "error_description": wrong}))
        life = script.count("expires", 3599)
        carried = str(header.get("kid", "")).partition("~")[2]
        token = f"{memory.next_id(PREFIX)}.{(time.time() + life) * 1000:.0f}" + (f"~{carried}" if carried else "")
        return Reply(body=encode({"access_token": token, "expires_in": life, "token_type": "Bearer"}))

    def error(self, name: str, *, script: Script, model: str = "", message: str = "") -> Reply:
        status, kind, text, _ = read_error(name)
        said = {"error": kind.lower(), "error_description": script.text("message", message or text)}
        return Reply(status=status, body=encode(said))

    def error_event(self, name: str, script: Script) -> bytes:
        return b""


def unverified(request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of the assertion, empty where there is none."""
    assertion = parse_qs(request.body.decode("latin-1")).get("assertion", [""])[0]
    parts = assertion.split(".")
    if len(parts) != 3:
        return {}, {}
    header, claims = (msgspec.json.decode(unpadded(part), type=dict[str, Any]) for part in parts[:2])
    return header, claims


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def fault_of_assertion(request: Request, claims: dict[str, Any]) -> str:
    """What Google would say `invalid_grant` for, "" for nothing."""
    form = parse_qs(request.body.decode("latin-1"))
    if form.get("grant_type") != [JWT_BEARER]:
        return "unsupported grant type"
    if not is_signed(form.get("assertion", [""])[0]):
        return "Invalid JWT Signature."
    host = request.header("host")
    if claims.get("aud") != f"http://{host}{TOKEN_PATH}":
        return "Invalid JWT: wrong audience."
    issued, expires = claims.get("iat", 0), claims.get("exp", 0)
    if not time.time() - 3600 <= issued <= time.time() + 60 or not 0 < expires - issued <= 3600:
        return "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe."
    if SCOPE not in str(claims.get("scope", "")).split():
        return "Invalid OAuth scope or ID token audience provided."
    return "" if "bad" not in str(claims.get("iss", "bad")) else "Invalid grant: account not found"


def is_signed(assertion: str) -> bool:
    """Whether it is signed by our key, with RS256."""
    signed, _, signature = assertion.rpartition(".")
    head = signed.partition(".")[0]
    try:
        if msgspec.json.decode(unpadded(head), type=dict[str, Any]).get("alg") != "RS256":
            return False
        key().public_key().verify(unpadded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError, msgspec.DecodeError):
        return False
    return True


def refused_token(request: Request) -> tuple[str, Script] | None:
    """Which error the credential gets, None = it is an access token of ours that has not run out."""
    token = credential_of(request).partition("~")[0]
    if not token.startswith(PREFIX) or not request.header("authorization").startswith("Bearer "):
        return "401", Script()
    return None if time.time() * 1000 < float(token.rpartition(".")[2]) else ("401", Script())


# --- Gemini -----------------------------------------------------------------------------------------


class VertexGemini(Gemini):
    name = "vertex_gemini"
    path = GEMINI_PATH
    traffic: ClassVar[str] = "ON_DEMAND"

    def refuse(self, request: Request) -> Reply | None:
        refused = refused_token(request)
        return None if refused is None else self.error(refused[0], script=refused[1])

    def answer(self, request: Request, model: str, script: Script, memory: Memory) -> Reply:
        body = request.json() if request.body else {}
        items = [body, *(body.get("requests") or ())]
        unknown = next((name for item in items for name in UNKNOWN_FIELDS if name in item), "")
        if unknown:
            message = f'Invalid JSON payload received. Unknown name "{unknown}": Cannot find field.'
            return self.error("400", script=script, message=message)
        flat = {**body, **body.get("embedContentConfig", {})}
        if "requests" in body:
            flat["requests"] = [{**item, **item.get("embedContentConfig", {})} for item in body["requests"]]
        return super().answer(replace(request, body=encode(flat)), model, script, memory)


class VertexGeminiArray(VertexGemini, GeminiArray):
    name = "vertex_gemini_array"

    def error(self, name: str, *, script: Script, model: str = "", message: str = "") -> Reply:
        """One element of an array, like all that this method answers."""
        plain = super().error(name, script=script, model=model, message=message)
        return replace(plain, body=b"[" + plain.body + b"\n]\n")


# --- Claude -----------------------------------------------------------------------------------------


class VertexClaude(Anthropic):
    """Anthropic's side answers in Anthropic's words, Google's side around it in Google's."""

    name = "vertex_claude"

    def serves(self, request: Request) -> bool:
        return CLAUDE_PATH.match(request.path) is not None

    def model(self, request: Request) -> str:
        match = CLAUDE_PATH.match(request.path)
        named = match["model"] if match else ""
        return str(request.json().get("model", "")) if named == "count-tokens" else named

    def answer(self, request: Request, model: str, script: Script, memory: Memory) -> Reply:
        refused = refused_token(request)
        if refused is not None:
            return self.error(refused[0], script=refused[1])
        body, counting = request.json(), "/count-tokens:" in request.path
        wrong = fault_of(request, body, counting=counting, script=script)
        if wrong:
            return super().error("400", script=script, message=wrong)
        headers = ((b"request-id", memory.next_id("req_vrtx_sim").encode()), *HEADERS)
        if counting:
            return Reply(headers=headers, body=encode({"input_tokens": prompt_tokens(body)}))
        message = build(body, model=native_name(model), script=script, memory=memory, request=request)
        if not request.path.endswith(":streamRawPredict"):
            return Reply(headers=headers, body=encode(message.whole()))
        return Reply(headers=headers, events=message.events(), content_type="text/event-stream; charset=utf-8")

    def error(self, name: str, *, script: Script, model: str = "", message: str = "") -> Reply:
        if name in GOOGLES_OWN:
            status, said = error_body(name, script, model=model, message=message)
            waits = ((b"retry-after", script.text("retry_after").encode()),) if script.has("retry_after") else ()
            return Reply(status=status, headers=(*HEADERS, *waits), body=encode({"error": said}))
        return super().error(name, script=script, model=model, message=message)


GOOGLES_OWN = frozenset({"401", "403", "404", "429", "499", "500", "503", "504", "disabled"})


def fault_of(request: Request, body: dict[str, Any], *, counting: bool, script: Script) -> str:
    """What Claude on Vertex would answer 400 for, "" for nothing."""
    if body.get("anthropic_version") not in VERSIONS:
        return "anthropic_version: Field required"
    if request.query:
        return f"Cannot bind query parameter: {request.query}"
    for name in (*REFUSED_FIELDS, *(() if counting else ("model",))):
        if name in body:
            return f"{name}: Extra inputs are not permitted"
    asked = [beta for beta in request.header("anthropic-beta").split(",") if beta]
    unknown = [beta for beta in asked if not BETAS.match(beta) or beta == script.text("reject")]
    if unknown:
        values = ", ".join(f"`{beta}`" for beta in unknown)
        return f"Unexpected value(s) {values} for the `anthropic-beta` header. Please consult our documentation."
    if any("output_config" in message for message in body.get("messages", [])):
        return "messages.0.output_config: Extra inputs are not permitted"
    if "display" in (body.get("thinking") or {}):
        return "thinking.display: Extra inputs are not permitted"
    wanted = ("messages",) if counting else ("max_tokens", "messages")
    missing = [name for name in wanted if name not in body]
    return f"{missing[0]}: Field required" if missing else ""


def native_name(model: str) -> str:
    """The name that the model has in its answers: the first party's."""
    return model.replace("@", "-")
