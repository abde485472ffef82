"""What a provider has to say: one vendor's API as an upstream. No Django, no I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

from msgspec import Struct

from relay.call import Account, Call, Endpoint
from relay.dialects.base import ModelEntry
from relay.errors import UpstreamError

Headers = tuple[tuple[bytes, bytes], ...]


class UpstreamRequest(Struct, frozen=True):
    method: str
    url: str
    headers: Headers
    content: bytes
    # What the upstream's format made us leave out, for the record and `x-relay-dropped`.
    dropped: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<UpstreamRequest {self.method} {self.url}>"  # no credential, no prompt


class Framer(Protocol):
    """Upstream bytes -> blocks of whole events as the client's dialect frames them. Sans-I/O, one for each answer."""

    def feed(self, chunk: bytes) -> bytes:
        """Return the whole events that are complete now, possibly none; raises `UpstreamError` for a fault frame."""

    def flush(self) -> bytes:
        """At the upstream's end: what is left over, as it came."""


class Provider(ABC):
    kind: ClassVar[str]
    label: ClassVar[str]
    provider: ClassVar[str]  # price owner; an account may name another
    dialects: ClassVar[frozenset[str]]
    default_base_url: ClassVar[str] = ""
    credential_fields: ClassVar[tuple[str, ...]] = ("api_key",)
    setting_fields: ClassVar[tuple[str, ...]] = ()
    reframes: ClassVar[bool] = False  # its streams reach the client in another framing than the upstream's
    # Not empty: accounts of this kind are reached by a binding, or by this in front of the model, never from the pool.
    address_prefix: ClassVar[str] = ""

    @abstractmethod
    def serves(self, account: Account, endpoint: Endpoint, model: str) -> bool:
        """Whether this account can ever serve this model at this endpoint."""

    @abstractmethod
    def upstream_model(self, account: Account, model: str) -> str: ...

    @abstractmethod
    def request(self, call: Call, account: Account, model: str) -> UpstreamRequest:
        """The upstream request; idempotent, because failover builds it anew for each account."""

    @abstractmethod
    def framer(self, call: Call, model: str) -> Framer: ...

    @abstractmethod
    def classify(self, status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
        """Whose fault an answer that is no success is, and what rests (`rest`, a name of accounts.health.RESTS)."""

    def streams(self, headers: Headers) -> bool:
        """Whether a successful answer is a stream of events (else it is one whole body)."""
        types = (value.lower() for name, value in headers if name == b"content-type")
        return any(value.startswith(b"text/event-stream") for value in types)

    def whole(self, call: Call, body: bytes) -> bytes:
        """A whole answer as the client's dialect has it; the same bytes where the vendor speaks that dialect."""
        return body

    def native_error(self, call: Call, error: UpstreamError) -> bytes:
        """The body of an error answer as the client's dialect has it; the same bytes where the vendor speaks that."""
        return error.body

    def place(self, call: Call, account: Account) -> str:
        """Where the answer is made, where that sets the price and the answer itself does not tell; "" = no matter."""
        return ""

    def renews(self, account: Account) -> bool:
        """Whether its calls need an access token that runs out, and is got anew by `token_request`."""
        return False

    def token_request(self, account: Account, *, now: float) -> UpstreamRequest:
        """The request that gets the next access token (RFC 6749); asked for only where `renews` says so."""
        raise LookupError(f"{self.kind} gets no access tokens")

    def request_id(self, headers: Headers) -> str:
        """The vendor's own id of the request, for support and for joining the bill."""
        return next((value.decode("latin1") for name, value in headers if name == b"request-id"), "")

    def hidden(self, call: Call, account: Account) -> Callable[[bytes], bytes] | None:
        """What to do with each block of a stream after the meter has seen it and before the client does, where
        `request` asked for events that the client did not: returns the block without them. None = nothing to hide."""
        return None

    def without_additions(self, call: Call, account: Account, error: UpstreamError) -> UpstreamRequest | None:
        """Once more to the same account, where it rejected something that `request` had added on its own; None = the
        error stands. Asked once for each attempt."""
        return None

    def probe_dialect(self, account: Account) -> str:
        """The dialect that "test connection" speaks to this account."""
        return min(self.dialects)

    def named_models(self, account: Account) -> tuple[str, ...]:
        """The models that the account's own fields name, as clients ask for them; none = ask the upstream."""
        return tuple(account.model_map)

    def models_request(self, account: Account) -> UpstreamRequest | None:
        """The request for the account's own list of models; None where the vendor has no such list."""
        return None

    def read_models(self, body: bytes) -> tuple[ModelEntry, ...]:
        """The upstream's list; what can't be read is left out."""
        return ()

    def check(self, account: Account) -> list[str]:
        """What is wrong with the account's fields, in words for the person who saves it; empty = nothing."""
        missing = [] if any(account.credential.get(name) for name in self.credential_fields) else ["credential"]
        return [f"{name} is missing" for name in missing]
