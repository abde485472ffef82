"""Anthropic's usage objects -> `Usage`: what is in the totals, and what is billed beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from relay.call import Quantity, Usage

Fields = Mapping[str, Any]

MAX_COUNT = 10**9  # beyond this it is no count of anything that one call can use
MAX_TEXT = 40
MAX_NAME = 200
INPUT = "input_tokens"
CACHE_READ = "cache_read_input_tokens"
CACHE_WRITE = "cache_creation_input_tokens"
CACHE_5M = "cache_creation_5m_input_tokens"
CACHE_1H = "cache_creation_1h_input_tokens"
OUTPUT = "output_tokens"
# Iterations that the totals leave out, and those that they add up (reference/clients.md section 2).
OUTSIDE = frozenset({"compaction", "advisor_message"})
INSIDE = frozenset({"message", "fallback_message"})
# Server tools billed by the call; fetches and searches for tools cost their tokens only.
TOOL_METERS = {"web_search_requests": "web_searches"}
FREE_TOOLS = frozenset({"web_fetch_requests", "tool_search_requests"})


class _Reading:
    """Picks counts out of an object that somebody else wrote; remembers what could not be read."""

    __slots__ = ("flags",)

    def __init__(self) -> None:
        self.flags: list[str] = []

    def count(self, fields: Fields, name: str) -> int | None:
        value = fields.get(name)
        if value is None or (type(value) is int and 0 <= value <= MAX_COUNT):
            return value
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
    details = fields.get("output_tokens_details")
    thinking = reading.count(mapping(details), "thinking_tokens") if details else None
    items = _listed(fields)
    return Usage(
        input_tokens=reading.count(fields, INPUT),
        cache_read_input_tokens=reading.count(fields, CACHE_READ),
        cache_creation_5m_input_tokens=five,
        cache_creation_1h_input_tokens=hour,
        output_tokens=reported,
        reasoning_tokens=_reasoning(thinking, reported, reading) if thinking is not None else None,
        extra=(
            *(_tool_calls(fields, reading) if fields.get("server_tool_use") else ()),
            *(_beside(items, reading) if items else ()),
        ),
        longest_prompt=_longest_prompt(items, reading) if items else None,
        service_tier=text(fields.get("service_tier"), MAX_TEXT),
        speed=text(fields.get("speed"), MAX_TEXT),
        geo=text(fields.get("inference_geo"), MAX_TEXT),
        flags=tuple(reading.flags),
        raw=raw,
    )


def mapping(value: Any) -> Fields:
    return value if isinstance(value, dict) else {}


def text(value: Any, limit: int) -> str:
    return value.replace("\0", "")[:limit] if isinstance(value, str) else ""


def output_of(fields: Fields) -> int | None:
    """The output tokens that were reported, None if they were not."""
    return _Reading().count(fields, OUTPUT)


def served_by(fields: Fields) -> str:
    """The model whose answer a server-side fallback returned, "" without one."""
    return _served(_listed(fields)) if fields.get("iterations") else ""


def _reasoning(thinking: int, output: int | None, reading: _Reading) -> int:
    if output is not None and thinking > output:
        reading.flag("reasoning_exceeds_output")
        return output
    return thinking


def _cache_writes(fields: Fields, reading: _Reading) -> tuple[int | None, int | None]:
    """Return the tokens written to the cache for 5 minutes and for an hour; without a split all are the former."""
    total = reading.count(fields, CACHE_WRITE)
    split = mapping(fields.get("cache_creation"))
    if not split:
        return total, None
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
        found.append(Quantity(TOOL_METERS.get(name, text(name, 60)), count))
    return found


def _listed(fields: Fields) -> list[Fields]:
    listed = fields.get("iterations")
    return [mapping(item) for item in listed] if isinstance(listed, list) else []


def _beside(items: Sequence[Fields], reading: _Reading) -> Iterator[Quantity]:
    """Model runs that the totals leave out, each at the price of its own model."""
    declined = _declined(items)
    if declined:
        reading.flag("fallback")
    runs = [item for item in items if _kind(item) in OUTSIDE]
    # A run that was declined before any output is not billed.
    runs += [item for item in declined if reading.count(item, OUTPUT)]
    for number, item in enumerate(runs, start=1):
        yield from _run(item, number, reading)


def _kind(item: Fields) -> str:
    return text(item.get("type"), MAX_TEXT)


def _declined(items: Sequence[Fields]) -> list[Fields]:
    """Runs of another model than the one whose answer a server-side fallback returned; the totals are the latter's."""
    served = _served(items)
    if not served:
        return []
    return [
        item for item in items if _kind(item) == "message" and text(item.get("model"), MAX_NAME) not in {"", served}
    ]


def _served(items: Sequence[Fields]) -> str:
    return next((text(item.get("model"), MAX_NAME) for item in items if item.get("type") == "fallback_message"), "")


def _run(item: Fields, number: int, reading: _Reading) -> Iterator[Quantity]:
    model = text(item.get("model"), MAX_NAME)
    five, hour = _cache_writes(item, reading)
    counts = (
        (INPUT, reading.count(item, INPUT)),
        (CACHE_READ, reading.count(item, CACHE_READ)),
        (CACHE_5M, five),
        (CACHE_1H, hour),
        (OUTPUT, reading.count(item, OUTPUT)),
    )
    return (Quantity(meter, count, model, number) for meter, count in counts if count)


def _longest_prompt(items: Sequence[Fields], reading: _Reading) -> int | None:
    """The longest prompt among the runs that the totals add up: price thresholds are for one prompt."""
    declined = _declined(items)
    inside = [item for item in items if _kind(item) in INSIDE and item not in declined]
    prompts = [sum(reading.count(item, name) or 0 for name in (INPUT, CACHE_READ, CACHE_WRITE)) for item in inside]
    return max(prompts) if len(prompts) > 1 else None
