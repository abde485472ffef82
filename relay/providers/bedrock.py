"""Claude on AWS Bedrock: InvokeModel with SigV4 or a bearer API key, event stream frames re-framed as SSE."""

from __future__ import annotations

import base64
import re
from typing import ClassVar
from urllib.parse import quote

import msgspec
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from relay.call import Account, Call, Endpoint
from relay.errors import (
    AccountRejected,
    ModelUnavailable,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
)
from relay.eventstream import CONTENT_TYPE, EventStream, Message
from relay.providers import bedrock_claude
from relay.providers.base import Framer, Headers, Provider, UpstreamRequest
from relay.providers.claude_table import asked_betas
from relay.providers.headers import first, forwarded, retry_after_seconds

REGION = re.compile(r"^[a-z]{2}(?:-[a-z]+)+-\d$")
ARN = re.compile(r"^arn:aws[a-z-]*:bedrock:([a-z0-9-]+):\d{12}:[a-z-]+/[\w.:/-]+$")
MODEL_ID = re.compile(
    r"^(?:(?P<profile>[a-z]{2,6}(?:-gov)?)\.)?anthropic\.(?P<name>claude[\w.-]*?)(?:-v\d+(?::\d+[\w:]*)?)?$"
)
PROFILES = {"us": "us", "us-gov": "us-gov", "eu": "eu", "ap": "apac"}
# Not for the upstream: these are the first party's own.
NOT_UP = frozenset({b"anthropic-beta", b"anthropic-version", b"anthropic-dangerous-direct-browser-access", b"x-app"})
METRICS = "amazon-bedrock-invocationMetrics"

# Exception names of the bedrock-runtime model (botocore 1.44.5), without "Exception": status and Anthropic's type.
EXCEPTIONS = {
    "throttling": (429, "rate_limit_error"),
    "modelnotready": (429, "overloaded_error"),
    "servicequotaexceeded": (400, "rate_limit_error"),
    "validation": (400, "invalid_request_error"),
    "accessdenied": (403, "permission_error"),
    "unrecognizedclient": (403, "authentication_error"),
    "expiredtoken": (403, "authentication_error"),
    "resourcenotfound": (404, "not_found_error"),
    "conflict": (409, "conflict_error"),
    "modeltimeout": (408, "timeout_error"),
    "modelerror": (424, "api_error"),
    "modelstreamerror": (424, "api_error"),
    "internalserver": (500, "api_error"),
    "serviceunavailable": (503, "overloaded_error"),
}
ABOUT_MODEL = re.compile(r"\bmodel\b|inference profile", re.IGNORECASE)
ABOUT_CREDENTIAL = re.compile(r"security token|signature|not authorized to perform|credential|api key", re.IGNORECASE)


class Chunk(msgspec.Struct):
    data: str = msgspec.field(name="bytes", default="")


class EventType(msgspec.Struct):
    type: str = ""


class Counted(msgspec.Struct):
    tokens: int = msgspec.field(name="inputTokens", default=0)


class Fault(msgspec.Struct):
    message: str = ""
    capital: str = msgspec.field(name="Message", default="")
    original: str = msgspec.field(name="originalMessage", default="")
    kind: str = msgspec.field(name="__type", default="")


