"""What an Anthropic prompt weighs, and what of it the vendor's cache knows: the rules of docs/simulator.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from relay.simulator.base import Memory, encode, tokens


@dataclass(frozen=True, slots=True)
class Part:
    """One block of the prompt: the bytes that count, and the lifetime of the cache breakpoint on it ("" = none)."""

    data: bytes
    breakpoint: str = ""


@dataclass(frozen=True, slots=True)
class Weight:
    """Disjoint token counts of a prompt."""

    plain: int
    read: int = 0
    written_5m: int = 0
    written_1h: int = 0


def parts(body: dict[str, Any]) -> Iterator[Part]:
    """Yield the blocks in the order of the vendor's cache: tools, system, messages."""
    for tool in body.get("tools") or ():
        yield part(tool)
    yield from content_parts(body.get("system") or ())
    for message in body.get("messages") or ():
        yield from content_parts(message.get("content") or ())


def content_parts(content: Any) -> Iterator[Part]:
    if isinstance(content, str):
        yield Part(content.encode())
    else:
        yield from (part(block) for block in content)


def part(block: dict[str, Any]) -> Part:
    control = block.get("cache_control")
    lifetime = control.get("ttl", "5m") if control else ""
    if block.get("type") == "text":
        return Part(str(block.get("text", "")).encode(), lifetime)
    return Part(encode({key: value for key, value in block.items() if key != "cache_control"}), lifetime)


def prompt_tokens(body: dict[str, Any]) -> int:
    """Return all input tokens: four bytes each, rounded up, at least one."""
    return max(1, tokens(sum(len(item.data) for item in parts(body))))


def weigh(body: dict[str, Any], *, owner: str, memory: Memory) -> Weight:
    """Return the counts, and remember the prefixes that the prompt wants cached; `owner` keeps caches apart."""
    found = list(parts(body))
    control = body.get("cache_control")
    if control and found:
        found[-1] = Part(found[-1].data, control.get("ttl", "5m"))
    digest, size, read, previous = hashlib.sha256(owner.encode()), 0, 0, 0
    written = {"5m": 0, "1h": 0}
    for item in found:
        digest.update(b"%d:%s" % (len(item.data), item.data))
        size += len(item.data)
        if not item.breakpoint:
            continue
        if memory.remember(digest.digest()):
            # A longer known prefix covers what the shorter ones before it would have written.
            read, written = tokens(size), {"5m": 0, "1h": 0}
        else:
            written[item.breakpoint] += tokens(size) - previous
        previous = tokens(size)
    total = max(1, tokens(size))
    return Weight(total - previous, read, written["5m"], written["1h"])
