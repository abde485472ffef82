"""From what a meter saw to the figures of a record, and from a request to what it may use at most."""

from __future__ import annotations

import math

from msgspec.structs import replace

from relay.call import Call, Demand, Envelope, Outcome, Record, Usage, UsageSource
from relay.dialects import DIALECTS
from relay.pricing import UNITS, ModelPrice, PriceBook, cost

BYTES_PER_TOKEN = 4
ESTIMATES = frozenset({UsageSource.PARTIAL, UsageSource.ESTIMATED})
# A bound is one line, the bill may be several, each rounded to the nearest nano-dollar.
ROUNDING_SLACK = 8


def book(
    record: Record,
    outcome: Outcome,
    *,
    prices: PriceBook,
    provider: str,
    now: float,
    request_bytes: int = 0,
    place: str = "",
) -> None:
    """Fill counts, lines, cost and where they come from. May be asked again: it replaces what it had filled.

    Prices are those of the call's start. `request_bytes` stands in for an input that nobody reported, `place` for one
    that sets the price and that no answer tells.
    """
    usage = _with_estimated_input(outcome, request_bytes)
    usage = replace(usage, geo=place) if place else usage
    bill = cost(
        usage,
        models=names_of(outcome.response_model, record.upstream_model),
        provider=provider,
        book=prices,
        at=record.created_at,
    )
    record.usage_source = outcome.source
    record.input_tokens = usage.input_tokens
    record.cache_read_input_tokens = usage.cache_read_input_tokens
    record.cache_creation_5m_input_tokens = usage.cache_creation_5m_input_tokens
    record.cache_creation_1h_input_tokens = usage.cache_creation_1h_input_tokens
    record.output_tokens = usage.output_tokens
    record.reasoning_tokens = usage.reasoning_tokens
    record.lines = list(bill.lines)
    record.cost_nanos = bill.cost
    record.unpriced = bill.unpriced
    record.price_version = bill.version
    # Lines tell the place; a record without any must, for whoever corrects it.
    noted = (place,) if place and not bill.lines else ()
    record.flags = list(dict.fromkeys((*record.flags, *usage.flags, *noted)))
    record.provider_usage = usage.raw.decode("utf-8", "replace")
    record.service_tier = usage.service_tier
    record.response_model = outcome.response_model
    record.response_id = outcome.response_id
    if outcome.time_to_first_token is not None:
        record.time_to_first_token_ms = round(outcome.time_to_first_token * 1000)


def names_of(response_model: str, upstream_model: str) -> tuple[str, str]:
    """The names to price by, best first: what answered, unless what was asked for says the same and more, such as
    the region that a Bedrock id begins with."""
    if response_model and response_model in upstream_model:
        return upstream_model, response_model
    return response_model, upstream_model


def _with_estimated_input(outcome: Outcome, request_bytes: int) -> Usage:
    usage = outcome.usage
    known = (
        usage.input_tokens,
        usage.cache_read_input_tokens,
        usage.cache_creation_5m_input_tokens,
        usage.cache_creation_1h_input_tokens,
    )
    if outcome.source not in ESTIMATES or any(count is not None for count in known) or not request_bytes:
        return usage
    return replace(usage, input_tokens=max(1, request_bytes // BYTES_PER_TOKEN))


def demand(call: Call, *, prices: PriceBook, provider: str, model: str) -> Demand:
    """What the call may use: an estimate, and the worst case at the dearest rate that could apply."""
    if not call.endpoint.metered:
        return Demand(tokens=0, cost=0, worst_tokens=0, worst_cost=0)
    dialect = DIALECTS[call.endpoint.dialect]
    envelope = dialect.bounded(call.body, call.envelope)
    price = prices.find(provider, model)
    tokens = max(1, call.body_bytes // BYTES_PER_TOKEN)
    estimate = _priced(tokens, price, at=call.created_at)
    window = price.context_window if price is not None else None
    input_bound = call.body_bytes + envelope.hidden_input_tokens if envelope.inline_text else window
    asked = envelope.max_output_tokens
    output_bound = window if asked is None else min(asked, window or asked)
    output_bound = output_bound and output_bound * envelope.answers
    unbounded = next(iter(envelope.unbounded), "")
    if not unbounded and input_bound is None:
        unbounded = f"content that is not inline text (the context window of {model} is not known)"
    if not unbounded and output_bound is None:
        unbounded = f"{dialect.max_output_field} (missing)"
    worst_cost = _worst_cost(price, envelope, input_bound or 0, output_bound or 0, at=call.created_at)
    if not unbounded and worst_cost is None:
        unbounded = f"model ({model} has no price)"
    return Demand(
        tokens=tokens,
        cost=estimate,
        worst_tokens=(input_bound or 0) + (output_bound or 0),
        worst_cost=worst_cost or 0,
        unbounded=unbounded,
    )


def _priced(tokens: int, price: ModelPrice | None, *, at: float) -> int:
    if price is None:
        return 0
    rate = price.rate("input_tokens", usage=Usage(), whole_input=tokens, at=at)
    return math.ceil(tokens * rate.rate / UNITS) if rate is not None else 0


def _worst_cost(
    price: ModelPrice | None, envelope: Envelope, input_bound: int, output_bound: int, *, at: float
) -> int | None:
    """Nano-dollars that the call can't exceed; None where its model has no price."""
    if price is None:
        return None
    bounds = {"input_tokens": input_bound, "output_tokens": output_bound}
    whole = 0
    for kind, bound in bounds.items():
        rate = price.dearest(kind, whole_input=input_bound, at=at, ruled_out=envelope.ruled_out)
        if rate is None and bound:
            return None  # an embedding has no output, and its model no price for one
        whole += bound * (rate or 0)
    return -(-whole // UNITS) + ROUNDING_SLACK
