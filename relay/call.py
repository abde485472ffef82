"""The frozen values that the steps of a call hand to each other.

No Django and no I/O in here. Times are Unix seconds, durations seconds, money integer nano-dollars (1e-9 USD).
What each call makes is a `msgspec.Struct`: made in a fifth of a frozen dataclass's time.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

# --- Who calls, whom we call: snapshots of rows, shared by every call, never changed ----------------


@dataclass(frozen=True, slots=True)
class LimitRule:
    """One row of `apikeys.Limit`.

    `amount` counts requests, tokens, nano-dollars (`cost`) or calls in flight (`concurrency`, where `per` is "").
    """

    id: int
    scope: str  # "key", "team" or "account"
    owner_id: int
    metric: str  # "requests", "tokens", "cost" or "concurrency"
    amount: int
    per: str = ""  # "minute", "hour", "5h", "day", "week", "month" or "total"
    models: str = ""  # fnmatch pattern on the requested model; "" = all
    time_zone: str = "UTC"
    strict: bool = False


class RateLimit(msgspec.Struct, frozen=True):
    """Where a key stands with one limit, as rate-limit headers tell it; `resets_at` in Unix seconds."""

    metric: str  # "requests" or "tokens"
    amount: int
    remaining: int
    resets_at: float


class BindingRule(msgspec.Struct, frozen=True):
    """A key bound to one account or one group uses nothing else, unless `fallback` lets it return to the pool."""

    account_id: int | None = None
    group_id: int | None = None
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """What the relay needs to know of an API key; the secret itself is nowhere, only its digest (SHA-256)."""

    id: int
    name: str
    public_id: str
    digest: bytes
    team_id: int | None = None
    team: str = ""
    active: bool = True
    expires_at: float | None = None
    families: frozenset[str] = frozenset()  # empty = all
    models: tuple[str, ...] = ()  # fnmatch patterns; empty = all
    bindings: tuple[BindingRule, ...] = ()
    limits: tuple[LimitRule, ...] = ()  # the key's own and its team's
    tags: Mapping[str, str] = field(default_factory=dict)
    ip_allow: tuple[str, ...] = ()  # CIDR; empty = any


@dataclass(frozen=True, slots=True)
class TokenState:
    """How it stands with an access token that runs out; the token itself is in the credential. Times: Unix seconds."""

    origin: str = ""  # check sum of what it was got for: another credential makes it void
    version: int = 0  # 0 = none was got yet
    issued: float = 0.0
    due: float = 0.0  # from then on the next one is got ahead of time
    expires: float | None = None  # None = not known


@dataclass(frozen=True, slots=True)
class Account:
    """What the relay needs to know of an upstream account. `credential` is decrypted: keep it out of every repr."""

    id: int
    name: str
    kind: str
    base_url: str
    provider: str  # owns the price
    credential: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)  # region, location, project, api_version ...
    priority: int = 50
    weight: int = 1
    slots: int = 0  # concurrent calls; 0 = unlimited
    proxy: str = field(default="", repr=False)  # may carry a password
    model_map: Mapping[str, str] = field(default_factory=dict)
    groups: frozenset[int] = frozenset()
    active: bool = True
    expires_at: float | None = None
    on_disconnect: str = "abort"  # or "drain"
    cooldowns: Mapping[str, float] = field(default_factory=dict)  # seconds, by the names of accounts.health.RESTS
    limits: tuple[LimitRule, ...] = ()
    fault: str = ""  # why this row can't be used, such as a credential that can't be decrypted; "" = it can
    token: TokenState = TokenState()  # of kinds whose access token is got anew


# --- One call ---------------------------------------------------------------------------------------


class Endpoint(msgspec.Struct, frozen=True):
    """What a client called: `name` stands in the records; an unmetered endpoint costs nothing and ignores budgets."""

    name: str
    dialect: str
    metered: bool = True


class Envelope(msgspec.Struct, frozen=True):
    """What Baton reads of a request body; everything else passes unread."""

    model: str
    stream: bool = False
    max_output_tokens: int | None = None  # of each answer
    answers: int = 1  # that the body asks for; each may use the maximum
    # Texts that name the conversation, best first, already hashed by the dialect: see accounts.selection.
    affinity: str = ""
    session: str = ""
    end_user: str = ""
    # True where all content is inline text, so that body bytes bound the input tokens.
    inline_text: bool = True
    previous_response_id: str = ""
    stored: bool = False  # the vendor keeps the answer under its id: later calls may name it
    # The conversation holds what only its account can read (encrypted reasoning): affinity is a must, not a wish.
    tied: bool = False
    # Counts that make a strict budget's worst case impossible to bound, named as body fields.
    unbounded: tuple[str, ...] = ()
    # A top-level field stands twice in the body: what was read here may not be what the upstream obeys, so the call
    # goes on with `Dialect.canonical(body)`.
    repeats: bool = False
    # Input tokens that the vendor adds unseen, such as the definitions of its own tools.
    hidden_input_tokens: int = 0
    # Price tiers and meters that can't apply to this body, such as "fast" where it was not asked for.
    ruled_out: tuple[str, ...] = ()


@dataclass(slots=True)
class Call:
    """One client request that a known key made. Steps read it; `forget_body` is the only change to one."""

    id: str
    created_at: float
    key: Key
    endpoint: Endpoint
    envelope: Envelope
    method: str
    path: str
    query: str  # without the client's `key`
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    body: bytes = field(repr=False)
    client_ip: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    origin: str = "client"  # or "operator"
    account_id: int | None = None  # an operator's test goes to this account and nowhere else
    body_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.body_bytes = len(self.body)

    def forget_body(self) -> None:
        """Let go of a body that nobody needs again: an answer has begun, and a stream may stay open for an hour."""
        self.body = b""


class Demand(msgspec.Struct, frozen=True):
    """What a call may use: the estimate that plain limits reserve and the worst case that strict ones reserve.

    `unbounded` names what makes the worst case impossible to bound or price (a body field, or the model), "" = nothing.
    """

    tokens: int
    cost: int
    worst_tokens: int
    worst_cost: int
    unbounded: str = ""


# --- What it used -----------------------------------------------------------------------------------


class UsageSource(StrEnum):
    PROVIDER = "provider"
    PARTIAL = "partial"
    ESTIMATED = "estimated"
    NONE = "none"


class CallStatus(StrEnum):
    OK = "ok"
    CLIENT_DISCONNECTED = "client_disconnected"
    UPSTREAM_ERROR = "upstream_error"
    INTERRUPTED = "interrupted"  # Baton itself died or gave up
    REFUSED = "refused"


class Quantity(msgspec.Struct, frozen=True):
    """Something billed beside the plain counts: `quantity` units of `meter`, of `model` ("" = the call's own)."""

    meter: str
    quantity: int
    model: str = ""
    run: int = 0  # quantities of one further model run share a number: its price depends on its own whole input
    # A part of this plain count of the same run, priced apart where its meter has a rate; else it stays a part of it.
    within: str = ""


class Usage(msgspec.Struct, frozen=True):
    """Disjoint token counts. None = the provider did not report it; 0 = it reported zero.

    `input_tokens` were neither read from nor written to a cache; `reasoning_tokens` are a part of `output_tokens`.
    """

    input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_5m_input_tokens: int | None = None
    cache_creation_1h_input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    extra: tuple[Quantity, ...] = ()
    # The longest prompt of one model run, where the counts add up several; None = they are of one run.
    longest_prompt: int | None = None
    service_tier: str = ""
    speed: str = ""
    geo: str = ""
    # What does not add up, e.g. "cached_exceeds_input"; shown on the record.
    flags: tuple[str, ...] = ()
    raw: bytes = b""  # the provider's usage object as it came, JSON


class Outcome(msgspec.Struct, frozen=True):
    """What the meter knows when the answer ends."""

    usage: Usage
    source: UsageSource
    response_model: str = ""
    response_id: str = ""
    time_to_first_token: float | None = None
    terminal: bool = False  # the dialect's terminal event was seen
    error: str = ""  # type of an error event inside the stream


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One priced line of a record; `rate` is nano-dollars per million units, None = no price known."""

    meter: str
    quantity: int
    model: str
    tier: str = ""
    speed: str = ""
    geo: str = ""
    rate: int | None = None
    cost: int = 0
    price: int | None = None  # the `relay.Price` row that the rate is from
    run: int = 0  # as in `Quantity`
    within: str = ""  # as in `Quantity`


# The counts that are columns of a record.
PLAIN_METERS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
    "output_tokens",
)


def extra_tokens(lines: Sequence[Line]) -> int:
    """What a record's lines hold in tokens beside its plain counts: cache writes of other lifetimes, audio and images,
    and all of further model runs (compaction, advisor). What lies `within` a plain count is in there already."""
    return sum(
        line.quantity
        for line in lines
        if line.meter.endswith("_tokens") and not line.within and (line.run or line.meter not in PLAIN_METERS)
    )


class Attempt(msgspec.Struct, frozen=True):
    """One try on one account."""

    account: str
    status: int | None
    error: str
    duration_ms: int


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One usage record, field by field the columns of `relay.UsageRecord`. The journal carries it as JSON.

    An `open` journal entry is the record as it would be if the process died now.
    """

    id: str  # UUIDv7, hyphenated
    created_at: float
    key_id: int | None = None
    key_name: str = ""
    team_id: int | None = None
    team_name: str = ""
    account_id: int | None = None
    account_name: str = ""
    provider: str = ""
    dialect: str = ""
    endpoint: str = ""
    requested_model: str = ""
    upstream_model: str = ""
    response_model: str = ""
    stream: bool = False
    status: str = CallStatus.INTERRUPTED.value
    http_status: int | None = None
    error: str = ""  # short reason, never the body of anything
    usage_source: str = UsageSource.NONE.value
    input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_5m_input_tokens: int | None = None
    cache_creation_1h_input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_nanos: int = 0
    held_nanos: int = 0
    unpriced: bool = False
    price_version: str = ""
    lines: list[Line] = []
    duration_ms: int | None = None
    time_to_first_token_ms: int | None = None
    attempts: list[Attempt] = []
    candidates: list[dict[str, Any]] = []  # why it went there: [{"account", "taken", "reason"}]
    flags: list[str] = []
    provider_usage: str = ""  # JSON text as it came
    origin: str = "client"
    upstream_request_id: str = ""
    response_id: str = ""
    session: str = ""
    end_user: str = ""
    user_agent: str = ""
    tags: dict[str, str] = {}
    service_tier: str = ""


# Ids must differ, not be secret; asking the system for each takes longer than all the rest of one.
_generator = random.Random()  # noqa: S311
_random = _generator.getrandbits
os.register_at_fork(after_in_child=_generator.seed)


def new_call_id(now: float | None = None) -> str:
    """Return a UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits; sorts by time."""
    milliseconds = int((time.time() if now is None else now) * 1000)
    value = (milliseconds << 80) | (0x7 << 76) | (_random(12) << 64) | (0b10 << 62) | _random(62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
