"""`python -m bench.streams`: many slow streams at once through one relay process: none broken, all booked."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from bench.measure import Target, finished, quantile
from bench.world import LIMITS, BenchError, World, world


def run(options: Any) -> dict[str, Any]:
    """Return the counts of one run: streams whole and broken, records, output tokens."""
    stores = {"database_url": options.database_url, "redis_url": options.redis_url}
    with world(relay=True, limits=options.limits, **stores) as place:
        assert place.relay is not None
        target = Target("baton", place.relay_url, place.keys[options.limits], place.relay, place)
        before, rest = place.relay.cpu(), place.relay.pss()
        report = finished(target.start_load("slow", "closed", clients=options.streams, calls=options.streams))
        peak, used = place.relay.pss(), place.relay.cpu() - before
        target.expect("slow", report["done"])
        target.settle()
        return {
            "streams": options.streams,
            "whole": report["done"],
            "broken": report["failures"],
            "seconds": round(report["seconds"], 2),
            "first_p99_ms": round(quantile(report["first"], 99) * 1e3, 1),
            "cpu_seconds": round(used, 2),
            "pss_mib": {"before": rest // 2**20, "after": peak // 2**20},
            **counts(place, target),
        }


def counts(place: World, target: Target) -> dict[str, Any]:
    records, tokens = place.booked()
    return {"records": records, "output_tokens": tokens, "expected_output_tokens": target.output_tokens}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--limits", type=int, choices=list(LIMITS), default=3)
    parser.add_argument("--database-url", default="")
    parser.add_argument("--redis-url", default="")
    options = parser.parse_args()
    try:
        result = run(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2))
    whole = result["whole"] == result["records"] == result["streams"] and not result["broken"]
    return 0 if whole and result["output_tokens"] == result["expected_output_tokens"] else 1


if __name__ == "__main__":
    sys.exit(main())
