"""What the metrics say of calls that ended."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from relay import metrics
from relay.call import Record


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_every_call_counts_under_its_own_labels() -> None:
    for status, cost in (("ok", 5), ("ok", 7), ("refused", 0)):
        metrics.count(
            Record(
                id="x", created_at=1.0, dialect="d", provider="p", status=status, cost_nanos=cost, output_tokens=cost,
                duration_ms=200,
            )
        )  # fmt: skip
    assert value("baton_calls_total", dialect="d", provider="p", status="ok") == 2
    assert value("baton_calls_total", dialect="d", provider="p", status="refused") == 1
    assert value("baton_cost_nanodollars_total", provider="p") == 12
    assert value("baton_output_tokens_total", provider="p") == 12
    assert value("baton_call_duration_seconds_count", dialect="d") == 3
    assert value("baton_call_duration_seconds_sum", dialect="d") == pytest.approx(0.6)
    buckets = [value("baton_call_duration_seconds_bucket", dialect="d", le=le) for le in ("0.1", "0.3", "1.0", "+Inf")]
    assert buckets == [0, 3, 3, 3]


def test_a_duration_on_a_bound_lies_below_it() -> None:
    metrics.count(Record(id="x", created_at=1.0, dialect="bound", duration_ms=100))
    metrics.count(Record(id="x", created_at=1.0, dialect="bound", duration_ms=1_000_001))
    buckets = [value("baton_call_duration_seconds_bucket", dialect="bound", le=le) for le in ("0.1", "1000.0", "+Inf")]
    assert buckets == [1, 1, 2]
