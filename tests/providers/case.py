"""One suite for all providers: a recorded stream gives the same bytes and the same counts, however it is cut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from relay.call import Account, Call, Endpoint, Key, Outcome, new_call_id
from relay.dialects import DIALECTS
from relay.providers.base import Provider

FIXTURES = Path(__file__).parent.parent / "fixtures"
LINE_END = re.compile(rb"(?<=\n)|(?<=\r)(?!\n)")
EVENT_END = re.compile(rb"(?<=\n\n)|(?<=\n\r\n)")
NOW = 1_795_388_612.0


def fixture(name: str) -> bytes:
    """One file of tests/fixtures, as bytes."""
    return (FIXTURES / name).read_bytes()


def ways_to_cut(stream: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Yield `(how, chunks)`: whole, by event, by line, by byte, and in pieces that respect nothing."""
    yield "whole", [stream]
    yield "by event", [part for part in EVENT_END.split(stream) if part]
    yield "by line", [part for part in LINE_END.split(stream) if part]
    yield "by byte", [stream[i : i + 1] for i in range(len(stream))]
    yield "by 7 bytes", [stream[i : i + 7] for i in range(0, len(stream), 7)]


def call_of(
    endpoint: Endpoint,
    *,
    body: bytes,
    path: str,
    method: str = "POST",
    query: str = "",
    headers: Mapping[str, str] | None = None,
    path_model: str = "",
) -> Call:
    """A call as the API hands it to a provider."""
    pairs = tuple((name.lower().encode(), value.encode()) for name, value in (headers or {}).items())
    envelope = DIALECTS[endpoint.dialect].read_envelope(body, headers=dict(pairs), path_model=path_model)
    key = Key(id=1, name="k", public_id="p", digest=b"")
    return Call(new_call_id(NOW), NOW, key, endpoint, envelope, method, path, query, pairs, body)


def relayed(provider: Provider, call: Call, account: Account, chunks: list[bytes]) -> tuple[bytes, Outcome]:
    """What the client gets and what is counted, as the pipeline does it."""
    framer = provider.framer(call, call.envelope.model)
    meter = DIALECTS[call.endpoint.dialect].spoken(call).meter(call.endpoint)
    hide = provider.hidden(call, account)
    out = []
    for block in (*(framer.feed(chunk) for chunk in chunks), framer.flush()):
        if not block:
            continue
        cut = meter.feed(block)
        pieces = [block] if cut < 0 else [block[:cut], block[cut:]]
        out += [hide(piece) if hide else piece for piece in pieces]
    return b"".join(out), meter.outcome()


def check_stream(provider: Provider, call: Call, account: Account, name: str, *, shown: bytes | None = None) -> Outcome:
    """Feed a fixture in every way; the client must get `shown` (default: all of it). Returns the one outcome."""
    stream = fixture(name)
    outcomes = []
    for how, chunks in ways_to_cut(stream):
        assert b"".join(chunks) == stream
        got, outcome = relayed(provider, call, account, chunks)
        assert got == (stream if shown is None else shown), how
        outcomes.append(outcome)
    assert all(outcome == outcomes[0] for outcome in outcomes)
    return outcomes[0]
