"""What a dialect has to say: one wire format that clients speak. No Django, no I/O, no vendor's name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from relay.call import Call, Endpoint, Envelope, Outcome, RateLimit
from relay.dialects import body as json_body
from relay.errors import NotServed, RelayError


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of Baton's own: an error, a list."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model in a list: what Baton knows of it, in no vendor's shape. `raw` is the upstream's own entry, JSON."""

    id: str
    display_name: str = ""
    created_at: float = 0.0
    raw: bytes = b""


class Meter(ABC):
    """Folds one answer into an `Outcome`. One for each attempt; fed from one task; keeps no text."""

    error: str = ""  # type of an in-band error, once one was seen
    error_message: str = ""
    error_body: bytes = b""  # the in-band error as a whole body of the dialect, to classify it by
    content_seen: bool = False  # from here on the call can't go to another account
    failed_answer: bool = False  # the error stands in an answer of the vendor's own, whose events a client can read
    terminal: bool = False
    # Seconds of silence after a terminal event in which more may come, another end even: what was held before that goes
    # out, and the rest is folded too. 0 = the terminal event is the end.
    linger: float = 0.0

    @abstractmethod
    def feed(self, block: bytes) -> int:
        """Fold one or more whole events, as they are framed on the client's side.

        Returns the offset in `block` where the terminal event begins (the last bytes, held until the record is
        durable), or -1. Never raises: what can't be read is passed and counted as nothing.
        """

    @abstractmethod
    def whole(self, body: bytes) -> None:
        """Fold a whole, non-streamed answer body."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """What is known now; may be asked at any time. Where the provider has not reported the output yet, it is
        estimated from the bytes of text and tool arguments fed so far (4 a token) and `source` says so."""


class Dialect(ABC):
    name: ClassVar[str]
    family: ClassVar[str]  # what a key must be permitted
    keep_alive: ClassVar[bytes]  # sent between events after silence
    # The header by which a request on `/v1/models` claims this dialect's shape; b"" = the shape of all others.
    models_marker: ClassVar[bytes] = b""
    entrance: ClassVar[tuple[str, str]] = ("", "")  # the main endpoint's name, and the path under which clients call it
    max_output_field: ClassVar[str] = "max_tokens"  # the body field that bounds the output
    stream_type: bytes = b"text/event-stream; charset=utf-8"  # of a stream that Baton begins before the upstream does
    roots: ClassVar[frozenset[str]] = frozenset()  # first path segments that are this dialect's alone
    resources: ClassVar[frozenset[str]] = frozenset()  # what under /v1, which vendors share, is this dialect's alone

    def spoken(self, call: Call) -> Dialect:
        """The dialect as this call speaks it, where its requests choose between framings."""
        return self

    @abstractmethod
    def read_envelope(self, body: bytes, *, headers: dict[bytes, bytes], path_model: str = "") -> Envelope:
        """Read the few fields Baton needs; raises `InvalidRequest` that names the field."""

    def bounded(self, body: bytes, envelope: Envelope) -> Envelope:
        """The envelope with what bounds the call (`inline_text` to `ruled_out`), where `read_envelope` left that for
        later: asked for only where tokens or cost are limited, because it may search the whole body."""
        return envelope

    def canonical(self, body: bytes, envelope: Envelope) -> bytes:
        """The body as it goes on: unchanged, unless a field stands in it twice (the upstream might read the other)."""
        return json_body.canonical(body) if envelope.repeats else body

    def render_models(self, models: Sequence[ModelEntry], *, query: Mapping[str, str]) -> Answer:
        """The list in the vendor's shape, paged by the vendor's query parameters."""
        raise NotServed("This dialect has no list of models.")

    def render_model(self, model: ModelEntry) -> Answer:
        """One model in the vendor's shape."""
        raise NotServed("This dialect has no list of models.")

    def probe(self, model: str) -> tuple[str, str, tuple[tuple[bytes, bytes], ...], bytes]:
        """The smallest real call: `(endpoint name, path, headers, body)`, for "test connection"."""
        raise NotServed("This dialect has no small call to test with.")

    @abstractmethod
    def set_model(self, body: bytes, model: str) -> bytes:
        """Return the body with that one field changed, every other value's bytes kept."""

    @abstractmethod
    def render_error(self, error: RelayError, request_id: str) -> Answer:
        """The vendor's native error body and status, so that SDKs raise their usual classes."""

    def rate_headers(self, rates: Sequence[RateLimit], *, now: float) -> list[tuple[bytes, bytes]]:
        """The key's limits in the vendor's own headers; none where the vendor has none. `now` in Unix seconds."""
        return []

    @abstractmethod
    def error_event(self, error: RelayError, request_id: str) -> bytes:
        """How a stream that began must end when it can't end well."""

    def last_event(self, error: RelayError, request_id: str, *, meter: Meter) -> bytes:
        """`error_event` for a stream whose upstream had begun; `meter` has seen what the client got. For formats whose
        error event continues what came before it: a sequence number, the answer's id."""
        return self.error_event(error, request_id)

    @abstractmethod
    def meter(self, endpoint: Endpoint) -> Meter: ...

    def in_band_status(self, error_type: str) -> int:
        """The HTTP status that an error inside a 200 stream would have had, so that the provider can classify it."""
        return 500
