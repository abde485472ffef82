"""Figures in templates, written as `relay_site.display` writes them."""

from __future__ import annotations

from django import template

from relay_site import display

register = template.Library()

register.filter("usd", display.usd)
register.filter("usd_short", display.usd_short)
register.filter("count", display.count)
register.filter("short", display.short)
register.filter("milliseconds", display.milliseconds)
register.filter("time_left", display.time_left)


@register.filter
def css(number: float) -> str:
    """A number as CSS and SVG read it, whatever the locale."""
    return f"{number:.2f}"
