"""What the bundled genai-prices package lists, as rows of our own shape, and the names that it knows models by.

Works offline: nothing is fetched. No database in here, so that migrations can use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from importlib.metadata import version
from typing import Any

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, StartDateConstraint, TieredPrices, TimeOfDateConstraint

from relay.pricing import Known

SOURCE = "genai-prices"
# An undated price holds from the beginning, so that a record of any age can be priced.
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
NANOS = 1_000_000_000

# genai-prices' keys -> our meters, and how many of our million the rate is for. What Baton can't meter (pages, hours,
# characters) is left out.
METERS = {
    "input_mtok": ("input_tokens", 1),
    "output_mtok": ("output_tokens", 1),
    "cache_read_mtok": ("cache_read_input_tokens", 1),
    "cache_write_5m_mtok": ("cache_creation_5m_input_tokens", 1),
    "cache_write_1h_mtok": ("cache_creation_1h_input_tokens", 1),
    "input_audio_mtok": ("audio_input_tokens", 1),
    "output_audio_mtok": ("audio_output_tokens", 1),
    "cache_audio_read_mtok": ("audio_cache_read_input_tokens", 1),
    "input_image_mtok": ("image_input_tokens", 1),
    "output_image_mtok": ("image_output_tokens", 1),
    "cache_image_read_mtok": ("image_cache_read_input_tokens", 1),
    "input_video_mtok": ("video_input_tokens", 1),
    "output_video_mtok": ("video_output_tokens", 1),
    "web_searches_kcount": ("web_searches", 1000),
    "storage_searches_kcount": ("file_searches", 1000),
}
# A write without a lifetime is of the vendor's usual one: 30 minutes and 12 hours at OpenAI, 5 minutes elsewhere.
# Longer ones have a rate of their own, or none is known.
USUAL_WRITE = {"openai": ("cache_creation_30m_input_tokens",), "azure": ("cache_creation_30m_input_tokens",)}
# Anthropic bills inference in the US at 1.1 times every token rate, on top of tier and speed, from Claude 4.6 on
# (platform.claude.com, "Data residency" and "Pricing"); the package does not carry it.
US_FACTOR = Decimal("1.1")
US_ONLY = {"anthropic": re.compile(r"^claude-(?:(?:opus|sonnet|haiku)-(?:4-[6-9]|[5-9])|(?:fable|mythos)-)")}
# Google bills Claude outside its global location at 1.1 times every token rate, from Claude 4.5 on
# (platform.claude.com, "Claude on Vertex AI"); the package does not carry it either.
REGIONAL_FACTOR = Decimal("1.1")
REGIONAL = {"google": re.compile(r"^claude-(?:(?:opus|sonnet|haiku)-(?:4-[5-9]|[5-9])|(?:fable|mythos)-)")}


@dataclass(frozen=True, slots=True)
class Listed:
    """One price of the catalogue: nano-dollars per million units, from `start` to `end` (None = open)."""

    provider: str
    model: str
    meter: str
    tier: str
    above: int
    rate: int
    start: datetime
    end: datetime | None = None

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        return (self.provider, self.model, self.meter, self.tier, self.above)


def catalogue_version() -> str:
    return f"{SOURCE} {version('genai-prices')}"


def listed() -> Iterator[Listed]:
    """Every price that Baton can use, its own versions in order of time."""
    for provider in get_snapshot().providers:
        for model in provider.models:
            yield from _versions(provider.id, model)


def _versions(provider: str, model: ModelInfo) -> Iterator[Listed]:
    """The prices of one model: those of each span between two dates, spans that change nothing joined."""
    starts = sorted({EPOCH, *(moment for moment in _dates(model))})
    spans = [(start, _rates(provider, model, start)) for start in starts]
    keys = dict.fromkeys(key for _, rates in spans for key in rates)
    for key in keys:
        began, rate = starts[0], spans[0][1].get(key)
        for start, rates in [*spans[1:], (None, {})]:
            if start is not None and rates.get(key) == rate:
                continue
            if rate is not None:
                yield Listed(provider, model.id, *key, rate=rate, start=began, end=start)
            if start is not None:
                began, rate = start, rates.get(key)


def _dates(model: ModelInfo) -> Iterator[datetime]:
    prices = model.prices if isinstance(model.prices, list) else []
    for item in [*prices, *(model.price_variants or ())]:
        if isinstance(item.constraint, StartDateConstraint):
            yield datetime.combine(item.constraint.start_date, time(), UTC)


def _rates(provider: str, model: ModelInfo, day: datetime) -> dict[tuple[str, str, int], int]:
    """(meter, tier, above) -> rate, as it is from that day on."""
    windows = _windows(model)
    found = _flat(provider, "", model.get_prices(_outside(windows, day)))
    for name, inside in windows.items():
        found |= _flat(provider, name, model.get_prices(day + inside))
    for variant in model.price_variants or ():
        tier = next(iter(variant.when.values()))
        names = {name for name, value in vars(variant.prices).items() if value is not None}
        if len(variant.when) == 1 and (variant.constraint is None or variant.constraint.active(day)):
            resolved = model.get_prices(_outside(windows, day), dict(variant.when))
            prices = {name: value for name, value in vars(resolved).items() if name in names}
            found = _flat(provider, tier, ModelPrice(**prices)) | found
    for place, factor, dearer in (("us", US_FACTOR, US_ONLY), ("regional", REGIONAL_FACTOR, REGIONAL)):
        if provider in dearer and dearer[provider].match(model.id):
            found |= _in_place(found, place, factor)
    return found


def _windows(model: ModelInfo) -> dict[str, timedelta]:
    """Hours of the day with prices of their own: "HH:MM-HH:MM", UTC, and a time inside."""
    found = {}
    for item in model.prices if isinstance(model.prices, list) else []:
        limits = item.constraint
        if isinstance(limits, TimeOfDateConstraint):
            name = f"{limits.start_time:%H:%M}-{limits.end_time:%H:%M}"
            found[name] = timedelta(hours=limits.start_time.hour, minutes=limits.start_time.minute)
    return found


def _outside(windows: dict[str, timedelta], day: datetime) -> datetime:
    """A moment of that day in none of the windows."""
    from relay.pricing import in_window

    moments = (day + timedelta(minutes=minute) for minute in range(0, 24 * 60, 30))
    return next((at for at in moments if not any(in_window(name, at.timestamp()) for name in windows)), day)


def _flat(provider: str, tier: str, prices: ModelPrice) -> dict[tuple[str, str, int], int]:
    found: dict[tuple[str, str, int], int] = {}
    for name, value in vars(prices).items():
        for meter, factor in _meters(provider, name):
            if isinstance(value, TieredPrices):
                found[meter, tier, 0] = _nanos(value.base * factor)
                found |= {(meter, tier, step.start): _nanos(step.price * factor) for step in value.tiers}
            elif value is not None:
                found[meter, tier, 0] = _nanos(value * factor)
    return found


def _meters(provider: str, name: str) -> list[tuple[str, int]]:
    if name == "cache_write_mtok":
        return [(meter, 1) for meter in USUAL_WRITE.get(provider, ("cache_creation_5m_input_tokens",))]
    return [METERS[name]] if name in METERS else []


def _in_place(rates: dict[tuple[str, str, int], int], place: str, factor: Decimal) -> dict[tuple[str, str, int], int]:
    return {
        (meter, "+".join(sorted(filter(None, (tier, place)))), above): round(rate * factor)
        for (meter, tier, above), rate in rates.items()
        if meter.endswith("_tokens")
    }


def _nanos(dollars: Decimal) -> int:
    """Dollars per million -> nano-dollars per million."""
    return int((dollars * NANOS).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


@cache
def _owners() -> dict[int, str]:
    return {id(model): provider.id for provider in get_snapshot().providers for model in provider.models}


def preload() -> None:
    """Read the package's data now (a quarter of a second), not at the first call that needs it."""
    _owners()


def resolve(provider: str, model: str) -> Known | None:
    """What the catalogue knows of a name: dated builds, aliases, region prefixes, ARNs, `-v1:0`, `@date`."""
    listing = next((item for item in get_snapshot().providers if item.id == provider), None)
    if listing is None:
        return None
    for name in _spellings(model):
        found: Any = listing.find_model(name, all_providers=get_snapshot().providers)
        if found is not None:
            return Known(found.id, provider=_owners()[id(found)], context_window=found.context_window)
    return None


def _spellings(model: str) -> Iterator[str]:
    """The name as it came, then with less and less around it."""
    yield model
    bare = model.rpartition("/")[2]
    if bare != model:
        yield bare
    stripped = re.sub(r"(?:-v\d+)?(?::\d+)?$", "", bare)
    if stripped != bare:
        yield stripped
    dateless = re.sub(r"[@-]20\d{6}$", "", stripped)
    if dateless != stripped:
        yield dateless
