"""Money arithmetic: exact, half to even, and never a silent zero."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.call import Quantity, Usage
from relay.pricing import Bill, Known, PriceBook, Rate, cost, in_window, line_cost, version_of

DOLLAR = 1_000_000_000  # nano-dollars
counts = st.integers(min_value=0, max_value=10**12)
rates = st.integers(min_value=0, max_value=10**14)


def rate(row: int, meter: str, dollars: str, **more: object) -> Rate:
    values = {"id": row, "provider": "anthropic", "model": "m", "meter": meter, "rate": int(Decimal(dollars) * DOLLAR)}
    return Rate(**{**values, **more})  # type: ignore[arg-type]


def bill(usage: Usage, *rows: Rate, models: tuple[str, ...] = ("m",), at: float = 0.0) -> Bill:
    return cost(usage, models=models, provider="anthropic", book=PriceBook(rows), at=at)


@given(counts, rates)
def test_a_line_is_rounded_half_to_even(quantity: int, per_million: int) -> None:
    exact = Decimal(quantity) * Decimal(per_million) / Decimal(1_000_000)
    assert line_cost(quantity, per_million) == int(exact.quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


@given(counts, counts, rates)
def test_more_never_costs_less(one: int, other: int, per_million: int) -> None:
    small, large = sorted((one, other))
    assert line_cost(small, per_million) <= line_cost(large, per_million)


@given(st.lists(st.tuples(st.sampled_from(["input_tokens", "output_tokens", "web_searches"]), counts), max_size=8))
def test_the_cost_is_the_sum_of_the_lines(items: list[tuple[str, int]]) -> None:
    usage = Usage(extra=tuple(Quantity(meter, quantity) for meter, quantity in items))
    made = bill(
        usage, rate(1, "input_tokens", "3"), rate(2, "output_tokens", "0.123456789"), rate(3, "web_searches", "10000")
    )
    assert made.cost == sum(line.cost for line in made.lines)
    assert not made.unpriced


def test_a_part_with_a_rate_of_its_own_leaves_its_plain_count() -> None:
    usage = Usage(
        input_tokens=1000,
        extra=(
            Quantity("audio_input_tokens", 300, within="input_tokens"),
            Quantity("image_input_tokens", 100, within="input_tokens"),
        ),
    )
    made = bill(usage, rate(1, "input_tokens", "3"), rate(2, "audio_input_tokens", "7"))
    assert [(line.meter, line.quantity) for line in made.lines] == [("input_tokens", 700), ("audio_input_tokens", 300)]
    assert (made.cost, made.unpriced) == (700 * 3000 + 300 * 7000, False)


def test_parts_of_a_model_without_prices_stay_apart_until_it_has_some() -> None:
    usage = Usage(input_tokens=10, extra=(Quantity("audio_input_tokens", 4, within="input_tokens"),))
    made = bill(usage)
    assert [(line.meter, line.quantity, line.within) for line in made.lines] == [
        ("input_tokens", 6, ""),
        ("audio_input_tokens", 4, "input_tokens"),
    ]
    assert made.unpriced


def test_a_part_counts_once_for_a_threshold_and_is_never_more_than_its_whole() -> None:
    usage = Usage(input_tokens=100, extra=(Quantity("audio_input_tokens", 900, within="input_tokens"),))
    made = bill(
        usage, rate(1, "input_tokens", "1"), rate(2, "audio_input_tokens", "2"), rate(3, "input_tokens", "5", above=200)
    )
    assert [(line.meter, line.quantity, line.rate) for line in made.lines] == [("audio_input_tokens", 100, 2 * DOLLAR)]


def test_every_count_has_its_own_rate() -> None:
    usage = Usage(
        input_tokens=1000,
        cache_read_input_tokens=2000,
        cache_creation_5m_input_tokens=300,
        cache_creation_1h_input_tokens=40,
        output_tokens=500,
        reasoning_tokens=400,
    )
    made = bill(
        usage,
        rate(1, "input_tokens", "3"),
        rate(2, "cache_read_input_tokens", "0.3"),
        rate(3, "cache_creation_5m_input_tokens", "3.75"),
        rate(4, "cache_creation_1h_input_tokens", "6"),
        rate(5, "output_tokens", "15"),
    )
    # 0.003 + 0.0006 + 0.001125 + 0.00024 + 0.0075 dollars; reasoning is a part of the output
    assert made.cost == 12_465_000
    assert made.version == "1-5"


def test_a_meter_without_a_price_makes_it_unpriced_and_not_free() -> None:
    made = bill(Usage(input_tokens=10, output_tokens=10), rate(1, "input_tokens", "3"))
    assert (made.unpriced, made.cost, made.lines[1].rate) == (True, 30_000, None)


def test_an_unknown_model_is_unpriced() -> None:
    assert bill(Usage(input_tokens=10), rate(1, "input_tokens", "3"), models=("other",)).unpriced


def test_nothing_used_is_priced_at_nothing() -> None:
    assert bill(Usage(input_tokens=0)) == Bill()


@pytest.mark.parametrize(("cached", "expected"), [(99_999, "1"), (100_000, "1"), (100_001, "5")])
def test_a_threshold_is_judged_on_the_whole_input(cached: int, expected: str) -> None:
    usage = Usage(cache_read_input_tokens=cached - 10, input_tokens=10)
    made = bill(
        usage,
        rate(1, "input_tokens", "1"),
        rate(2, "input_tokens", "5", above=100_000),
        rate(3, "cache_read_input_tokens", "0"),
    )
    assert made.cost == 10 * int(expected) * 1000


def test_runs_beside_the_call_are_judged_on_their_own_input() -> None:
    run = (Quantity("input_tokens", 60_000, "", 1), Quantity("input_tokens", 60_000, "", 2))
    made = bill(Usage(extra=run), rate(1, "input_tokens", "1"), rate(2, "input_tokens", "5", above=100_000))
    assert made.cost == 120_000 * 1000


def test_a_run_of_another_model_is_priced_as_that_model() -> None:
    usage = Usage(input_tokens=1000, extra=(Quantity("output_tokens", 100, "advisor", 1),))
    made = bill(usage, rate(1, "input_tokens", "1"), rate(2, "output_tokens", "50", model="advisor"))
    assert [(line.model, line.cost) for line in made.lines] == [("m", 1_000_000), ("advisor", 5_000_000)]


FAST = (
    rate(1, "output_tokens", "25"),
    rate(2, "output_tokens", "50", tier="fast"),
    rate(3, "output_tokens", "55", tier="fast+us"),
    rate(4, "web_searches", "10000"),
)


@pytest.mark.parametrize(
    ("usage", "row"),
    [
        (Usage(output_tokens=1), 1),
        (Usage(output_tokens=1, service_tier="standard", speed="standard", geo="global"), 1),
        (Usage(output_tokens=1, speed="fast"), 2),
        (Usage(output_tokens=1, speed="fast", geo="us"), 3),
        (Usage(output_tokens=1, service_tier="priority"), None),
        (Usage(extra=(Quantity("web_searches", 1),), speed="fast"), 4),
    ],
)
def test_tier_speed_and_place_choose_the_rate(usage: Usage, row: int | None) -> None:
    assert bill(usage, *FAST).lines[0].price == row


def test_a_rate_holds_from_its_start_to_its_end() -> None:
    rows = rate(1, "input_tokens", "1", end=100.0), rate(2, "input_tokens", "2", start=100.0)
    assert [bill(Usage(input_tokens=1), *rows, at=at).lines[0].price for at in (99.9, 100.0)] == [1, 2]


@pytest.mark.parametrize(("at", "prices"), [(99.9, [None, None, 4]), (100.0, [3, 2, 5]), (200.0, [None, None, 4])])
def test_a_tier_is_one_only_while_a_row_of_it_is_in_force(at: float, prices: list[int | None]) -> None:
    rows = (
        rate(1, "input_tokens", "1"),
        rate(2, "output_tokens", "2"),
        rate(3, "input_tokens", "3", tier="priority", start=100.0, end=200.0),
        rate(4, "input_tokens", "4", model="n"),
        rate(5, "input_tokens", "5", model="n", tier="regional", start=100.0, end=200.0),
    )
    named = bill(Usage(input_tokens=1, output_tokens=1, service_tier="priority"), *rows, at=at).lines
    placed = bill(Usage(input_tokens=1, geo="regional"), *rows, models=("n",), at=at).lines
    assert [line.price for line in (*named, *placed)] == prices


def test_a_persons_rate_goes_before_the_catalogues() -> None:
    rows = rate(1, "input_tokens", "1"), rate(2, "input_tokens", "9", above=100), rate(3, "input_tokens", "2", own=True)
    assert [bill(Usage(input_tokens=count), *rows).lines[0].price for count in (1, 101)] == [3, 3]


def test_a_persons_threshold_adds_to_the_catalogues_base() -> None:
    rows = rate(1, "input_tokens", "1"), rate(2, "input_tokens", "9", above=100, own=True)
    assert [bill(Usage(input_tokens=count), *rows).lines[0].price for count in (100, 101)] == [1, 2]


def test_a_name_that_only_a_searches_price_fits_is_not_what_the_tokens_are_priced_by() -> None:
    usage = Usage(input_tokens=1000, extra=(Quantity("web_searches", 2),))
    rows = (rate(1, "input_tokens", "5"), rate(2, "web_searches", "10000", model="m*"))
    made = bill(usage, *rows, models=("m-of-a-longer-name", "m"))
    assert (made.unpriced, made.cost) == (False, 5_000_000 + 20_000_000)


def test_names_are_looked_up_exactly_then_by_pattern_then_by_the_catalogue() -> None:
    def resolve(provider: str, model: str) -> Known | None:
        return Known("m", "anthropic", 1000) if model.startswith("m-") else None

    book = PriceBook(
        [
            rate(1, "input_tokens", "1"),
            rate(2, "input_tokens", "2", model="m-2*", own=True),
            rate(3, "input_tokens", "3", model="m-2026", own=True),
        ],
        resolve=resolve,
    )
    found = [book.find("anthropic", name) for name in ("m-1", "m-2025", "m-2026")]
    rows = [price.rate("input_tokens", usage=Usage(), whole_input=0, at=0) for price in found if price]
    assert [row.id for row in rows if row] == [1, 2, 3]
    assert book.find("anthropic", "other") is None


@pytest.mark.parametrize(("clock", "inside"), [("00:29", False), ("00:30", True), ("16:29", True), ("16:30", False)])
def test_hours_of_the_day_are_utc(clock: str, inside: bool) -> None:
    hour, minute = clock.split(":")
    assert in_window("00:30-16:30", int(hour) * 3600 + int(minute) * 60) is inside
    assert in_window("16:30-00:30", int(hour) * 3600 + int(minute) * 60) is not inside


def test_the_version_names_the_rows_and_fits_its_column() -> None:
    assert version_of(frozenset({7, 5, 6, 9})) == "5-7+9"
    assert len(version_of(frozenset(range(1_000_000_000, 1_000_000_100, 2)))) <= 60


STEPS = [
    rate(1, "input_tokens", "3", end=100.0),
    rate(2, "input_tokens", "2", start=100.0),
    rate(3, "input_tokens", "6", above=200_000, start=50.0, end=150.0),
    rate(4, "input_tokens", "9", above=500_000),
    rate(5, "input_tokens", "8", tier="fast", start=150.0),
]


@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 200_000, 200_001, 200_002, 500_001, 500_002]),
            st.sampled_from([-1.0, 0.0, 50.0, 99.0, 100.0, 149.9, 150.0, math.inf]),
            st.sampled_from([(), ("fast",)]),
        ),
        min_size=2,
    )
)
def test_what_is_remembered_of_the_dearest_rate_is_what_is_found_anew(
    asked: list[tuple[int, float, tuple[str, ...]]],
) -> None:
    price = PriceBook(STEPS).find("anthropic", "m")
    assert price is not None
    for whole_input, at, ruled_out in asked:
        anew = price._find_dearest("input_tokens", whole_input, at, ruled_out)
        assert price.dearest("input_tokens", whole_input=whole_input, at=at, ruled_out=ruled_out) == anew


def test_the_dearest_rate_takes_in_every_tier_that_is_not_ruled_out() -> None:
    price = PriceBook(FAST).find("anthropic", "m")
    assert price is not None
    assert price.dearest("output_tokens", whole_input=0, at=0) == 55 * DOLLAR
    assert price.dearest("output_tokens", whole_input=0, at=0, ruled_out=("fast",)) == 25 * DOLLAR
    assert price.dearest("input_tokens", whole_input=0, at=math.inf) is None
