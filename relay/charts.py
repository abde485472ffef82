"""Charts as geometry: figures in, percentages out; templates/baton/chart.html draws them as SVG. Pure.

The plot is stretched to the page's width; labels are text beside it, so that they stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

WIDTH, HEIGHT = 1000.0, 100.0
COLOURS = 8  # .b-fill-1 to -8; 9 is grey, for what is left over
LEFT_OVER = COLOURS + 1
LABELS = 6


@dataclass(frozen=True, slots=True)
class Series:
    """One colour of a chart; None = nothing known there (a gap in a curve, no bar)."""

    name: str
    values: tuple[float | None, ...]
    colour: int = 1
    link: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    colour: int


@dataclass(frozen=True, slots=True)
class Slot:
    """One step of the x-axis: what hovering says, where a click leads, and the bars that stand there."""

    x: float
    width: float
    title: str
    link: str
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    colour: int
    points: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A label at a share of the axis, in per cent; `minor` ones are left out where there is little room."""

    at: float
    text: str
    minor: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    slots: tuple[Slot, ...]
    curves: tuple[Curve, ...]
    ticks: tuple[Mark, ...]
    marks: tuple[Mark, ...]
    series: tuple[Series, ...]
    empty: bool


def bars(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    said: Callable[[float], str],
    links: Sequence[str] = (),
) -> Chart:
    """Return stacked bars, one slot a label; `said` writes a figure with its unit."""
    totals = [sum(one.values[index] or 0 for one in series) for index in range(len(labels))]
    top = ceiling(max(totals, default=0))
    step = WIDTH / max(1, len(labels))
    slots = []
    for index, label in enumerate(labels):
        stack, floor = [], HEIGHT
        for one in series:
            height = HEIGHT * (one.values[index] or 0) / top
            if height > 0:
                floor -= height
                stack.append(Bar(index * step + step * 0.12, floor, step * 0.76, height, one.colour))
        parts = [f"{one.name}: {said(one.values[index] or 0)}" for one in series if one.values[index]]
        text = "\n".join([f"{label}: {said(totals[index])}", *(parts if len(series) > 1 else [])])
        slots.append(Slot(index * step, step, text, links[index] if links else "", tuple(stack)))
    return chart(title, labels, series, slots=slots, curves=(), top=top, said=said, empty=not any(totals))


def curves(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    said: Callable[[float], str],
    links: Sequence[str] = (),
) -> Chart:
    """Return one curve a series, broken where nothing is known."""
    known = [value for one in series for value in one.values if value is not None]
    top = ceiling(max(known, default=0))
    step = WIDTH / max(1, len(labels))
    drawn = [Curve(one.colour, points) for one in series for points in polylines(one.values, step=step, top=top)]
    slots = []
    for index, label in enumerate(labels):
        parts = [f"{one.name}: {said(value)}" for one in series if (value := one.values[index]) is not None]
        text = "\n".join([label, *(parts or ["no calls"])])
        slots.append(Slot(index * step, step, text, links[index] if links else ""))
    return chart(title, labels, series, slots=slots, curves=tuple(drawn), top=top, said=said, empty=not known)


def polylines(values: Sequence[float | None], *, step: float, top: float) -> list[str]:
    """Return the runs of known values as SVG points; a lone value becomes a short dash, so that it can be seen."""
    runs = []
    for known, group in groupby(enumerate(values), key=lambda pair: pair[1] is not None):
        if not known:
            continue
        points = [((index + 0.5) * step, HEIGHT * (1 - (value or 0) / top)) for index, value in group]
        if len(points) == 1:
            (x, y) = points[0]
            points = [(x - step * 0.2, y), (x + step * 0.2, y)]
        runs.append(" ".join(f"{x:.1f},{y:.2f}" for x, y in points))
    return runs


def chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    slots: Sequence[Slot],
    curves: tuple[Curve, ...],
    top: float,
    said: Callable[[float], str],
    empty: bool,
) -> Chart:
    ticks = tuple(Mark(100 * (1 - share), said(top * share)) for share in (0.0, 0.5, 1.0))
    return Chart(title, tuple(slots), curves, ticks, tuple(spread(labels)), tuple(series), empty)


def spread(labels: Sequence[str]) -> list[Mark]:
    """Return at most LABELS of the labels, evenly spread, every second one minor."""
    every = max(1, -(-len(labels) // LABELS))
    chosen = range(0, len(labels), every)
    return [
        Mark(100 * (index + 0.5) / len(labels), labels[index], minor=order % 2 == 1)
        for order, index in enumerate(chosen)
    ]


def ceiling(value: float) -> float:
    """Return the next round number at or above the value; 1 for nothing, so that an empty chart has an axis."""
    if value <= 0:
        return 1.0
    size: float = 10.0 ** math.floor(math.log10(value))
    # A rounding slip of the logarithm is caught by the greatest of them.
    return next(size * part for part in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10, 100) if size * part >= value)


def coloured(names: Sequence[str]) -> dict[str, int]:
    """Return a colour for each of the names, in their order; those beyond the palette share the grey one."""
    return {name: min(index + 1, LEFT_OVER) for index, name in enumerate(names)}
