"""From an answer to the figures of its record, exact to the nano-dollar; from a request to what it may use at most."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from relay import price_catalogue
from relay.call import Call, Demand, Endpoint, Key, Outcome, Record, Usage, UsageSource, new_call_id
from relay.dialects import DIALECTS
from relay.metering import book, demand
from relay.pricing import PriceBook, Rate, cost, version_of
from tests.dialects.case import outcome_of, whole_outcome
from tests.providers.case import fixture

NOW = 1_795_348_800.0  # 2026-11-22 12:00 UTC
MESSAGES = Endpoint("messages", "anthropic")
DIALECT = DIALECTS["anthropic"]
PRICES = PriceBook(
    (
        Rate(number, item.provider, item.model, item.meter, item.rate, item.tier, item.above)
        for number, item in enumerate(price_catalogue.listed(), start=1)
        if item.end is None and item.provider in {"anthropic", "aws"}
    ),
    resolve=price_catalogue.resolve,
)


def booked(outcome: Outcome, *, model: str = "claude-sonnet-5-5", provider: str = "anthropic", **more: Any) -> Record:
    record = Record(id=new_call_id(NOW), created_at=NOW, upstream_model=model)
    book(record, outcome, prices=PRICES, provider=provider, now=NOW, **more)
    return record


# Sonnet 5.5: 2, cached 0.1, written 2.5 and 4, out 10; Opus 5.5: 4, 0.2, 5, 8, 20 dollars per million.
@pytest.mark.parametrize(
    ("name", "nanos"),
    [
        ("text.sse", 25 * 2000 + 21 * 10_000),
        ("cache_in_start.sse", 12 * 2000 + 9000 * 100 + 300 * 2500 + 40 * 4000 + 15 * 10_000),
        ("cache_grows.sse", 20 * 2000 + 18_000 * 100 + 140 * 4000 + 15 * 10_000),
        ("delta_reports_zero.sse", 9312 * 2000 + 15 * 10_000),
        ("thinking.sse", 60 * 2000 + 310 * 10_000),
        ("tools.sse", 472 * 2000 + 89 * 10_000),
        ("web_search.sse", 10_682 * 2000 + 510 * 10_000 + 2 * 10_000_000),
        (
            "compaction_advisor.sse",
            (45 * 2000 + 100 * 100 + 12 * 10_000)  # the totals
            + (180_000 * 2000 + 7 * 4000 + 3500 * 10_000)  # compaction, at the call's model
            + (823 * 4000 + 50 * 200 + 1612 * 20_000),  # the advisor, at its own
        ),
        # Opus 4.8 answered at 5 and 25; Fable 5.2 had begun at 8 and 40
        ("fallback.sse", 110 * 5000 + 9 * 25_000 + 106 * 8000 + 4 * 40_000),
        # twice for speed, 1.1 times for the place
        ("fast_in_the_us.sse", 1000 * 8800 + 100 * 44_000),
        ("cut.sse", 2000 * 2000 + 500 * 100 + 21 * 10_000),
        ("cut_before_content.sse", 2000 * 2000),
        ("error_after_content.sse", 40 * 2000 + 4 * 10_000),
        ("error_first.sse", 0),
    ],
)
def test_a_stream_costs_exactly(name: str, nanos: int) -> None:
    record = booked(outcome_of(DIALECT, MESSAGES, f"anthropic/{name}"), model="claude-opus-5-5")
    assert (record.cost_nanos, record.unpriced) == (nanos, False)
    assert sum(line.cost for line in record.lines) == nanos


def test_the_record_carries_counts_source_lines_and_the_objects_as_they_came() -> None:
    record = booked(outcome_of(DIALECT, MESSAGES, "anthropic/cut.sse"))
    assert (record.usage_source, record.input_tokens, record.cache_read_input_tokens) == ("partial", 2000, 500)
    assert (record.output_tokens, record.reasoning_tokens) == (21, None)
    assert (record.response_model, record.service_tier) == ("claude-sonnet-5-5-20260901", "standard")
    assert json.loads(record.provider_usage)["message_start"]["output_tokens"] == 8
    assert [(line.meter, line.quantity, line.rate) for line in record.lines] == [
        ("input_tokens", 2000, 2_000_000_000),
        ("cache_read_input_tokens", 500, 100_000_000),
        ("output_tokens", 21, 10_000_000_000),
    ]
    assert record.price_version == version_of(frozenset(line.price for line in record.lines if line.price is not None))


def test_booking_again_replaces_what_was_booked() -> None:
    record = booked(outcome_of(DIALECT, MESSAGES, "anthropic/refusal.sse"))
    once = (record.cost_nanos, list(record.lines), list(record.flags))
    book(record, outcome_of(DIALECT, MESSAGES, "anthropic/refusal.sse"), prices=PRICES, provider="anthropic", now=NOW)
    assert (record.cost_nanos, record.lines, record.flags) == once


def test_an_unknown_model_is_unpriced_and_keeps_its_counts() -> None:
    record = booked(outcome_of(DIALECT, MESSAGES, "anthropic/cache_in_delta.sse"), model="kimi-k2")
    assert (record.unpriced, record.cost_nanos, record.price_version) == (True, 0, "")
    assert (record.input_tokens, record.cache_read_input_tokens, record.output_tokens) == (12, 9000, 15)


def test_counting_tokens_costs_nothing() -> None:
    endpoint = Endpoint("count_tokens", "anthropic", metered=False)
    record = booked(whole_outcome(DIALECT, endpoint, b'{"input_tokens":14}'))
    assert (record.cost_nanos, record.lines, record.usage_source, record.unpriced) == (0, [], "none", False)


@pytest.mark.parametrize(
    ("response", "upstream", "input_rate"),
    [
        # the region stands only in what was asked for
        ("claude-sonnet-5-5", "global.anthropic.claude-sonnet-5-5", 2_000_000_000),
        ("claude-sonnet-5-5", "us.anthropic.claude-sonnet-5-5", 2_200_000_000),
        # a deployment's name says nothing, what answered does
        ("claude-sonnet-5-5", "our-deployment", 2_200_000_000),
        ("something-new", "us.anthropic.claude-sonnet-5-5", 2_200_000_000),
    ],
)
def test_the_price_is_that_of_what_answered_where_it_was_asked(response: str, upstream: str, input_rate: int) -> None:
    outcome = Outcome(Usage(input_tokens=1), UsageSource.PROVIDER, response_model=response)
    assert booked(outcome, model=upstream, provider="aws").lines[0].rate == input_rate


def test_an_input_that_nobody_reported_is_estimated_from_the_request() -> None:
    outcome = outcome_of(DIALECT, MESSAGES, "anthropic/no_usage.sse")
    assert booked(outcome, request_bytes=400).input_tokens == 100
    assert booked(outcome).input_tokens is None
    reported = outcome_of(DIALECT, MESSAGES, "anthropic/cut.sse")
    assert booked(reported, request_bytes=400).input_tokens == 2000


# --- what a call may use ----------------------------------------------------------------------------


def call(body: dict[str, Any], *, endpoint: Endpoint = MESSAGES) -> Call:
    raw = json.dumps({"messages": [{"role": "user", "content": "Hi"}], **body}).encode()
    envelope = DIALECT.read_envelope(raw, headers={})
    key = Key(id=1, name="k", public_id="p", digest=b"")
    return Call(new_call_id(NOW), NOW, key, endpoint, envelope, "POST", "messages", "", (), raw)


def wanted(body: dict[str, Any], *, prices: PriceBook = PRICES, provider: str = "anthropic") -> tuple[Call, Demand]:
    made = call(body)
    return made, demand(made, prices=prices, provider=provider, model=made.envelope.model)


# Sonnet 5.5 in the US, where a workspace's calls may go unasked: in 2.2, written 2.75 and 4.4, out 11 dollars
@pytest.mark.parametrize(
    ("cached", "rate"),
    [(None, 2200), ({"type": "ephemeral"}, 2750), ({"type": "ephemeral", "ttl": "1h"}, 4400)],
)
def test_the_worst_case_is_every_byte_a_token_at_the_dearest_rate_that_could_apply(cached: Any, rate: int) -> None:
    cache_control = {"cache_control": cached} if cached else {}
    made, asked = wanted({"model": "claude-sonnet-5-5", "max_tokens": 1000, **cache_control})
    size = len(made.body)
    assert (asked.tokens, asked.worst_tokens, asked.unbounded) == (size // 4, size + 1000, "")
    assert size * rate + 1000 * 11_000 <= asked.worst_cost <= size * rate + 1000 * 11_000 + 10
    assert asked.cost == size // 4 * 2000


def test_fast_mode_makes_the_worst_case_dearer_only_where_it_is_asked_for() -> None:
    plain = wanted({"model": "claude-opus-5-5", "max_tokens": 1000})[1].worst_cost
    fast = wanted({"model": "claude-opus-5-5", "max_tokens": 1000, "speed": "fast"})[1].worst_cost
    assert plain * 2 <= fast <= plain * 2 + 18 * 8800


def test_a_threshold_counts_only_where_the_body_can_reach_it() -> None:
    short = wanted({"model": "claude-haiku-5-5", "max_tokens": 1000})[1]
    made, long = wanted({"model": "claude-haiku-5-5", "max_tokens": 1000, "system": "x" * 100_001})
    assert short.worst_cost < 1000 * 550 * 1.2
    assert long.worst_cost >= len(made.body) * 550 + 1000 * 2750


def test_images_are_bound_by_the_context_window() -> None:
    content = [{"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}]
    body = {"model": "claude-haiku-4-5", "max_tokens": 10, "messages": [{"role": "user", "content": content}]}
    assert wanted(body)[1].worst_tokens == 200_000 + 10


def test_a_maximum_beyond_the_context_window_is_the_window() -> None:
    made, asked = wanted({"model": "claude-haiku-4-5", "max_tokens": 10**30})
    assert asked.worst_tokens == len(made.body) + 200_000


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"model": "claude-sonnet-5-5", "max_tokens": 9, "mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"model": "claude-sonnet-5-5", "max_tokens": 9, "tools": [{"type": "web_search_20250305"}]}, "tools"),
        ({"model": "nobodys-model", "max_tokens": 9}, "model"),
        ({"model": "nobodys-model"}, "max_tokens"),
    ],
)
def test_what_can_not_be_bounded_or_priced_is_named(body: dict[str, Any], said: str) -> None:
    assert wanted(body)[1].unbounded.startswith(said)


def test_counting_tokens_asks_for_nothing() -> None:
    made = call({"model": "claude-sonnet-5-5"}, endpoint=Endpoint("count_tokens", "anthropic", metered=False))
    assert demand(made, prices=PRICES, provider="anthropic", model="claude-sonnet-5-5") == Demand(0, 0, 0, 0)


@given(
    st.sampled_from(["claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-4-8", "claude-haiku-4-5"]),
    st.integers(0, 2000),
    st.integers(0, 300_000),
    st.data(),
)
def test_no_bill_exceeds_the_worst_case(model: str, most: int, padding: int, data: st.DataObject) -> None:
    cached = data.draw(st.sampled_from([{}, {"cache_control": {"type": "ephemeral", "ttl": "1h"}}]))
    made, asked = wanted({"model": model, "max_tokens": most, "system": "x" * padding, **cached})
    cuts = sorted(data.draw(st.integers(0, len(made.body))) for _ in range(3))
    parts = [end - start for start, end in zip([0, *cuts], [*cuts, len(made.body)], strict=True)]
    parts[2:] = parts[2:] if cached else [0, 0]
    plain, read, five, hour = parts
    usage = Usage(plain, read, five, hour, data.draw(st.integers(0, most)), geo=data.draw(st.sampled_from(["", "us"])))
    bill = cost(usage, models=(model,), provider="anthropic", book=PRICES, at=NOW)
    assert bill.unpriced or bill.cost <= asked.worst_cost
    assert bill.unpriced == (usage.geo == "us" and model == "claude-haiku-4-5" and bool(bill.lines))


def test_an_estimate_is_made_without_a_price_too() -> None:
    made, asked = wanted({"model": "nobodys-model", "max_tokens": 5})
    assert (asked.tokens, asked.cost) == (len(made.body) // 4, 0)
    assert replace(asked, unbounded="") != asked


def test_the_recorded_request_of_claude_code_can_be_bounded() -> None:
    recorded = json.loads(fixture("anthropic/claude_code_request.json"))
    asked = wanted(recorded["body"])[1]
    assert asked.unbounded == ""
    assert asked.worst_tokens > 128_000
