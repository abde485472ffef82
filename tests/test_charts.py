"""Charts as geometry: heights in proportion, gaps where nothing is known, an axis that fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.charts import HEIGHT, LEFT_OVER, Series, bars, ceiling, coloured, curves, spread


def said(number: float) -> str:
    return f"{number:g}"


@given(st.floats(1e-9, 1e18))
def test_the_axis_ends_at_or_above_the_greatest_and_not_far_off(value: float) -> None:
    assert value <= ceiling(value) <= value * 2.5


@pytest.mark.parametrize("value,top", [(0, 1), (1, 1), (1.1, 1.2), (2.5e6, 3e6), (0.003, 0.003), (999, 1000)])
def test_the_axis_ends_at_a_round_number(value: float, top: float) -> None:
    assert ceiling(value) == pytest.approx(top)


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), min_size=1, max_size=40))
def test_bars_stand_on_one_another_within_the_plot(values: list[tuple[int, int]]) -> None:
    series = [Series("a", tuple(a for a, _ in values), 1), Series("b", tuple(b for _, b in values), 2)]
    chart = bars("x", [str(index) for index in range(len(values))], series, said=said)
    for slot, (a, b) in zip(chart.slots, values, strict=True):
        assert len(slot.bars) == bool(a) + bool(b)
        floor = HEIGHT
        for bar in slot.bars:
            assert bar.y + bar.height == pytest.approx(floor)
            assert bar.y >= -1e-6
            floor = bar.y
    assert chart.empty is (not any(a or b for a, b in values))


def test_a_slot_says_its_figures_and_leads_to_them() -> None:
    series = [Series("ok", (3.0, 0.0), 1), Series("failed", (1.0, 0.0), 2)]
    chart = bars("Calls", ["10:00", "11:00"], series, said=said, links=["/ten", "/eleven"])
    assert [slot.link for slot in chart.slots] == ["/ten", "/eleven"]
    assert chart.slots[0].title == "10:00: 4\nok: 3\nfailed: 1"
    assert chart.slots[1].title == "11:00: 0"
    assert [tick.text for tick in chart.ticks] == ["0", "2", "4"]


def test_a_curve_breaks_where_nothing_is_known() -> None:
    chart = curves("x", list("abcde"), [Series("s", (1.0, 2.0, None, None, 1.0), 3)], said=said)
    assert [curve.points.count(",") for curve in chart.curves] == [2, 2]
    assert "no calls" in chart.slots[2].title


@pytest.mark.parametrize("number", [0, 1, 5, 24, 31, 62])
def test_no_more_labels_than_fit(number: int) -> None:
    marks = spread([str(index) for index in range(number)])
    assert len(marks) <= 6
    assert all(0 < mark.at < 100 for mark in marks)


def test_names_beyond_the_palette_share_the_grey() -> None:
    assert list(coloured([str(index) for index in range(11)]).values())[-3:] == [LEFT_OVER, LEFT_OVER, LEFT_OVER]


def test_nothing_at_all_is_an_empty_chart() -> None:
    assert bars("x", [], [], said=said).empty
    assert curves("x", [], [], said=said).empty
