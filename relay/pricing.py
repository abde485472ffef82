"""What usage costs, in integer nano-dollars. Pure: prices are values, names are resolved by what is passed in."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

from relay.call import Line, Quantity, Usage

UNITS = 1_000_000  # every rate is for so many units
# What vendors call the plain tier, speed or place: priced as standard unless a price row carries that very name.
STANDARD = frozenset({"", "standard", "default", "auto", "on_demand", "global", "not_available"})
# Baton's own names for places where some vendors charge more: plain where no row carries them.
OWN_PLACES = frozenset({"regional"})
PLAIN_OR_PRICED = STANDARD | OWN_PLACES
WINDOW = re.compile(r"^(\d\d):(\d\d)-(\d\d):(\d\d)$")  # a tier that holds at these hours, UTC
MAX_VERSION = 60  # characters of the record's column
CACHED_NAMES = 4096


@dataclass(frozen=True, slots=True)
class Rate:
    """One version of one rate: nano-dollars per million units, from `start` up to `end` (Unix seconds).

    `own` marks what a person set: it goes before what the catalogue says.
    """

    id: int
    provider: str
    model: str
    meter: str
    rate: int
    tier: str = ""
    above: int = 0
    start: float = 0.0
    end: float = math.inf
    own: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What the catalogue knows of a name: the id and provider that its prices stand under, how long a prompt can be."""

    model: str
    provider: str
    context_window: int | None = None


Resolve = Callable[[str, str], Known | None]


def _nothing(provider: str, model: str) -> Known | None:
    return None


class Bill(Struct, frozen=True):
    """Priced lines and what names the prices; `unpriced` = a line has none."""

    lines: tuple[Line, ...] = ()
    cost: int = 0
    unpriced: bool = False
    version: str = ""


