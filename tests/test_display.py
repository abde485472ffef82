"""Figures as people read them; money never loses a digit."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_site.display import badge, count, milliseconds, nanos_of, short, time_left, usd, usd_plain, usd_short

nanos = st.integers(-(2**60), 2**60)


@given(nanos)
def test_dollars_come_back_as_the_same_nano_dollars(amount: int) -> None:
    assert nanos_of(Decimal(usd_plain(amount))) == amount
    assert nanos_of(Decimal(usd(amount).replace("$", "").replace(",", ""))) == amount


@pytest.mark.parametrize(
    "amount,plain,shown,glance",
    [
        (0, "0.000000000", "$0.00", "$0.00"),
        (1, "0.000000001", "$0.000000001", "<$0.0001"),
        (4_215_000, "0.004215000", "$0.004215", "$0.0042"),
        (1_500_000_000, "1.500000000", "$1.50", "$1.50"),
        (-1_234_567_890_123, "-1234.567890123", "-$1,234.567890123", "-$1,234.57"),
        (12_345 * 10**9, "12345.000000000", "$12,345.00", "$12.3K"),
    ],
)
def test_dollars(amount: int, plain: str, shown: str, glance: str) -> None:
    assert (usd_plain(amount), usd(amount), usd_short(amount)) == (plain, shown, glance)


@pytest.mark.parametrize("text", ["0.0000000001", "NaN", "Infinity", "1e999999"])
def test_what_is_no_whole_number_of_nano_dollars_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        nanos_of(Decimal(text))


@pytest.mark.parametrize(
    "number,text",
    [(0, "0"), (950, "950"), (12_300, "12.3K"), (4_000_000, "4M"), (-1_500, "-1.5K"), (2**60, "1152921.5T")],
)
def test_short(number: int, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    "seconds,text",
    [
        (-5, "0 s"),
        (0, "0 s"),
        (212, "212 s"),
        (240, "4 min"),
        (2100, "35 min"),
        (12_000, "3 h 20 min"),
        (7200, "2 h"),
        (187_200, "2 d 4 h"),
    ],
)
def test_time_left(seconds: float, text: str) -> None:
    assert time_left(seconds) == text


@pytest.mark.parametrize(
    "number,text", [(None, "-"), (0, "0 ms"), (812, "812 ms"), (1240, "1.24 s"), (2000, "2 s"), (125_000, "125 s")]
)
def test_milliseconds(number: int | None, text: str) -> None:
    assert milliseconds(number) == text


def test_a_count_that_was_not_reported_is_a_dash_and_no_zero() -> None:
    assert (count(None), count(0), count(1234567)) == ("-", "0", "1,234,567")
    assert usd(None) == "-"


def test_a_badge_escapes_what_it_says() -> None:
    assert "<script>" not in badge("<script>", title='"><script>')
    with pytest.raises(ValueError):
        badge("x", "purple")
