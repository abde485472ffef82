"""Google Cloud's Vertex AI: Gemini models and Claude, with the access tokens of a service account."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from google.auth import crypt, jwt
from msgspec.structs import replace

from relay.call import Account, Call, Endpoint
from relay.dialects.gemini_array import GeminiFramer
from relay.errors import UpstreamError
from relay.providers import google_errors, vertex_claude, vertex_gemini
from relay.providers.base import Framer, Headers, Provider, UpstreamRequest
from relay.providers.headers import BATON_USER_AGENT, first
from relay.sse import SseFramer

LOCATION = re.compile(r"global|us|eu|[a-z]+-[a-z]+\d{1,2}")
PROJECT = re.compile(r"[a-z0-9][a-z0-9.:-]{0,61}[a-z0-9]")
# A base URL that goes on like the vendor's own paths.
VERSION = re.compile(r"/v1(?:beta1)?/?$")
# Locations that are more than a region (google-genai 3.4.0, anthropic 2.12.0).
EVERYWHERE = "global"
WIDE_HOSTS = {
    EVERYWHERE: "aiplatform.googleapis.com",
    "us": "aiplatform.us.rep.googleapis.com",
    "eu": "aiplatform.eu.rep.googleapis.com",
}
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"  # RFC 7523
ASSERTION_SECONDS = 3600
GOOGLES = ".googleapis.com"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class ServiceAccount(msgspec.Struct):
    """The JSON that Google's console hands out for a key of a service account."""

    type: str = ""
    project_id: str = ""
    private_key_id: str = ""
    private_key: str = ""
    client_email: str = ""
    token_uri: str = TOKEN_URI

    def __repr__(self) -> str:
        return f"ServiceAccount({self.client_email!r})"


@dataclass(frozen=True, slots=True)
class Publisher:
    """Whose models are called in one dialect, and how."""

    has: Callable[[Endpoint, str], bool]
    request: Callable[[Call, str, str], UpstreamRequest]
    version: Callable[[Call], str]
    framer: Callable[[], Framer]
    native_error: Callable[[int, bytes], bytes] = lambda status, body: body
    place: str = ""  # what sets its prices outside the global location


def is_claude(model: str) -> bool:
    return "claude" in model


def google_has(endpoint: Endpoint, model: str) -> bool:
    return not is_claude(model) and ("embed" not in endpoint.name or vertex_gemini.embeds(model))


PUBLISHERS: Mapping[str, Publisher] = {
    "anthropic": Publisher(
        has=lambda endpoint, model: is_claude(model),
        request=vertex_claude.request,
        version=lambda call: vertex_claude.API,
        framer=SseFramer,
        native_error=vertex_claude.native_error,
        place=vertex_claude.REGIONAL,
    ),
    "gemini": Publisher(
        has=google_has,
        request=lambda call, parent, model: vertex_gemini.request(call, parent, quote(model, safe="@")),
        version=vertex_gemini.version_of,
        framer=GeminiFramer,
    ),
}


