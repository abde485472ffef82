"""AWS event stream framing, bytes to messages; botocore checks both CRCs. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from botocore.eventstream import EventStreamBuffer, ParserError

from relay.errors import UpstreamFailed

CONTENT_TYPE = b"application/vnd.amazon.eventstream"


@dataclass(frozen=True, slots=True)
class Message:
    """One frame. `kind` is "event", "exception" or "error"; `name` its event, exception or error type."""

    kind: str
    name: str
    payload: bytes
    text: str = ""  # what an "error" frame says in its header


class EventStream:
    """Decodes incrementally; one for each answer."""

    def __init__(self) -> None:
        self._buffer = EventStreamBuffer()
        self._waiting = 0  # bytes that do not make a frame yet

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yield the messages that are whole now; raises `UpstreamFailed` where a frame's checksum or size is wrong."""
        self._buffer.add_data(chunk)
        self._waiting += len(chunk)
        try:
            for event in self._buffer:
                self._waiting -= event.prelude.total_length
                headers = event.headers
                kind = str(headers.get(":message-type", "event"))
                name = headers.get(f":{kind}-type") or headers.get(":error-code") or ""
                yield Message(kind, str(name), event.payload, str(headers.get(":error-message", "")))
        except ParserError as error:
            raise UpstreamFailed("The upstream's stream could not be read.", reason="bad_frame", rest="5xx") from error

    def left_over(self) -> bool:
        """Whether the stream ended inside a frame."""
        return self._waiting > 0
