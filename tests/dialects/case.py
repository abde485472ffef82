"""What every dialect's meter must do with a recorded stream: pass its bytes, and count the same however it was cut."""

from __future__ import annotations

from collections.abc import Callable

from relay.call import Endpoint, Outcome
from relay.dialects.base import Dialect, Meter
from relay.providers.base import Framer
from relay.sse import SseFramer
from tests.providers.case import fixture, ways_to_cut


def metered(
    dialect: Dialect, endpoint: Endpoint, chunks: list[bytes], *, framing: Callable[[], Framer] = SseFramer
) -> tuple[Meter, bytes, int]:
    """Feed chunks as the relay does; return the meter, the bytes passed on, and how many of them could go out before
    the record is on disk (-1 = the terminal event did not come)."""
    framer, meter = framing(), dialect.meter(endpoint)
    passed, held = b"", -1
    for block in (*map(framer.feed, chunks), framer.flush()):
        cut = meter.feed(block) if block else -1
        held = len(passed) + cut if held < 0 <= cut else held
        passed += block
    return meter, passed, held


def outcome_of(
    dialect: Dialect, endpoint: Endpoint, name: str, *, framing: Callable[[], Framer] = SseFramer
) -> Outcome:
    """The one outcome of a recorded stream, however it is cut."""
    stream = fixture(name)
    results = []
    for how, chunks in ways_to_cut(stream):
        meter, passed, held = metered(dialect, endpoint, chunks, framing=framing)
        assert passed == stream, how
        results.append((meter.outcome(), held))
    assert all(result == results[0] for result in results)
    return results[0][0]


def whole_outcome(dialect: Dialect, endpoint: Endpoint, body: bytes) -> Outcome:
    """The outcome of an answer that is not streamed."""
    meter = dialect.meter(endpoint)
    meter.whole(body)
    return meter.outcome()