def line_cost(quantity: int, rate: int) -> int:
    """`quantity` units at `rate`, in nano-dollars, rounded half to even."""
    whole, rest = divmod(quantity * rate, UNITS)
    return whole + (rest * 2 > UNITS or (rest * 2 == UNITS and whole % 2 == 1))


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """Every rate that can apply to one model. Layers of a (meter, tier): the first that holds at a time counts."""

    model: str
    layers: dict[tuple[str, str], tuple[tuple[Rate, ...], ...]]
    context_window: int | None = None
    tiers: frozenset[str] = frozenset()
    windows: tuple[str, ...] = ()
    _dearest: dict[tuple[str, int, int, tuple[str, ...]], int | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _held: dict[int, frozenset[str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _moments: tuple[float, ...] = field(default=(), init=False, repr=False, compare=False)
    _steps: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)
    meters: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = [row for layers in self.layers.values() for rows in layers for row in rows]
        object.__setattr__(self, "_moments", tuple(sorted({moment for row in rows for moment in (row.start, row.end)})))
        object.__setattr__(self, "meters", frozenset(meter for meter, _ in self.layers))
        object.__setattr__(self, "_steps", tuple(sorted({row.above for row in rows if row.above > 0})))

    def rate(self, meter: str, *, usage: Usage, whole_input: int, at: float) -> Rate | None:
        """The rate of one meter for a call that used this; None = no price known."""
        tier = self.tier_of(usage, at=at)
        for window in self.windows if not tier else ():
            if in_window(window, at) and (found := self._pick(meter, window, whole_input, at)) is not None:
                return found
        found = self._pick(meter, tier, whole_input, at)
        if found is None and tier and (not meter.endswith("_tokens") or tier in self.tiers_at(at)):
            # A tier's prices are differences: what it does not name costs what it always does.
            found = self._pick(meter, "", whole_input, at)
        return found

    def tier_of(self, usage: Usage, *, at: float) -> str:
        """The price tier that service tier, speed and place make together, such as "fast+us"; "" = standard."""
        tier = _tier(usage.service_tier, usage.speed, usage.geo, self.tiers)
        # A name of the plain price that has rows of its own is that plain price while none of them is in force.
        return tier and _tier(usage.service_tier, usage.speed, usage.geo, self.tiers_at(at))

    def tiers_at(self, at: float) -> frozenset[str]:
        """The tiers of which some meter has a row in force."""
        key = bisect_right(self._moments, at)
        if (found := self._held.get(key)) is None:
            found = self._held[key] = frozenset(
                tier
                for (_, tier), layers in self.layers.items()
                if tier and any(row.start <= at < row.end for rows in layers for row in rows)
            )
        return found

    def dearest(self, kind: str, *, whole_input: int, at: float, ruled_out: Sequence[str] = ()) -> int | None:
        """The highest rate that a token meter ending in `kind` can have; None = no price known."""
        # Every call of a limited key asks, and it changes only where a row begins or ends, or a longer prompt steps up.
        key = (kind, bisect_left(self._steps, whole_input), bisect_right(self._moments, at), tuple(ruled_out))
        try:
            return self._dearest[key]
        except KeyError:
            pass
        if len(self._dearest) >= CACHED_NAMES:
            self._dearest.clear()
        found = self._dearest[key] = self._find_dearest(kind, whole_input, at, ruled_out)
        return found

    def _find_dearest(self, kind: str, whole_input: int, at: float, ruled_out: Sequence[str]) -> int | None:
        found: list[int] = []
        for (meter, tier), layers in self.layers.items():
            if not meter.endswith(kind) or {meter, *tier.split("+")} & set(ruled_out):
                continue
            steps = {0} | {row.above + 1 for rows in layers for row in rows if 0 < row.above < whole_input}
            rates = (self._pick(meter, tier, step, at) for step in steps)
            found += [rate.rate for rate in rates if rate is not None]
        return max(found, default=None)

    def _pick(self, meter: str, tier: str, whole_input: int, at: float) -> Rate | None:
        best: Rate | None = None
        for rows in self.layers.get((meter, tier), ()):
            based, found = False, None
            for row in rows:
                if not row.start <= at < row.end:
                    continue
                based = based or row.above == 0
                fits = row.above == 0 or whole_input > row.above
                if fits and (found is None or (row.above, row.start) > (found.above, found.start)):
                    found = row
            if found is not None and (best is None or found.above > best.above):
                best = found
            if based:
                break  # whoever sets a base rate sets the whole ladder
        return best


@lru_cache(maxsize=1024)
def _tier(service_tier: str, speed: str, geo: str, known: frozenset[str]) -> str:
    names = {name.lower() for name in (service_tier, speed, geo)}
    return "+".join(sorted(name for name in names if name not in PLAIN_OR_PRICED or (name and name in known)))


class PriceBook:
    """All prices, looked up by provider and model: the exact name, then patterns, then the catalogue's own names."""

    def __init__(self, rates: Iterable[Rate] = (), *, resolve: Resolve = _nothing) -> None:
        self._exact: dict[tuple[str, str], list[Rate]] = {}
        self._patterns: dict[str, list[Rate]] = {}
        self._resolve = resolve
        self._found: dict[tuple[str, str], ModelPrice | None] = {}
        for rate in rates:
            if "*" in rate.model:
                self._patterns.setdefault(rate.provider, []).append(rate)
            else:
                self._exact.setdefault((rate.provider, rate.model), []).append(rate)

    def find(self, provider: str, model: str) -> ModelPrice | None:
        """What is known of a model, None if there is no price row for it under any name."""
        key = (provider, model)
        try:
            return self._found[key]
        except KeyError:
            pass
        if len(self._found) >= CACHED_NAMES:  # names come from clients
            self._found.clear()
        found = self._found[key] = self._look_up(provider, model)
        return found

    def output_rate(self, provider: str, model: str, *, now: float) -> int | None:
        """Nano-dollars for a million output tokens, None if unknown: to tell cheap models from dear ones."""
        price = self.find(provider, model)
        found = price.rate("output_tokens", usage=Usage(), whole_input=0, at=now) if price is not None else None
        return found.rate if found is not None else None

    def _look_up(self, provider: str, model: str) -> ModelPrice | None:
        known = self._resolve(provider, model)
        patterns = [rate for rate in self._patterns.get(provider, ()) if fnmatchcase(model, rate.model)]
        groups = [*_by_owner(self._exact.get((provider, model), []))]
        for pattern in sorted({rate.model for rate in patterns}, key=lambda text: (-len(text), text)):
            groups += _by_owner([rate for rate in patterns if rate.model == pattern])
        if known is not None and (known.provider, known.model) != (provider, model):
            # The provider's own row under the catalogue's id goes before the row of the vendor it resells.
            for owner in dict.fromkeys((provider, known.provider)):
                groups += _by_owner(self._exact.get((owner, known.model), []))
        if not any(groups):
            return None
        layers: dict[tuple[str, str], list[tuple[Rate, ...]]] = {}
        for group in groups:
            for key in dict.fromkeys((rate.meter, rate.tier) for rate in group):
                rows = tuple(rate for rate in group if (rate.meter, rate.tier) == key)
                layers.setdefault(key, []).append(rows)
        tiers = frozenset(tier for _, tier in layers if tier)
        return ModelPrice(
            model=known.model if known is not None else model,
            layers={key: tuple(rows) for key, rows in layers.items()},
            context_window=known.context_window if known is not None else None,
            tiers=tiers,
            windows=tuple(sorted(tier for tier in tiers if WINDOW.match(tier))),
        )


def _by_owner(rates: list[Rate]) -> list[list[Rate]]:
    """A person's rows before the catalogue's."""
    return [[rate for rate in rates if rate.own], [rate for rate in rates if not rate.own]]


def in_window(window: str, at: float) -> bool:
    """Whether a time of day, UTC, lies in "HH:MM-HH:MM", which may run over midnight."""
    parts = WINDOW.match(window)
    if parts is None:
        return False
    moment = datetime.fromtimestamp(at, UTC)
    start, end = int(parts[1]) * 60 + int(parts[2]), int(parts[3]) * 60 + int(parts[4])
    minute = moment.hour * 60 + moment.minute
    return start <= minute < end if start <= end else minute >= start or minute < end


@dataclass(slots=True)
class _Billing:
    usage: Usage
    at: float
    lines: list[Line] = field(default_factory=list)
    rows: set[int] = field(default_factory=set)

    def parted(self, items: list[Quantity], price: ModelPrice | None) -> list[Quantity]:
        """The items with each part that has a rate of its own taken out of its plain count; the others stay in it. Of a
        model without prices all are taken out: a later price decides."""
        found = [item for item in items if not item.within]
        whole_input = self.usage.longest_prompt or _whole_input(found)
        for part in (item for item in items if item.within):
            place = next((at for at, item in enumerate(found) if item.meter == part.within), None)
            if place is None:
                continue
            rate = price and price.rate(part.meter, usage=self.usage, whole_input=whole_input, at=self.at)
            if price is None or rate is not None:
                taken = min(part.quantity, found[place].quantity)
                found[place] = replace(found[place], quantity=found[place].quantity - taken)
                found.append(replace(part, quantity=taken))
        return found

    def add(self, item: Quantity, price: ModelPrice | None, *, whole_input: int) -> None:
        if not item.quantity:
            return
        usage = self.usage
        found = price.rate(item.meter, usage=usage, whole_input=whole_input, at=self.at) if price is not None else None
        if found is not None:
            self.rows.add(found.id)
        self.lines.append(
            Line(
                meter=item.meter,
                quantity=item.quantity,
                model=item.model,
                tier=_special(usage.service_tier),
                speed=_special(usage.speed),
                geo=_special(usage.geo),
                rate=found.rate if found is not None else None,
                cost=line_cost(item.quantity, found.rate) if found is not None else 0,
                price=found.id if found is not None else None,
                run=item.run,
                within=item.within,
            )
        )


def cost(usage: Usage, *, models: Sequence[str], provider: str, book: PriceBook, at: float) -> Bill:
    """Price what a call used. `models` are the names that its model goes by, best first: the first one with prices of
    what was used counts. Thresholds are judged on the whole input of a model run, cached tokens included."""
    name = _name_to_price(usage, models=models, provider=provider, book=book)
    billing = _Billing(usage, at)
    own, runs = _counts(usage, name), [0]
    if usage.extra:
        own += [item for item in usage.extra if not item.run]
        runs = sorted({item.run for item in usage.extra} | {0})
        if any(item.within for item in own):
            own = billing.parted(own, book.find(provider, name))
    for run in runs:
        items = [item for item in usage.extra if item.run == run] if run else own
        whole_input = _whole_input(items)
        if not run and usage.longest_prompt is not None:
            whole_input = min(whole_input, usage.longest_prompt)  # a correction may have left less
        for item in items:
            named = item if item.model else replace(item, model=name)
            billing.add(named, book.find(provider, named.model), whole_input=whole_input)
    lines = billing.lines
    return Bill(
        lines=tuple(lines),
        cost=sum([line.cost for line in lines]),
        unpriced=None in [line.rate for line in lines],
        version=version_of(frozenset(billing.rows)),
    )


def _name_to_price(usage: Usage, *, models: Sequence[str], provider: str, book: PriceBook) -> str:
    """The first name that has a rate for something that was used: a row for web searches alone, which a pattern gives
    to every name, says nothing of what the tokens cost."""
    if len(models) == 2 and models[0] == models[1] and models[0]:
        return models[0]
    known = [(name, price) for name in models if name and (price := book.find(provider, name)) is not None]
    if len(known) > 1 and known[0][0] != known[1][0]:
        used = {item.meter for item in _counts(usage, "")}
        fitting = (name for name, price in known if not used.isdisjoint(price.meters))
        return next(fitting, known[0][0])
    return known[0][0] if known else next((name for name in models if name), "")


def _counts(usage: Usage, model: str) -> list[Quantity]:
    counts = (
        ("input_tokens", usage.input_tokens),
        ("cache_read_input_tokens", usage.cache_read_input_tokens),
        ("cache_creation_5m_input_tokens", usage.cache_creation_5m_input_tokens),
        ("cache_creation_1h_input_tokens", usage.cache_creation_1h_input_tokens),
        ("output_tokens", usage.output_tokens),
    )
    return [Quantity(meter, count, model) for meter, count in counts if count]


def _whole_input(items: Iterable[Quantity]) -> int:
    return sum([item.quantity for item in items if item.meter.endswith("input_tokens")])


@lru_cache(maxsize=1024)
def _special(name: str) -> str:
    return "" if name.lower() in STANDARD else name


@lru_cache(maxsize=1024)
def version_of(rows: frozenset[int]) -> str:
    """Name the price rows that were used: their ids, runs of them as "first-last"."""
    parts: list[list[int]] = []
    for row in sorted(rows):
        if parts and row == parts[-1][1] + 1:
            parts[-1][1] = row
        else:
            parts.append([row, row])
    text = "+".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
    # Each line names its row as well; a version that does not fit is cut at a whole part.
    return text if len(text) <= MAX_VERSION else text[: MAX_VERSION - 3].rpartition("+")[0] + "+.."
