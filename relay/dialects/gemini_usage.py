"""Gemini's `usageMetadata` as disjoint counts, and what its grounding searches are billed as."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from relay.call import Quantity, Usage

# What is billed at a rate of its own where a model has one; text and documents are plain tokens.
MODALITIES = {"AUDIO": "audio", "IMAGE": "image", "VIDEO": "video"}
TIERS = {
    "ON_DEMAND": "",
    "ON_DEMAND_PRIORITY": "priority",
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_OFFPEAK": "offpeak",
    "PROVISIONED_THROUGHPUT": "provisioned_throughput",
}
GENERATION = re.compile(r"gemini-(\d+)")
LARGEST = 2**53


class Detail(msgspec.Struct, rename="camel"):
    modality: Any = None
    token_count: Any = None


class Metadata(msgspec.Struct, rename="camel"):
    prompt_token_count: Any = None
    cached_content_token_count: Any = None
    candidates_token_count: Any = None
    response_token_count: Any = None  # of the newer shape that embeddings have
    thoughts_token_count: Any = None
    tool_use_prompt_token_count: Any = None
    total_token_count: Any = None
    prompt_tokens_details: Any = None
    cache_tokens_details: Any = None
    candidates_tokens_details: Any = None
    response_tokens_details: Any = None
    tool_use_prompt_tokens_details: Any = None
    traffic_type: Any = None
    service_tier: Any = None


METADATA = msgspec.json.Decoder(Metadata)
UNREADABLE = (ValueError, RecursionError, msgspec.MsgspecError)


def read(raw: bytes, *, asked: str = "") -> Usage | None:
    """The counts of one usage object; None where it reports none. `asked` is the tier where it names none.

    The prompt includes what was read from a cache; what hosted tools fed back to the model comes on top of it. Thoughts
    are output beside the candidates. Google leaves out counts that are zero. Each modality is a part of its plain
    count, priced apart where its model has a rate for it.
    """
    try:
        data = METADATA.decode(raw)
    except UNREADABLE:
        return None
    prompt, tools = count(data.prompt_token_count), count(data.tool_use_prompt_token_count)
    said, thoughts = count(data.candidates_token_count), count(data.thoughts_token_count)
    said = count(data.response_token_count) if said is None else said
    if prompt is None and tools is None and said is None and thoughts is None:
        return None
    cached, total = count(data.cached_content_token_count), count(data.total_token_count)
    flags = ["cached_exceeds_input"] if (cached or 0) > (prompt or 0) else []
    if total is not None and total != sum(item or 0 for item in (prompt, tools, said, thoughts)):
        flags.append("usage_mismatch")
    billed = tier(data)
    read_from_cache = by_modality(data.cache_tokens_details)
    fed = by_modality(data.prompt_tokens_details, data.tool_use_prompt_tokens_details)
    made = by_modality(data.candidates_tokens_details or data.response_tokens_details)
    return Usage(
        input_tokens=max(0, (prompt or 0) - (cached or 0)) + (tools or 0),
        cache_read_input_tokens=cached,
        output_tokens=None if said is None and thoughts is None else (said or 0) + (thoughts or 0),
        reasoning_tokens=thoughts,
        extra=(
            *parts(
                {name: quantity - read_from_cache.get(name, 0) for name, quantity in fed.items()}, of="input_tokens"
            ),
            *parts(read_from_cache, of="cache_read_input_tokens"),
            *parts(made, of="output_tokens"),
        ),
        service_tier=asked if billed is None else billed,
        flags=tuple(flags),
        raw=bytes(raw),
    )


def count(value: object) -> int | None:
    """A count as it was reported, None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST else None


def by_modality(*details: object) -> dict[str, int]:
    """Tokens of each modality that may have a rate of its own."""
    found: dict[str, int] = {}
    for listed in details:
        for item in listed if isinstance(listed, list) else ():
            name = MODALITIES.get(str(item.get("modality")).upper()) if isinstance(item, dict) else None
            if name is not None:
                found[name] = found.get(name, 0) + (count(item.get("tokenCount")) or 0)
    return found


def parts(quantities: dict[str, int], *, of: str) -> tuple[Quantity, ...]:
    return tuple(Quantity(f"{name}_{of}", number, within=of) for name, number in quantities.items() if number > 0)


def tier(data: Metadata) -> str | None:
    """The service tier that was billed: Vertex names the traffic, the Gemini API the tier; "" = standard, None = it
    is not said."""
    if isinstance(data.traffic_type, str):
        return TIERS.get(data.traffic_type.upper(), data.traffic_type.lower()[:40])
    return data.service_tier.lower()[:40] if isinstance(data.service_tier, str) and data.service_tier else None


def searches(queries: Iterable[str], *, model: str) -> int:
    """How many searches are billed: each query from Gemini 3 on, before that one for each grounded prompt (Google's
    pricing page, "Grounding with Google Search")."""
    asked = {query for query in queries if query.strip()}
    generation = GENERATION.search(model)
    return len(asked) if generation is None or int(generation[1]) >= 3 else min(1, len(asked))
