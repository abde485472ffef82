"""Corrections: the row says what is right, the difference is booked once, closed periods keep their figures."""

from __future__ import annotations

import contextlib
import functools
import uuid
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import pytest
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from relay.call import Outcome, Quantity, Record, Usage, UsageSource, new_call_id
from relay.corrections import CorrectionError, correct
from relay.metering import book
from relay.models import BillingPeriod, RollUpMark, UsageCorrection, UsageHour, UsageRecord
from relay.prices import load_prices, set_rates
from relay.pricing import PriceBook
from relay.rollup import roll_up

MADE = datetime(2026, 10, 20, 13, 37, 5, tzinfo=UTC)
NOW = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
HOUR = datetime(2026, 10, 20, 13, tzinfo=UTC)
USED = Usage(input_tokens=1000, output_tokens=100, extra=(Quantity("web_searches", 2),))


@functools.cache
def seeded() -> PriceBook:
    """The prices that every test database begins with."""
    return load_prices()


def saved(
    usage: Usage = USED, *, model: str = "claude-sonnet-5-5", provider: str = "anthropic", place: str = "", **more: Any
) -> UsageRecord:
    """A record as the ledger would have written it."""
    record = Record(
        id=new_call_id(MADE.timestamp()), created_at=MADE.timestamp(), provider=provider, upstream_model=model
    )
    book(record, Outcome(usage, UsageSource.PROVIDER), prices=seeded(), provider=provider, now=0, place=place)
    values = {**msgspec.to_builtins(record), "id": uuid.UUID(record.id), "created_at": MADE, **more}
    columns = {field.attname for field in UsageRecord._meta.concrete_fields}
    return UsageRecord.objects.create(**{name: value for name, value in values.items() if name in columns})


def fix(record: UsageRecord, **changes: Any) -> UsageCorrection:
    return correct(record.pk, changes, author="ada", reason="the invoice says so", now=NOW)


@pytest.mark.django_db
def test_a_changed_count_is_priced_and_its_difference_booked_in_the_records_hour() -> None:
    record = saved()
    correction = fix(record, output_tokens=60)
    record.refresh_from_db()
    assert (record.output_tokens, record.cost_nanos) == (60, 1000 * 2000 + 60 * 10_000 + 20_000_000)
    assert sum(line["cost"] for line in record.lines) == record.cost_nanos
    assert record.flags == ["corrected"]
    assert (correction.output_tokens, correction.input_tokens, correction.cost_nanos) == (-40, 0, -400_000)
    assert correction.changes["output_tokens"] == [100, 60]
    assert (correction.author, correction.reason) == ("ada", "the invoice says so")
    assert correction.booked_at == HOUR
    assert list(RollUpMark.objects.values_list("hour", flat=True)) == [HOUR]


@pytest.mark.django_db
def test_another_model_is_priced_as_that_model() -> None:
    record = saved()
    fix(record, upstream_model="claude-opus-5-5")
    record.refresh_from_db()
    assert record.cost_nanos == 1000 * 4000 + 100 * 20_000 + 20_000_000


@pytest.mark.django_db
def test_a_record_without_lines_keeps_its_place() -> None:
    record = saved(Usage(), model="claude-sonnet-4-5", provider="google", place="regional")
    assert fix(record, input_tokens=1000).cost_nanos == 1000 * 3300
    record.refresh_from_db()
    assert (record.lines[0]["geo"], record.flags) == ("regional", ["regional", "corrected"])


RUNS = '"iterations": [{"type": "message", "input_tokens": 150000}, {"type": "message", "input_tokens": 150000}]'


@pytest.mark.django_db
@pytest.mark.parametrize("reported", ["{%s}", '{"message_start": {"input_tokens": 1}, "message_delta": {%s}}'])
@pytest.mark.parametrize(("changes", "cost"), [({"output_tokens": 1}, -15_000), ({"input_tokens": 1}, -299_999 * 3000)])
def test_the_length_of_each_prompt_is_kept(reported: str, changes: dict[str, int], cost: int) -> None:
    usage = Usage(input_tokens=300_000, output_tokens=2, longest_prompt=150_000)
    record = saved(usage, model="claude-sonnet-4-5", provider_usage=reported % RUNS)
    assert fix(record, **changes).cost_nanos == cost


@pytest.mark.django_db
def test_a_cost_that_a_person_sets_is_a_line_of_its_own() -> None:
    record = saved()
    correction = fix(record, cost_nanos=5_000_000)
    record.refresh_from_db()
    assert (record.cost_nanos, sum(line["cost"] for line in record.lines)) == (5_000_000, 5_000_000)
    assert record.lines[-1]["meter"] == "adjustment"
    assert correction.cost_nanos == 5_000_000 - 23_000_000


@pytest.mark.django_db
def test_a_closed_period_keeps_its_figures() -> None:
    BillingPeriod.objects.create(start=date(2026, 10, 1), end=date(2026, 11, 1), closed_at=NOW)
    correction = fix(saved(), output_tokens=0)
    assert correction.booked_at == datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert set(RollUpMark.objects.values_list("hour", flat=True)) == {correction.booked_at, HOUR}


@pytest.mark.django_db
def test_roll_ups_follow_and_a_closed_month_does_not_move() -> None:
    record = saved()
    fix(record, output_tokens=60)
    roll_up()
    assert hours() == [(HOUR, 60, 22_600_000)]
    BillingPeriod.objects.create(start=date(2026, 10, 1), end=date(2026, 11, 1), closed_at=NOW)
    later = fix(record, output_tokens=70).booked_at
    roll_up()
    assert hours() == [(HOUR, 60, 22_600_000), (later, 10, 100_000)]