class Bedrock(Provider):
    kind: ClassVar = "bedrock"
    label: ClassVar = "AWS Bedrock"
    provider: ClassVar = "aws"
    dialects: ClassVar = frozenset({"anthropic"})
    credential_fields: ClassVar = ("access_key_id", "secret_access_key", "session_token", "api_key")
    setting_fields: ClassVar = ("region", "profile")
    reframes: ClassVar = True

    def serves(self, account: Account, endpoint: Endpoint, model: str) -> bool:
        if endpoint.dialect not in self.dialects:
            return False
        return model in account.model_map if account.model_map else "claude" in model

    def upstream_model(self, account: Account, model: str) -> str:
        """The map's id; ids, profiles and ARNs as they are; else the name behind the account's inference profile."""
        mapped = account.model_map.get(model) or model
        if MODEL_ID.match(mapped) or ARN.match(mapped):
            return mapped
        return f"{profile_of(account)}.anthropic.{mapped}"

    def request(self, call: Call, account: Account, model: str) -> UpstreamRequest:
        betas = asked_betas(call.headers)
        version = first(call.headers, b"anthropic-version").decode("latin1")
        body, dropped = bedrock_claude.invoke_body(call.body, model=model, version=version, betas=betas)
        operation = "invoke-with-response-stream" if call.envelope.stream else "invoke"
        if call.path.endswith("count_tokens"):
            # CountTokens knows foundation models only, no profiles (reference/clients.md section 5).
            model, operation = without_profile(model), "count-tokens"
            body = counting(body)
        root = (
            account.base_url or f"https://bedrock-runtime.{account.settings.get('region', '')}.amazonaws.com"
        ).rstrip("/")
        url = f"{root}/model/{quote(model, safe='')}/{operation}"
        headers = [item for item in forwarded(call.headers) if item[0] not in NOT_UP and item[0] != b"content-type"]
        headers.append((b"content-type", b"application/json"))
        return UpstreamRequest("POST", url, signed(account, url, body, headers), body, dropped)

    def framer(self, call: Call, model: str) -> Framer:
        return BedrockFramer(call.envelope.model)

    def whole(self, call: Call, body: bytes) -> bytes:
        """Bedrock's whole answers in Anthropic's shape: counts renamed, the model as the client knows it."""
        try:
            if call.path.endswith("count_tokens"):
                return msgspec.json.encode({"input_tokens": msgspec.json.decode(body, type=Counted).tokens})
            return bedrock_claude.renamed(body, {"model": msgspec.json.encode(call.envelope.model)}, drop=METRICS)
        except msgspec.DecodeError as error:
            raise UpstreamFailed("The upstream's answer could not be read.", reason="protocol", rest="5xx") from error

    def streams(self, headers: Headers) -> bool:
        return first(headers, b"content-type").startswith(CONTENT_TYPE)

    def request_id(self, headers: Headers) -> str:
        return first(headers, b"x-amzn-requestid").decode("latin1")

    def classify(self, status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
        fault = read_fault(body)
        name = first(headers, b"x-amzn-errortype").decode("latin1") or fault.kind
        return fault_of(
            name, status=status, message=message_of(fault, body), wait=retry_after_seconds(headers, now=now)
        )

    def check(self, account: Account) -> list[str]:
        wrong = []
        region = str(account.settings.get("region", ""))
        if not REGION.match(region):
            wrong.append(f"region: {region!r} is no AWS region. Write it like us-east-1.")
        credential = account.credential
        if not credential.get("api_key") and not (
            credential.get("access_key_id") and credential.get("secret_access_key")
        ):
            wrong.append("credential: give access_key_id and secret_access_key, or api_key.")
        for model in account.model_map.values():
            arn = ARN.match(model)
            if arn is not None and arn.group(1) != region:
                wrong.append(f"model_map: {model} is in {arn.group(1)}, not in the account's region {region}.")
            elif arn is None and not MODEL_ID.match(model):
                wrong.append(f"model_map: {model!r} is no Bedrock model id, inference profile or ARN of Claude.")
        return wrong


class BedrockFramer:
    """Event stream frames -> the SSE that the Anthropic SDK can't tell from the original."""

    def __init__(self, model: str) -> None:
        self._stream = EventStream()
        self._model = msgspec.json.encode(model)
        self._failed: UpstreamError | None = None

    def feed(self, chunk: bytes) -> bytes:
        """A fault frame is raised at the next call, so that the events before it still reach the client."""
        if self._failed is not None:
            raise self._failed
        out: list[bytes] = []
        try:
            for message in self._stream.feed(chunk):
                if message.kind != "event":
                    self._failed = frame_fault(message)
                    break
                out.append(self._event(message.payload))
        except UpstreamError as error:
            self._failed = error
        if self._failed is not None and not out:
            raise self._failed
        return b"".join(out)

    def flush(self) -> bytes:
        if self._failed is not None:
            raise self._failed
        if self._stream.left_over():
            raise UpstreamFailed("The upstream's stream ended inside a frame.", reason="cut_stream", rest="5xx")
        return b""

    def _event(self, payload: bytes) -> bytes:
        try:
            data = base64.b64decode(msgspec.json.decode(payload, type=Chunk).data)
            kind = msgspec.json.decode(data, type=EventType).type
            if kind == "message_start":
                data = self._named(data)
            elif kind == "message_stop":
                data = bedrock_claude.renamed(data, {}, drop=METRICS)
        except (msgspec.DecodeError, ValueError):
            return b""  # no event of Anthropic's: Bedrock's own bookkeeping
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n" if kind else b""

    def _named(self, data: bytes) -> bytes:
        """`message_start` with the model that the client asked for."""
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        message = (
            bedrock_claude.renamed(bytes(fields["message"]), {"model": self._model}) if "message" in fields else b""
        )
        return bedrock_claude.renamed(data, {"message": message}) if message else data


def profile_of(account: Account) -> str:
    """The inference profile's prefix: the account's setting, else that of its region's part of the world."""
    region = str(account.settings.get("region", ""))
    world = "us-gov" if region.startswith("us-gov") else region.split("-")[0]
    return str(account.settings.get("profile") or PROFILES.get(world, "global"))


def without_profile(model: str) -> str:
    match = MODEL_ID.match(model)
    return model.partition(".")[2] if match and match["profile"] else model


def counting(body: bytes) -> bytes:
    """A body for CountTokens: InvokeModel's own, which must name `max_tokens`, in base64."""
    if b'"max_tokens"' not in body:
        body = body[:-1] + b',"max_tokens":1}'
    return msgspec.json.encode({"input": {"invokeModel": {"body": base64.b64encode(body).decode()}}})


def signed(account: Account, url: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> Headers:
    """The headers with the credential: a bearer API key, or a SigV4 signature over address and body."""
    credential = account.credential
    if key := credential.get("api_key"):
        return (*headers, (b"authorization", b"Bearer " + key.encode()))
    secret = Credentials(
        credential.get("access_key_id", ""),
        credential.get("secret_access_key", ""),
        credential.get("session_token") or None,
    )
    request = AWSRequest("POST", url, data=body, headers={"content-type": "application/json"})
    SigV4Auth(secret, "bedrock", str(account.settings.get("region", ""))).add_auth(request)
    made = [(name.lower().encode(), str(value).encode()) for name, value in request.headers.items()]
    return (*headers, *(item for item in made if item[0] != b"content-type"))


def read_fault(body: bytes) -> Fault:
    """A fault's JSON: an object, the same inside a `bytes` wrapper, or a JSON string; empty where it is none."""
    try:
        value = msgspec.json.decode(body)
        if isinstance(value, dict) and isinstance(value.get("bytes"), str):
            value = msgspec.json.decode(base64.b64decode(value["bytes"]))
        if isinstance(value, str):
            return Fault(message=value)
        return msgspec.convert(value, Fault, strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError):
        return Fault()


def message_of(fault: Fault, body: bytes) -> str:
    said = fault.original or fault.message or fault.capital
    return said or body[:500].decode("utf-8", "replace")


def frame_fault(message: Message) -> UpstreamError:
    """An exception or error frame as an error; botocore itself would call each of them 400."""
    fault = read_fault(message.payload)
    said = message.text or message_of(fault, message.payload)
    return fault_of(message.name, status=500, message=said, wait=None)


def fault_of(name: str, *, status: int, message: str, wait: float | None) -> UpstreamError:
    """Whose fault an AWS exception is; `status` where its name says nothing. The body is in Anthropic's shape."""
    bare = name.split(":")[0].split("#")[-1].removesuffix("Exception").lower()
    status, kind = EXCEPTIONS.get(bare, (status, "api_error" if status >= 500 else "invalid_request_error"))
    body = msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
    headers: Headers = ((b"content-type", b"application/json"),)
    reason = f"{bare or status}"
    if bare == "servicequotaexceeded" or status == 401 or (status == 403 and not about_model(message)):
        return AccountRejected(
            "The upstream account can't be used.",
            status=status,
            headers=headers,
            body=body,
            reason=reason,
            rest="credential",
        )
    if status in {403, 404}:
        return ModelUnavailable(
            "The upstream account lacks the model.",
            status=status,
            headers=headers,
            body=body,
            reason=reason,
            rest="model",
        )
    if status in {429, 503}:
        return UpstreamOverloaded(
            "The upstream is busy.",
            status=status,
            headers=headers,
            body=body,
            retry_after=wait,
            reason=reason,
            rest=str(status),
        )
    if status == 408:
        return UpstreamTimeout("The model took too long.", status=status, body=body, reason=reason, rest="timeout")
    if status == 424 or status >= 500:
        return UpstreamFailed("The upstream failed.", status=status, body=body, reason=reason, rest="5xx")
    return UpstreamRejected(
        "The upstream rejected the request.", status=status, headers=headers, body=body, reason=reason
    )


def about_model(message: str) -> bool:
    """Whether a 403 means that this model is not enabled for the account, not that the credential is bad."""
    return bool(ABOUT_MODEL.search(message)) and not ABOUT_CREDENTIAL.search(message)
