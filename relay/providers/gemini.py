"""Google's Gemini API with an API key."""

from __future__ import annotations

import re
from typing import ClassVar
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from relay.call import Account, Call, Endpoint
from relay.dialects import DIALECTS
from relay.dialects.base import ModelEntry
from relay.dialects.gemini_array import GeminiFramer
from relay.errors import UpstreamError
from relay.providers import google_errors
from relay.providers.base import Framer, Headers, Provider, UpstreamRequest
from relay.providers.headers import BATON_USER_AGENT, first, forwarded

# A base URL that goes on like the vendor's own paths.
VERSION = re.compile(r"/v1(?:alpha|beta)?(?:/models)?/?$")
# System parameters of Google's APIs (cloud.google.com/apis/docs/system-parameters), each also with a `$`: what holds a
# credential or names who pays, what turns the call into another one, and what could hide the counts of its answer.
NEVER_UP = frozenset(
    "key access_token oauth_token bearer_token userproject httpmethod httpheaders fields callback".split()
)
READABLE = frozenset({"json", "sse"})
HEADERS_NEVER_UP = frozenset(
    b"x-goog-fieldmask x-http-method-override x-http-method x-method-override x-goog-user-project".split()
)


class ModelList(msgspec.Struct):
    models: list[msgspec.Raw] = []


class ModelItem(msgspec.Struct, rename="camel"):
    name: str
    display_name: str = ""


class Gemini(Provider):
    kind: ClassVar = "gemini"
    label: ClassVar = "Gemini"
    provider: ClassVar = "google"
    dialects: ClassVar = frozenset({"gemini"})
    default_base_url: ClassVar = "https://generativelanguage.googleapis.com"

    def serves(self, account: Account, endpoint: Endpoint, model: str) -> bool:
        return endpoint.dialect in self.dialects and (not account.model_map or model in account.model_map)

    def upstream_model(self, account: Account, model: str) -> str:
        return (account.model_map.get(model) or model).removeprefix("models/")

    def request(self, call: Call, account: Account, model: str) -> UpstreamRequest:
        version, verb = version_and_verb(call.path)
        query, dropped = readable_query(call.query)
        headers, left_out = readable_headers(call.headers)
        url = f"{self.root(account)}/{version}/models/{quote(model, safe='')}:{verb}" + (f"?{query}" if query else "")
        body = DIALECTS[call.endpoint.dialect].set_model(call.body, model)
        return UpstreamRequest(call.method, url, (*headers, *self.authentication(account)), body, (*dropped, *left_out))

    def root(self, account: Account) -> str:
        return VERSION.sub("", account.base_url or self.default_base_url).rstrip("/")

    def authentication(self, account: Account) -> Headers:
        return ((b"x-goog-api-key", account.credential.get("api_key", "").encode()),)

    def framer(self, call: Call, model: str) -> Framer:
        return GeminiFramer()

    def streams(self, headers: Headers) -> bool:
        """Events, or the elements of a JSON array."""
        return first(headers, b"content-type").lower().startswith((b"text/event-stream", b"application/json"))

    def request_id(self, headers: Headers) -> str:
        return first(headers, b"x-request-id").decode("latin1")

    def classify(self, status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
        return google_errors.classify(status, headers, body, now=now)

    def models_request(self, account: Account) -> UpstreamRequest | None:
        headers = ((b"accept-encoding", b"identity"), BATON_USER_AGENT, *self.authentication(account))
        return UpstreamRequest("GET", f"{self.root(account)}/v1beta/models?pageSize=1000", headers, b"")

    def read_models(self, body: bytes) -> tuple[ModelEntry, ...]:
        try:
            items = msgspec.json.decode(body, type=ModelList).models
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ()
        return tuple(entry for raw in items if (entry := model_entry(bytes(raw))) is not None)


def version_and_verb(path: str) -> tuple[str, str]:
    """`v1beta` and `generateContent` of a client's path."""
    return path.partition("/")[0], path.rpartition(":")[2]


def readable_query(query: str) -> tuple[str, tuple[str, ...]]:
    """The query as it goes upstream, and the parameters that were left out."""
    if not query or query == "alt=sse":
        return query, ()
    kept, dropped = [], []
    for name, value in parse_qsl(query, keep_blank_values=True):
        bare = name.lstrip("$").lower()
        if bare in NEVER_UP or (bare == "alt" and value not in READABLE):
            dropped.append(name[:40])
        else:
            kept.append((name, value))
    return (urlencode(kept) if dropped else query), tuple(dict.fromkeys(dropped))


def readable_headers(headers: Headers) -> tuple[Headers, tuple[str, ...]]:
    """The headers as they go upstream, without those that would hide what the answer used; and what was left out."""
    kept, dropped = [], []
    for name, value in forwarded(headers):
        if name in HEADERS_NEVER_UP or (name == b"accept" and b"proto" in value):
            dropped.append(name.decode("latin1"))
        else:
            kept.append((name, value))
    return tuple(kept), tuple(dropped)


def model_entry(raw: bytes) -> ModelEntry | None:
    try:
        item = msgspec.json.decode(raw, type=ModelItem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    name = item.name.rpartition("/")[2]
    return ModelEntry(name, item.display_name or name, raw=raw)
