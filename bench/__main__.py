"""`python -m bench`: measures the upstream itself and Baton in front of it, in one run."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from typing import Any

from bench.measure import FULL, QUICK, Size, Target, leaving, light, machine, median_of, memory, throughput
from bench.report import render
from bench.world import LIMITS, BenchError, World, world

Figures = dict[str, float]
MEASUREMENTS: dict[str, Callable[[Target, Size], Figures]] = {
    "json": lambda target, size: throughput(target, "json", clients=16, calls=size.json),
    "burst": lambda target, size: throughput(target, "burst", clients=16, calls=size.burst),
    "p50": lambda target, size: throughput(target, "p50", clients=12, calls=size.p50),
    "p500": lambda target, size: throughput(target, "p500", clients=12, calls=size.p500),
    "light": lambda target, size: light(target, "json", seconds=size.seconds),
    "light-stream": lambda target, size: light(target, "burst", seconds=size.seconds),
    "memory": lambda target, size: memory(target),
    "leave": lambda target, size: leaving(target, "idle", how="close"),
    "leave-reset": lambda target, size: leaving(target, "idle", how="reset"),
    "leave-early": lambda target, size: leaving(target, "silent", how="close"),
}
# Once is enough where the figure itself comes from many.
ONCE = {"memory", "leave", "leave-reset", "leave-early"}


def measure(targets: list[Target], *, names: list[str], size: Size) -> dict[str, dict[str, Figures]]:
    """Return target -> measurement -> figures; rounds are interleaved, so that a slow minute hits all targets."""
    results: dict[str, dict[str, Figures]] = {target.name: {} for target in targets}
    for name in names:
        rounds: dict[str, list[Figures]] = {target.name: [] for target in targets}
        for _ in range(1 if name in ONCE else size.rounds):
            for target in targets:
                print(f"{name} on {target.name} ...", file=sys.stderr)
                rounds[target.name].append(MEASUREMENTS[name](target, size))
        for target in targets:
            results[target.name][name] = median_of(rounds[target.name])
    return results


def run(options: Any) -> dict[str, Any]:
    size = QUICK if options.quick else FULL
    names = options.only.split(",") if options.only else list(MEASUREMENTS)
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        raise BenchError(f"unknown measurement {unknown[0]!r}; known: {', '.join(MEASUREMENTS)}")
    stores = {"database_url": options.database_url, "redis_url": options.redis_url}
    with world(relay=not options.direct, limits=options.limits, **stores) as place:
        direct = Target("upstream", place.upstream_url, "sk-ant-bench", place.upstream, place)
        relayed = place.relay and Target("baton", place.relay_url, place.keys[options.limits], place.relay, place)
        targets = [direct, relayed] if relayed else [direct]
        before = machine(place.folder)
        results = measure(targets, names=names, size=size)
        report: dict[str, Any] = {
            "python": platform.python_version(),
            "database": options.database_url.partition(":")[0] or "sqlite",
            "state": "redis" if options.redis_url else "memory",
            "limits": options.limits,
            "machine": {"before": before, "after": machine(place.folder)},
            "figures": results,
        }
        if relayed:
            report["booked"] = booked(place, relayed)
        return report


def booked(place: World, relayed: Target) -> dict[str, Any]:
    """Return what was called and what was recorded; `ok` says that both are the same to the last token."""
    records, tokens = place.booked()
    same = (records, tokens) == (relayed.calls, relayed.output_tokens)
    made = {"calls": relayed.calls, "expected_output_tokens": relayed.output_tokens}
    return {"ok": same, **made, "records": records, "output_tokens": tokens}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default="", help=f"comma-separated, of: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--direct", action="store_true", help="the upstream alone, without Baton")
    parser.add_argument("--limits", type=int, choices=list(LIMITS), default=3, help="limits of the key")
    parser.add_argument("--database-url", default="", help="a database of its own; default: a fresh SQLite file")
    parser.add_argument("--redis-url", default="", help="default: state in memory")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    try:
        report = run(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2) if options.json else render(report))
    return 0 if report.get("booked", {}).get("ok", True) else 1


if __name__ == "__main__":
    sys.exit(main())
