"""The figures as a table, beside the budget of docs/performance.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Figures = dict[str, dict[str, dict[str, float]]]  # target -> measurement -> figure -> value


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a figure of Baton's, or the difference to the upstream alone where `added`."""

    label: str
    measurement: str
    figure: str
    unit: str
    budget: float | None = None
    scale: float = 1
    added: bool = False


ROWS = (
    Row("calls/s, saturated", "json", "calls_per_second", "1/s"),
    Row("CPU per call, saturated", "json", "cpu_us_per_call", "ms", budget=1.0, scale=1e-3),
    Row("calls/s, burst of 50 deltas", "burst", "calls_per_second", "1/s"),
    Row("CPU per stream, burst of 50", "burst", "cpu_us_per_call", "ms", scale=1e-3),
    Row("CPU per stream, 50 paced", "p50", "cpu_us_per_call", "ms", scale=1e-3),
    Row("CPU per event, 50 paced", "p50", "cpu_us_per_event", "us"),
    Row("CPU per stream, 500 paced", "p500", "cpu_us_per_call", "ms", scale=1e-3),
    Row("CPU per event, 500 paced", "p500", "cpu_us_per_event", "us", budget=60),
    Row("added latency p50, 20 calls/s", "light", "total_p50_ms", "ms", budget=2, added=True),
    Row("added latency p99, 20 calls/s", "light", "total_p99_ms", "ms", budget=6, added=True),
    Row("CPU per call, 20 calls/s", "light", "cpu_us_per_call", "ms", scale=1e-3),
    Row("added time to first token p50", "light-stream", "first_p50_ms", "ms", budget=2, added=True),
    Row("added time to first token p99", "light-stream", "first_p99_ms", "ms", added=True),
    Row("memory per idle stream, 1,000 open", "memory", "pss_bytes_per_stream", "KiB", budget=40, scale=1 / 1024),
    Row("memory before", "memory", "pss_mib", "MiB"),
    Row("client left -> upstream closed, max", "leave", "max_ms", "ms", budget=50),
    Row("client reset -> upstream closed, max", "leave-reset", "max_ms", "ms", budget=50),
    Row("same, before any headers, max", "leave-early", "max_ms", "ms", budget=50),
)


def render(report: dict[str, Any]) -> str:
    """Return the report as text."""
    figures: Figures = report["figures"]
    lines = [
        f"Python {report['python']}, database {report['database']}, state {report['state']}, "
        f"{report['limits']} limits on the key",
        *(f"machine {moment} the run: {state(report['machine'][moment])}" for moment in ("before", "after")),
        "",
        f"{'':<38}{'upstream':>10}{'Baton':>10}{'budget':>10}",
    ]
    lines += [line(row, figures) for row in ROWS if row.measurement in figures["upstream"]]
    if "booked" in report:
        booked = report["booked"]
        verdict = "all" if booked["ok"] else "NOT ALL"
        lines += ["", f"{verdict} calls booked: {booked['records']} records of {booked['calls']} calls,"]
        lines.append(f"{booked['output_tokens']} output tokens of {booked['expected_output_tokens']}")
    return "\n".join(lines)


def state(machine: dict[str, float]) -> str:
    sync = f"fdatasync p50 {machine['sync_p50_ms']:.2f} ms, p99 {machine['sync_p99_ms']:.2f} ms"
    return f"load {machine['load']:.1f} on {machine['cores']:.0f} cores, {sync}"


def line(row: Row, figures: Figures) -> str:
    direct = value(row, figures["upstream"])
    relayed = value(row, figures["baton"]) if "baton" in figures else None
    if relayed is not None and row.added and direct is not None:
        relayed -= direct
    over = relayed is not None and row.budget is not None and relayed > row.budget
    budget = "" if row.budget is None else f"<= {row.budget:g}"
    return (
        f"{row.label + ', ' + row.unit:<38}{text(direct):>10}{text(relayed):>10}{budget:>10}{'  OVER' if over else ''}"
    )


def value(row: Row, measured: dict[str, dict[str, float]]) -> float | None:
    figure = measured.get(row.measurement, {}).get(row.figure)
    return None if figure is None else figure * row.scale


def text(figure: float | None) -> str:
    if figure is None:
        return ""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}"
