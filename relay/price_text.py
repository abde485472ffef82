"""Prices as people write them: METER=USD_PER_MTOK; what is wrong is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation

from relay.price_catalogue import METERS, NANOS, USUAL_WRITE

# The usage fields, what the catalogue knows beside them, and what OpenAI bills for longer cache writes.
KNOWN_METERS = frozenset(
    {meter for meter, _ in METERS.values()}
    | {meter for meters in USUAL_WRITE.values() for meter in meters}
    | {"cache_creation_12h_input_tokens"}
)
# A vendor's tool that Baton does not know is metered by the vendor's own word.
TOOL_METER = re.compile(r"^[a-z][a-z0-9_]{0,50}_(?:requests|searches|calls)$")
MAX_DOLLARS = Decimal(1_000_000_000)


class PriceTextError(ValueError):
    """What is wrong, in words for the person who wrote it."""


def rates_of(words: Iterable[str]) -> dict[str, int]:
    """Meter -> nano-dollars per million units; raises `PriceTextError`."""
    rates: dict[str, int] = {}
    for word in words:
        meter, sign, number = word.partition("=")
        if not sign:
            raise PriceTextError(f"{word!r} is not METER=USD_PER_MTOK, such as input_tokens=3.")
        if meter not in KNOWN_METERS and not TOOL_METER.match(meter):
            raise PriceTextError(f"meter {meter!r} is unknown; known are {', '.join(sorted(KNOWN_METERS))}.")
        if meter in rates:
            raise PriceTextError(f"meter {meter!r} stands twice.")
        rates[meter] = nanos_of(number, meter=meter)
    return rates


def nanos_of(number: str, *, meter: str) -> int:
    """Dollars per million units, as text, in nano-dollars; raises `PriceTextError`."""
    try:
        dollars = Decimal(number)
    except InvalidOperation:
        raise PriceTextError(f"{meter}={number}: {number!r} is no number of dollars.") from None
    if not dollars.is_finite() or not 0 <= dollars <= MAX_DOLLARS:
        raise PriceTextError(f"{meter}={number}: must be from 0 to {MAX_DOLLARS} dollars per million.")
    nanos = dollars * NANOS
    if nanos != nanos.to_integral_value():
        raise PriceTextError(f"{meter}={number}: finer than a nano-dollar per million units.")
    return int(nanos)


def dollars_of(nanos: int) -> str:
    """Nano-dollars as dollars, exact, without trailing zeros."""
    return f"{Decimal(nanos) / NANOS:f}"
