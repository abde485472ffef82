"""Price rows: the snapshot that relays price by, their first seed, and their updates. Rows are ended, never changed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django.db import models, transaction

from relay import price_catalogue
from relay.models import Price
from relay.price_catalogue import EPOCH, SOURCE, Listed
from relay.price_text import dollars_of
from relay.pricing import PriceBook, Rate

Key = tuple[str, str, str, str, int]
CHUNK = 1000


def load_prices() -> PriceBook:
    """All price rows, past ones included: a call is priced as of its own time."""
    price_catalogue.preload()
    columns = ("id", "provider", "model", "meter", "rate", "tier", "above_tokens", "valid_from", "valid_to", "source")
    rows = Price.objects.values_list(*columns).iterator(chunk_size=CHUNK)
    return PriceBook((_rate(*row) for row in rows), resolve=price_catalogue.resolve)


def _rate(*row: Any) -> Rate:
    row_id, provider, model, meter, rate, tier, above, start, end, source = row
    return Rate(
        id=row_id,
        provider=provider,
        model=model,
        meter=meter,
        rate=rate,
        tier=tier,
        above=above,
        start=start.timestamp(),
        end=end.timestamp() if end is not None else math.inf,
        own=not source.startswith(SOURCE),
    )


def rows_of(listed: Iterable[Listed], model: type[Any] = Price) -> Iterator[Any]:
    """Unsaved rows; `model` is the historical one in a migration."""
    source = price_catalogue.catalogue_version()
    for item in listed:
        yield model(
            provider=item.provider,
            model=item.model,
            meter=item.meter,
            tier=item.tier,
            above_tokens=item.above,
            rate=item.rate,
            valid_from=item.start,
            valid_to=item.end,
            source=source,
        )


@dataclass
class Changes:
    """What an update did, each item as "provider model meter [tier] [above]: old -> new" in dollars per million."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    # Models that the catalogue no longer has keep their prices; somebody may still call them.
    gone: list[str] = field(default_factory=list)
    # A person's own row is in force and differs from the catalogue.
    overridden: list[str] = field(default_factory=list)


@transaction.atomic
def sync(*, now: datetime, listed: Sequence[Listed] | None = None) -> Changes:
    """Bring the catalogue's rows up to what the installed package says, from `now` on. The past stays as it was
    booked, and so do rows of any other source."""
    wanted: dict[Key, list[Listed]] = defaultdict(list)
    for item in price_catalogue.listed() if listed is None else listed:
        wanted[item.key].append(item)
    have: dict[Key, list[Price]] = defaultdict(list)
    own: dict[Key, list[Price]] = defaultdict(list)
    for row in Price.objects.order_by("valid_from", "id"):
        (have if row.source.startswith(SOURCE) else own)[_key(row)].append(row)
    known = {key[:2] for key in wanted}
    changes = Changes()
    fresh: list[Listed] = []
    over: list[Price] = []
    for key in {**have, **wanted}:
        if key[:2] not in known:
            changes.gone.append(f"{key[0]} {key[1]}")
            continue
        fresh += _update(wanted[key], have[key], over, changes, now=now)
        changes.overridden += _overridden(key, wanted[key], own[key], now=now)
    Price.objects.bulk_update(over, ["valid_to"], batch_size=CHUNK)
    Price.objects.bulk_create(list(rows_of(fresh)), batch_size=CHUNK)
    changes.gone = sorted(set(changes.gone))
    return changes


def _update(
    wanted: Sequence[Listed], have: Sequence[Price], over: list[Price], changes: Changes, *, now: datetime
) -> list[Listed]:
    """End what no longer holds (into `over`), return what begins."""
    ahead = [(max(item.start, now), item.end, item.rate) for item in wanted if item.end is None or item.end > now]
    held = [row for row in have if row.valid_to is None or row.valid_to > max(now, row.valid_from)]
    if [(max(row.valid_from, now), row.valid_to, row.rate) for row in held] == ahead:
        return []
    if not have:
        changes.added += [f"{_name(item.key)}: {dollars_of(item.rate)}" for item in wanted]
        return list(wanted)
    for row in held:
        row.valid_to = max(now, row.valid_from)
        over.append(row)
    before = ", ".join(dollars_of(row.rate) for row in held) or "none"
    after = ", ".join(dollars_of(rate) for _, _, rate in ahead)
    (changes.changed if ahead else changes.ended).append(f"{_name(_key(have[0]))}: {before} -> {after or 'none'}")
    return [
        Listed(*item.key, rate=rate, start=start, end=end)
        for item, (start, end, rate) in zip(
            [item for item in wanted if item.end is None or item.end > now], ahead, strict=True
        )
    ]


def _overridden(key: Key, wanted: Sequence[Listed], own: Sequence[Price], *, now: datetime) -> list[str]:
    """The catalogue's rate and a person's, where both are in force and differ."""
    rates = [item.rate for item in wanted if item.start <= now and (item.end is None or now < item.end)]
    held = [row.rate for row in own if row.valid_from <= now and (row.valid_to is None or now < row.valid_to)]
    if not rates or not held or rates[-1] == held[-1]:
        return []
    return [f"{_name(key)}: {dollars_of(rates[-1])} listed, {dollars_of(held[-1])} in force"]


def _key(row: Price) -> Key:
    return (row.provider, row.model, row.meter, row.tier, row.above_tokens)


def _name(key: Key) -> str:
    provider, model, meter, tier, above = key
    return " ".join([provider, model, meter, *([tier] if tier else []), *([f"above {above}"] if above else [])])


@transaction.atomic
def set_rates(
    provider: str,
    model: str,
    rates: dict[str, int],
    *,
    start: datetime | None,
    tier: str = "",
    above: int = 0,
    author: str = "",
    source: str = "admin",
) -> list[Price]:
    """Add a person's own rates (nano-dollars per million units), in force from `start`; return the new rows.

    Without `start` from now on, or, where no price of this meter was ever set, from the beginning: calls that were
    booked `unpriced` are then priced as well. Own rows that were in force end where these begin.
    """
    tier = "+".join(sorted(tier.split("+")))
    made = []
    for meter, rate in rates.items():
        rows = Price.objects.filter(provider=provider, model=model, meter=meter, tier=tier, above_tokens=above)
        begin = start or (datetime.now(UTC) if rows.exists() or _listed(provider, model, meter) else EPOCH)
        row = Price(provider=provider, model=model, meter=meter, tier=tier, above_tokens=above, rate=rate)
        row.valid_from, row.valid_to = begin, _make_room(rows.exclude(source__startswith=SOURCE), begin)
        row.source, row.approved_by = source, author
        row.save()
        made.append(row)
    return made


def _listed(provider: str, model: str, meter: str) -> bool:
    """Whether the catalogue prices this meter, perhaps under another name of the model."""
    known = price_catalogue.resolve(provider, model)
    return known is not None and Price.objects.filter(provider=known.provider, model=known.model, meter=meter).exists()


def _make_room(rows: models.QuerySet[Price], begin: datetime) -> datetime | None:
    """End the rows that are in force at `begin`; return when the next one starts."""
    rows.filter(models.Q(valid_to=None) | models.Q(valid_to__gt=begin), valid_from__lte=begin).update(valid_to=begin)
    later = rows.filter(valid_from__gt=begin).order_by("valid_from").first()
    return later.valid_from if later is not None else None
