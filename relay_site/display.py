"""How figures are written for people: exact money, counts, durations, badges. Pure; no queries."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from django.utils.html import format_html
from django.utils.safestring import SafeString

NANOS = 10**9
TONES = ("neutral", "success", "info", "warning", "danger")


def usd_plain(nanos: int) -> str:
    """Return nano-dollars as an exact decimal of US dollars with nine places, for files: 0.004215000."""
    sign, rest = ("-", -nanos) if nanos < 0 else ("", nanos)
    return f"{sign}{rest // NANOS}.{rest % NANOS:09d}"


def usd(nanos: int | None) -> str:
    """Return nano-dollars as exact US dollars, at least two places, no trailing zeros beyond: $1,234.504215."""
    if nanos is None:
        return "-"
    sign, rest = ("-", -nanos) if nanos < 0 else ("", nanos)
    fraction = f"{rest % NANOS:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${rest // NANOS:,}.{fraction}"


def usd_short(nanos: int) -> str:
    """Return nano-dollars rounded for a glance: $12.3K, $81.02, $0.0042."""
    dollars = abs(nanos) / NANOS
    sign = "-" if nanos < 0 else ""
    if dollars >= 10_000:
        return f"{sign}${short(round(dollars))}"
    if dollars >= 0.1 or not dollars:
        return f"{sign}${dollars:,.2f}"
    return f"{sign}${dollars:.4f}" if dollars >= 0.0001 else f"{sign}<$0.0001"


def nanos_of(dollars: Decimal) -> int:
    """Return US dollars as nano-dollars; raises `ValueError` where that is no whole number of them."""
    if not dollars.is_finite() or dollars.adjusted() > 9:
        raise ValueError("no amount of money that Baton could count")
    exact = Fraction(dollars) * NANOS
    if exact.denominator != 1:
        raise ValueError("finer than a nano-dollar")
    return exact.numerator


def count(number: int | None) -> str:
    """Return a whole number with separators; None (not reported) is a dash."""
    return "-" if number is None else f"{number:,}"


def short(number: int) -> str:
    """Return a whole number rounded for a glance: 950, 12.3K, 4.5M."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if abs(number) >= size:
            return f"{number / size:.1f}".removesuffix(".0") + unit
    return str(number)


def milliseconds(number: int | float | None) -> str:
    """Return milliseconds in the unit that reads best: 812 ms, 1.24 s, 125 s, 7 min."""
    if number is None:
        return "-"
    if number < 1000:
        return f"{number:.0f} ms"
    if number < 60_000:
        return f"{number / 1000:.2f}".rstrip("0").rstrip(".") + " s"
    return time_left(number / 1000)


def time_left(seconds: float) -> str:
    """Return a duration in at most two units: 212 s, 35 min, 3 h 20 min, 2 d 4 h."""
    whole = max(0, round(seconds))
    if whole < 300:
        return f"{whole} s" if whole < 120 or whole % 60 else f"{whole // 60} min"
    minutes = round(whole / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def badge(text: str, tone: str = "neutral", *, title: str = "") -> SafeString:
    """Return a coloured label; `tone` is one of TONES."""
    if tone not in TONES:
        raise ValueError(f"{tone!r} is none of {TONES}")
    return format_html('<span class="b-badge b-{}" title="{}">{}</span>', tone, title, text)