def hours() -> list[tuple[datetime, int, int]]:
    return list(UsageHour.objects.order_by("hour").values_list("hour", "output_tokens", "cost_nanos"))


@pytest.mark.django_db
def test_where_the_present_is_closed_too_it_counts_at_the_next_open_beginning() -> None:
    for start, end in ((date(2026, 10, 1), date(2026, 11, 1)), (date(2026, 11, 1), date(2026, 12, 1))):
        BillingPeriod.objects.create(start=start, end=end, closed_at=NOW)
    assert fix(saved(), output_tokens=0).booked_at == datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.django_db
@override_settings(REPORT_TIME_ZONE="America/New_York")
def test_a_period_ends_in_the_installations_time_zone() -> None:
    BillingPeriod.objects.create(start=date(2026, 10, 1), end=date(2026, 10, 20), closed_at=NOW)
    record = saved(created_at=datetime(2026, 10, 20, 3, tzinfo=UTC))  # the evening of the 19th there
    assert fix(record, output_tokens=0).booked_at == datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.django_db
@override_settings(REPORT_TIME_ZONE="Asia/Kolkata")
def test_an_hour_that_begins_in_the_closed_period_takes_no_correction() -> None:
    BillingPeriod.objects.create(start=date(2026, 10, 1), end=date(2026, 11, 23), closed_at=NOW)  # ends at 18:30 UTC
    now = datetime(2026, 11, 22, 18, 50, tzinfo=UTC)
    correction = correct(saved().pk, {"output_tokens": 0}, author="ada", reason="the invoice says so", now=now)
    assert correction.booked_at == datetime(2026, 11, 22, 19, tzinfo=UTC)


@pytest.mark.django_db
def test_usage_moves_to_another_team_only_while_its_period_is_open() -> None:
    record = saved()
    fix(record, team_id=7, team_name="research")
    BillingPeriod.objects.create(start=date(2026, 10, 1), end=date(2026, 11, 1), closed_at=NOW)
    with pytest.raises(CorrectionError, match=r"^team_id: .*closed"):
        fix(record, team_id=8)


@pytest.mark.django_db
def test_what_moves_after_a_reopening_takes_its_later_corrections_along() -> None:
    record = saved(team_id=1, team_name="A")
    period = BillingPeriod.objects.create(start=date(2026, 10, 1), end=date(2026, 11, 1), closed_at=NOW)
    later = fix(record, output_tokens=110).booked_at
    roll_up()
    BillingPeriod.objects.filter(pk=period.pk).update(closed_at=None)
    fix(record, team_id=2, team_name="B")
    roll_up()
    figures = UsageHour.objects.order_by("hour").values_list("hour", "team_id", "output_tokens")
    assert list(figures) == [(HOUR, 2, 100), (later, 2, 10)]


@pytest.mark.django_db
def test_tags_change_only_while_the_records_period_is_open() -> None:
    record = saved(tags={"project": "a"})
    fix(record, tags={"project": "b"})
    BillingPeriod.objects.create(start=date(2026, 10, 1), end=date(2026, 11, 1), closed_at=NOW)
    with pytest.raises(CorrectionError, match=r"^tags: .*closed"):
        fix(record, tags={"project": "c"})


@pytest.mark.django_db
def test_what_was_held_for_an_unknown_figure_is_let_go() -> None:
    record = saved(Usage(), held_nanos=900)
    fix(record, output_tokens=5)
    record.refresh_from_db()
    assert record.held_nanos == 0


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lines": []}, "lines: can't be corrected"),
        ({"output_tokens": -1}, "output_tokens: must be a whole number"),
        ({"output_tokens": "5"}, "output_tokens: must be a whole number"),
        ({"cost_nanos": None}, "cost_nanos: must have a value"),
        ({"team_name": "x" * 101}, "team_name: .*at most 100"),
        ({"reasoning_tokens": 101}, "reasoning_tokens: they are a part"),
        ({"output_tokens": 100}, "Nothing changes"),
    ],
)
def test_it_refuses_by_name_and_changes_nothing(changes: dict[str, Any], said: str) -> None:
    record = saved()
    with pytest.raises(CorrectionError, match=said):
        fix(record, **changes)
    assert not UsageCorrection.objects.exists() and not RollUpMark.objects.exists()
    assert UsageRecord.objects.filter(pk=record.pk, cost_nanos=record.cost_nanos, team_name="").exists()


@pytest.mark.django_db
def test_the_prices_are_those_of_the_calls_time() -> None:
    record = saved()
    set_rates("anthropic", "claude-sonnet-5-5", {"output_tokens": 99 * 10**9}, start=NOW)
    assert fix(record, output_tokens=101).cost_nanos == 10_000


CHANGES = st.dictionaries(
    st.sampled_from(["input_tokens", "output_tokens", "cost_nanos"]), st.integers(0, 10**9), min_size=1
)


class Sums(TestCase):
    """Whatever is corrected, first figures plus differences are the present figures."""

    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from(["input_tokens", "output_tokens", "cost_nanos"]), st.integers(0, 10**9), min_size=1
            ),
            max_size=4,
        )
    )
    def test_differences_add_up(self, rounds: list[dict[str, int]]) -> None:
        record = saved()
        first = {name: getattr(record, name) for name in ("input_tokens", "output_tokens", "cost_nanos")}
        for changes in rounds:
            with contextlib.suppress(CorrectionError):  # the same figures again change nothing
                correct(record.pk, changes, author="ada", reason="again", now=NOW, prices=seeded())
        record.refresh_from_db()
        booked = list(UsageCorrection.objects.filter(record_id=record.pk))
        for name, start in first.items():
            assert start + sum(getattr(correction, name) for correction in booked) == getattr(record, name)
        assert sum(line["cost"] for line in record.lines) == record.cost_nanos