class Vertex(Provider):
    kind: ClassVar = "vertex"
    label: ClassVar = "Google Vertex AI"
    provider: ClassVar = "google"
    dialects: ClassVar = frozenset(PUBLISHERS)
    credential_fields: ClassVar = ("service_account",)
    setting_fields: ClassVar = ("location", "project")

    def serves(self, account: Account, endpoint: Endpoint, model: str) -> bool:
        if endpoint.dialect not in PUBLISHERS or (account.model_map and model not in account.model_map):
            return False
        return PUBLISHERS[endpoint.dialect].has(endpoint, self.upstream_model(account, model))

    def upstream_model(self, account: Account, model: str) -> str:
        """The map's name, else Vertex's own for what the client calls it."""
        return vertex_claude.vertex_id((account.model_map.get(model) or model).removeprefix("models/"))

    def request(self, call: Call, account: Account, model: str) -> UpstreamRequest:
        return self.signed(account, PUBLISHERS[call.endpoint.dialect].request(call, self.parent(call, account), model))

    def without_additions(self, call: Call, account: Account, error: UpstreamError) -> UpstreamRequest | None:
        """Once more without the betas that Vertex has just said it does not know, whatever the table says of them."""
        refused = vertex_claude.unexpected_betas(error)
        if not refused:
            return None
        model = self.upstream_model(account, call.envelope.model)
        made = vertex_claude.request(call, self.parent(call, account), model, refused=refused)
        return self.signed(account, made)

    def parent(self, call: Call, account: Account) -> str:
        """The address of the account's project in its location, in the call's version of the API."""
        location = location_of(account)
        host = WIDE_HOSTS.get(location) or f"{location}-aiplatform.googleapis.com"
        root = VERSION.sub("", account.base_url or f"https://{host}").rstrip("/")
        version = PUBLISHERS[call.endpoint.dialect].version(call)
        return f"{root}/{version}/projects/{quote(project_of(account), safe=':')}/locations/{location}"

    def signed(self, account: Account, request: UpstreamRequest) -> UpstreamRequest:
        token = account.credential.get("access_token", "")
        headers = (*request.headers, (b"authorization", b"Bearer " + token.encode()))
        return replace(request, headers=headers)

    def framer(self, call: Call, model: str) -> Framer:
        return PUBLISHERS[call.endpoint.dialect].framer()

    def streams(self, headers: Headers) -> bool:
        """Events, or the elements of a JSON array."""
        return first(headers, b"content-type").lower().startswith((b"text/event-stream", b"application/json"))

    def request_id(self, headers: Headers) -> str:
        return (first(headers, b"request-id") or first(headers, b"x-request-id")).decode("latin1")

    def classify(self, status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
        """By whoever of the two said it: Google, or Anthropic's side behind it."""
        if vertex_claude.error_body(body) is None:
            return google_errors.classify(status, headers, body, now=now)
        return vertex_claude.classify(status, headers, body, now=now)

    def native_error(self, call: Call, error: UpstreamError) -> bytes:
        """Google's errors reach Claude's clients as Anthropic would word them."""
        return PUBLISHERS[call.endpoint.dialect].native_error(error.upstream_status or error.status, error.body)

    def place(self, call: Call, account: Account) -> str:
        return "" if location_of(account) == EVERYWHERE else PUBLISHERS[call.endpoint.dialect].place

    # -- access tokens -------------------------------------------------------------------------------

    def renews(self, account: Account) -> bool:
        return bool(account.credential.get("service_account"))

    def token_request(self, account: Account, *, now: float) -> UpstreamRequest:
        """The JWT bearer grant (RFC 7523), signed by google-auth with the service account's key."""
        known = service_account(account)
        claims = {
            "iss": known.client_email,
            "scope": SCOPE,
            "aud": audience(known.token_uri),
            "iat": int(now),
            "exp": int(now) + ASSERTION_SECONDS,
        }
        assertion: bytes = jwt.encode(signer(known), claims)  # type: ignore[no-untyped-call]
        headers = (
            (b"content-type", b"application/x-www-form-urlencoded"),
            (b"accept-encoding", b"identity"),
            BATON_USER_AGENT,
        )
        grant = urlencode({"grant_type": JWT_BEARER, "assertion": assertion.decode()}).encode()
        return UpstreamRequest("POST", known.token_uri, headers, grant)

    # -- what people see -----------------------------------------------------------------------------

    def probe_dialect(self, account: Account) -> str:
        """That of the map's first model; Gemini's without a map."""
        claude = is_claude(next(iter(account.model_map.values()), ""))
        return next(name for name, publisher in PUBLISHERS.items() if (publisher.framer is SseFramer) == claude)

    def check(self, account: Account) -> list[str]:
        location, project = location_of(account), project_of(account)
        wrong = wrong_key(account)
        if not LOCATION.fullmatch(location):
            wrong.append(f"location: {location!r} is no location of Vertex AI; global, us, eu, or a region: us-east5.")
        if not PROJECT.fullmatch(project):
            wrong.append(f"project: {project!r} is no id of a Google Cloud project, such as my-project-123.")
        return wrong


def location_of(account: Account) -> str:
    return str(account.settings.get("location") or "")


def project_of(account: Account) -> str:
    """The project that calls are made in: the account's setting, else the service account's own."""
    return str(account.settings.get("project") or "") or service_account(account).project_id


def service_account(account: Account) -> ServiceAccount:
    """The credential's JSON; an empty one where it can't be read, so that `check` says what is missing."""
    try:
        return msgspec.json.decode(account.credential.get("service_account", ""), type=ServiceAccount)
    except msgspec.DecodeError:
        return ServiceAccount()


def signer(known: ServiceAccount) -> crypt.RSASigner:
    """Raises ValueError for a key that can't be read."""
    info = {"private_key": known.private_key, "private_key_id": known.private_key_id}
    made: crypt.RSASigner = crypt.RSASigner.from_service_account_info(info)  # type: ignore[no-untyped-call]
    return made


def audience(token_uri: str) -> str:
    """Whom the assertion is for. Google's servers take their public name at every address of theirs; any other server
    gets one that it can't use at Google."""
    host = urlsplit(token_uri).hostname or ""
    return TOKEN_URI if host.endswith(GOOGLES) else token_uri


def wrong_key(account: Account) -> list[str]:
    """What is wrong with the JSON, without a word of what is in it but its type."""
    given = account.credential.get("service_account", "")
    if not given:
        return ["service_account is missing: the whole JSON of a service account's key."]
    try:
        known = msgspec.json.decode(given, type=ServiceAccount)
    except msgspec.DecodeError:
        return ["service_account: this is not the JSON of a service account's key."]
    if known.type != "service_account":
        return [f"service_account: its type is {known.type[:40]!r}; only keys of service accounts are taken."]
    wrong = [
        f"service_account: {name} is missing in the JSON."
        for name in ("client_email", "private_key")
        if not getattr(known, name)
    ]
    if not is_safe(known.token_uri):
        wrong.append("service_account: token_uri must be https (http on this machine only), without user or query.")
    if known.private_key and not is_rsa(known):
        wrong.append("service_account: private_key can't be read; is it cut, or are its line breaks lost?")
    return wrong


def is_rsa(known: ServiceAccount) -> bool:
    try:
        signer(known)
    except (ValueError, TypeError):
        return False
    return True


def is_safe(url: str) -> bool:
    """Whether an assertion may go there."""
    try:
        parts = urlsplit(url)
        scheme, host, user, _ = parts.scheme, parts.hostname, parts.username, parts.port
    except ValueError:
        return False
    plain = scheme == "http" and host in LOOPBACK
    return bool(host) and user is None and not (parts.query or parts.fragment) and (scheme == "https" or plain)
