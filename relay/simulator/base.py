"""What a simulated dialect has to say, and what it says it with."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from relay.simulator.http import Headers, Request
from relay.simulator.script import Script

CONTENT, TERMINAL = "content", "terminal"


@dataclass(frozen=True, slots=True)
class Event:
    """One framed event; `kind` is CONTENT for a delta that counts as a chunk, TERMINAL for what ends a stream well."""

    data: bytes
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer (`body`) or a stream (`events`)."""

    status: int = 200
    headers: Headers = ()
    body: bytes = b""
    events: Sequence[Event] | None = None
    content_type: str = "application/json"
    sse: bool = True  # whether `frame` may change the line ends of the events


@dataclass(slots=True)
class Memory:
    """What a vendor remembers between calls; bounded."""

    prefixes: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    stored: OrderedDict[str, Any] = field(default_factory=OrderedDict)
    serial: int = 0

    def remember(self, prefix: bytes) -> bool:
        """Return whether a prompt prefix was known, and know it from now on."""
        known = prefix in self.prefixes
        self.prefixes[prefix] = None
        self.prefixes.move_to_end(prefix)
        while len(self.prefixes) > 10_000:
            self.prefixes.popitem(last=False)
        return known

    def next_id(self, prefix: str) -> str:
        """Return an id that no other answer of this process has."""
        self.serial += 1
        return f"{prefix}{hashlib.sha256(b'%d' % self.serial).hexdigest()[:24]}"


class Dialect(ABC):
    """One vendor's API. Stateless but for the `Memory` that is handed in."""

    name: ClassVar[str]
    ping: ClassVar[bytes] = b""

    @abstractmethod
    def serves(self, request: Request) -> bool: ...

    @abstractmethod
    def model(self, request: Request) -> str:
        """The model as the request names it, script included; "" where the path has none."""

    @abstractmethod
    def answer(self, request: Request, model: str, script: Script, memory: Memory) -> Reply:
        """What a healthy vendor answers, its own refusals included; raises ValueError for a body that is no object."""

    @abstractmethod
    def error(self, name: str, *, script: Script, model: str = "", message: str = "") -> Reply:
        """The vendor's native error answer; `name` is a status or one of the dialect's names, else ScriptError."""

    @abstractmethod
    def error_event(self, name: str, script: Script) -> bytes:
        """The vendor's error inside a stream, framed."""


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value)


def tokens(size: int) -> int:
    """Return the tokens of so many bytes: four bytes each, rounded up, as docs/simulator.md promises."""
    return -(-size // 4)


def credential_of(request: Request) -> str:
    """Return the caller's credential from any header or parameter that a vendor takes it from."""
    authorization = request.header("authorization")
    scheme, _, rest = authorization.partition(" ")
    if scheme == "AWS4-HMAC-SHA256":
        return rest.partition("Credential=")[2].partition("/")[0]
    bearer = rest.strip() if scheme.lower() == "bearer" else ""
    named = (request.header(name) for name in ("x-api-key", "x-goog-api-key", "api-key"))
    query = next((part[4:] for part in request.query.split("&") if part.startswith("key=")), "")
    return next((value for value in named if value), "") or bearer or query
