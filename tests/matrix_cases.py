"""The rows and columns of the matrix: how each kind of account is reached, and what each fault means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from relay.providers import PROVIDERS


@dataclass(frozen=True, slots=True)
class Told:
    """What a client is told by an account that stands alone, and what the failure means for the account."""

    status: int  # of the answer to the client
    seen: int | None  # of the upstream's answer, None = it gave none
    rests: str = ""  # the cause of the account's rest where another one can take the call
    rests_alone: str = ""  # the same where none can
    fails_over: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """A script of the simulator, and what comes of it for a whole answer and for a stream."""

    script: str
    plain: Told
    stream: Told

    def told(self, *, stream: bool) -> Told:
        return self.stream if stream else self.plain


def fault(script: str, told: Told) -> Fault:
    return Fault(script, told, told)


# A stream that has begun can't fail over any more: its client sees 200 and the dialect's error event.
BEGUN = Told(200, 200)
CREDENTIAL = Told(502, 401, rests="credential", rests_alone="credential", fails_over=True)
SCRIPT = "~script"  # where the fault's script stands in a credential
SERVICE_ACCOUNT = "(service account of the simulator)"  # its JSON is another one in every process
PIECES = "chunks=9~size=40~delay=0.01"
FAULTS: Mapping[str, Fault] = {
    "ok": fault("", Told(200, 200)),
    "400": fault("error=400", Told(400, 400)),
    "401": fault("error=401", CREDENTIAL),
    "403": fault("error=403", replace(CREDENTIAL, seen=403)),
    "404": fault("error=404", Told(404, 404)),
    "429": fault("error=429~retry_after=40", Told(429, 429, rests="429", rests_alone="429", fails_over=True)),
    "500": fault("error=500", Told(502, 500, fails_over=True)),
    "503": fault("error=503~retry_after=40", Told(503, 503, rests="503", fails_over=True)),
    "529": fault("error=529~retry_after=40", Told(529, 529, rests="529", fails_over=True)),
    "reset before the first byte": fault("reset=before", Told(502, None, fails_over=True)),
    "reset in the middle": Fault(f"{PIECES}~reset=3", Told(502, 200, fails_over=True), BEGUN),
    "silent before the first byte": fault("hang=before", Told(504, None, fails_over=True)),
    "silent in the middle": Fault(f"{PIECES}~hang=3", Told(504, 200, fails_over=True), BEGUN),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of account at one endpoint."""

    kind: str
    dialect: str
    path: str
    body: Mapping[str, Any]
    stream_path: str = ""  # where it is the path that asks for a stream
    headers: Mapping[str, str] = field(default_factory=dict)
    key_header: str = "authorization"
    credential: Mapping[str, str] = field(default_factory=lambda: {"api_key": f"upstream-sim{SCRIPT}"})
    account: Mapping[str, Any] = field(default_factory=dict)  # further columns
    differs: Mapping[str, Told] = field(default_factory=dict)  # where this vendor means something else by a fault

    def told(self, name: str, *, stream: bool) -> Told:
        return self.differs.get(name) or FAULTS[name].told(stream=stream)


ANTHROPIC = {"anthropic-version": "2023-06-01"}
HELLO = [{"role": "user", "content": "Say hello."}]
CLAUDE = {"model": "claude-sonnet-5-5", "max_tokens": 1000, "messages": HELLO}
CHAT = {"model": "gpt-4o", "messages": HELLO}
# A router's errors are its own: they pass verbatim and go to no other account, except 401 and 403.
VERBATIM = {
    "429": Told(429, 429, rests="429", rests_alone="429"),
    "500": Told(500, 500),
    "503": Told(503, 503, rests="503"),
    "529": Told(529, 529, rests="529"),
}
# AWS has no 401 and no 529, and its 404 is about the model.
OF_AWS = {
    "401": replace(CREDENTIAL, seen=403),
    "404": Told(404, 404, rests="model", fails_over=True),
    "529": Told(503, 503, rests="503", fails_over=True),
}
# How a kind of account is asked that has no row of its own: once in each of its dialects, at a priced model.
USUAL: Mapping[str, Row] = {
    row.dialect: row
    for row in (
        Row("", "anthropic", "/v1/messages", CLAUDE, headers=ANTHROPIC, account={"provider": "anthropic"}),
        Row("", "openai_chat", "/v1/chat/completions", CHAT, account={"provider": "openai"}),
        Row(
            "",
            "openai_responses",
            "/v1/responses",
            {"model": "gpt-4o", "input": "Say hello."},
            account={"provider": "openai"},
        ),
        Row(
            "",
            "gemini",
            "/v1beta/models/gemini-2.5-flash:generateContent",
            {"contents": [{"role": "user", "parts": [{"text": "Say hello."}]}]},
            stream_path="/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
            key_header="x-goog-api-key",
            account={"provider": "google"},
        ),
    )
}
OWN: tuple[Row, ...] = (
    Row(
        "ccr",
        "anthropic",
        "/claude/v1/messages",
        {**CLAUDE, "model": "ccr,claude-sonnet-5-5"},
        headers=ANTHROPIC,
        differs=VERBATIM,
    ),
    Row(
        "bedrock",
        "anthropic",
        "/api/v1/messages",
        CLAUDE,
        headers=ANTHROPIC,
        account={"settings": {"region": "us-east-1"}},
        differs=OF_AWS,
    ),
    Row(
        "azure_openai",
        "openai_chat",
        "/azure/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        CHAT,
        key_header="api-key",
        account={"settings": {"api_version": "2024-10-21", "deployment_map": {"gpt-4o": "prod"}}},
    ),
)

# A service account signs in first; what it may call is told by the dialect.
OWN += tuple(
    replace(
        USUAL[dialect],
        kind="vertex",
        credential={"service_account": SERVICE_ACCOUNT},
        account={"settings": {"location": "us-east5", "project": "sim-project"}},
    )
    for dialect in ("anthropic", "gemini")
)


def rows() -> tuple[Row, ...]:
    """Every registered kind of account: its own rows, else the usual ones of its dialects."""
    own = {row.kind for row in OWN}
    usual = (
        replace(USUAL[dialect], kind=kind)
        for kind, provider in PROVIDERS.items()
        if kind not in own
        for dialect in sorted(provider.dialects)
    )
    return (*usual, *OWN)
