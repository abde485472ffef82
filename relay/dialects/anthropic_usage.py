"""Anthropic's usage objects -> `Usage`: what is in the totals, and what is billed beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.call import Quantity, Usage

Fields = Mapping[str, Any]

MAX_COUNT = 10**12  # beyond this it is no count: the sum of a table must fit 64 bits
MAX_TEXT = 40
INPUT = "input_tokens"
CACHE_READ = "cache_read_input_tokens"
CACHE_WRITE = "cache_creation_input_tokens"
CACHE_5M = "cache_creation_5m_input_tokens"
CACHE_1H = "cache_creation_1h_input_tokens"
OUTPUT = "output_tokens"
# Iterations that the totals leave out (reference/clients.md section 2).
OUTSIDE = frozenset({"compaction", "advisor_message"})
# Server tools billed by the call; fetches and searches for tools cost their tokens only.
TOOL_METERS = {"web_search_requests": "web_searches"}
FREE_TOOLS = frozenset({"web_fetch_requests", "tool_search_requests"})


@dataclass
class _Reading:
    """Picks counts out of an object that somebody else wrote; remembers what could not be read."""

    flags: list[str] = field(default_factory=list)

    def count(self, fields: Fields, name: str) -> int | None:
        value = fields.get(name)
        if value is None:
            return None
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and 0 <= value <= MAX_COUNT and value == int(value):
            return int(value)
        self.flag(f"unreadable_{name}")
        return None

    def flag(self, name: str) -> None:
        if name not in self.flags:
            self.flags.append(name)


def merge(fields: Fields, later: Fields) -> dict[str, Any]:
    """Later fields win, field by field; null is not a report."""
    return {**fields, **{name: value for name, value in later.items() if value is not None}}


def read(fields: Fields, *, raw: bytes, output: int | None = None) -> Usage:
    """Return the usage that the merged object tells; `output` stands in where the provider has not reported it yet."""
    reading = _Reading()
    five, hour = _cache_writes(fields, reading)
    reported = reading.count(fields, OUTPUT) if output is None else output
    details = mapping(fields.get("output_tokens_details"))
    return Usage(
        input_tokens=reading.count(fields, INPUT),
        cache_read_input_tokens=reading.count(fields, CACHE_READ),
        cache_creation_5m_input_tokens=five,
        cache_creation_1h_input_tokens=hour,
        output_tokens=reported,
        reasoning_tokens=_reasoning(reading.count(details, "thinking_tokens"), reported, reading),
        extra=(*_tool_calls(fields, reading), *_iterations(fields, reading)),
        service_tier=text(fields.get("service_tier"), MAX_TEXT),
        speed=text(fields.get("speed"), MAX_TEXT),
        geo=text(fields.get("inference_geo"), MAX_TEXT),
        flags=tuple(reading.flags),
        raw=raw,
    )


def mapping(value: Any) -> Fields:
    return value if isinstance(value, dict) else {}


def text(value: Any, limit: int) -> str:
    return value[:limit] if isinstance(value, str) else ""


def _reasoning(thinking: int | None, output: int | None, reading: _Reading) -> int | None:
    if thinking is not None and output is not None and thinking > output:
        reading.flag("reasoning_exceeds_output")
        return output
    return thinking


def _cache_writes(fields: Fields, reading: _Reading) -> tuple[int | None, int | None]:
    """Return the tokens written to the cache for 5 minutes and for an hour; without a split all are the former."""
    split = mapping(fields.get("cache_creation"))
    total = reading.count(fields, CACHE_WRITE)
    five = reading.count(split, "ephemeral_5m_input_tokens")
    hour = reading.count(split, "ephemeral_1h_input_tokens")
    if five is None and hour is None:
        return total, None
    known = (five or 0) + (hour or 0)
    if total is None or total == known:
        return five, hour
    # The total is newer than its split: message_delta repeats only the total.
    if not five and hour:
        return five, total
    if hour:
        reading.flag("cache_creation_mismatch")
        hour = min(hour, total)
        return total - hour, hour
    return total, hour


def _tool_calls(fields: Fields, reading: _Reading) -> list[Quantity]:
    used = mapping(fields.get("server_tool_use"))
    found = []
    for name in used:
        count = reading.count(used, name) if isinstance(name, str) else None
        if not count or name in FREE_TOOLS:
            continue
        # One that we don't know is a line without a price: the record says `unpriced` instead of staying silent.
        found.append(Quantity(TOOL_METERS.get(name, name[:60]), count))
    return found


def _iterations(fields: Fields, reading: _Reading) -> list[Quantity]:
    """Model runs that the totals leave out, each at the price of its own model."""
    listed = fields.get("iterations")
    items: list[Fields] = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    found: list[Quantity] = []
    for item in items:
        if item.get("type") in OUTSIDE:
            found += _run(item, reading)
    for item in _declined(items):
        reading.flag("fallback")
        if reading.count(item, OUTPUT):  # a request that was declined before any output is not billed
            found += _run(item, reading)
    return found


def _declined(items: list[Fields]) -> list[Fields]:
    """Runs of another model than the one whose answer a server-side fallback returned; the totals are the latter's."""
    served = next((item.get("model") for item in items if item.get("type") == "fallback_message"), None)
    if served is None:
        return []
    return [item for item in items if item.get("type") == "message" and item.get("model") not in {None, served}]


def _run(item: Fields, reading: _Reading) -> list[Quantity]:
    model = text(item.get("model"), 200)
    five, hour = _cache_writes(item, reading)
    counts = (
        (INPUT, reading.count(item, INPUT)),
        (CACHE_READ, reading.count(item, CACHE_READ)),
        (CACHE_5M, five),
        (CACHE_1H, hour),
        (OUTPUT, reading.count(item, OUTPUT)),
    )
    return [Quantity(meter, count, model) for meter, count in counts if count]
