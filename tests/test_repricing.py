"""Unpriced calls become priced once a price exists, by a correction and once."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.core.management import call_command

from relay.call import Quantity, Usage
from relay.models import UsageCorrection
from relay.prices import set_rates
from relay.repricing import reprice
from tests.test_corrections import HOUR, saved, seeded

pytestmark = pytest.mark.django_db


def test_a_call_is_priced_once_its_model_has_a_price() -> None:
    record = saved(Usage(input_tokens=1000, output_tokens=10), model="new-model")
    assert (record.unpriced, record.cost_nanos, reprice()) == (True, 0, 0)
    set_rates("anthropic", "new-model", {"input_tokens": 10**9, "output_tokens": 2 * 10**9}, start=None)
    assert (reprice(), reprice()) == (1, 0)
    record.refresh_from_db()
    assert (record.unpriced, record.cost_nanos) == (False, 1_020_000)
    correction = UsageCorrection.objects.get(record_id=record.pk)
    assert (correction.author, correction.cost_nanos, correction.booked_at) == ("repricing", 1_020_000, HOUR)
    assert correction.changes["unpriced"] == [True, False]


def test_a_call_that_is_priced_in_part_waits_for_the_rest() -> None:
    record = saved(Usage(input_tokens=1000, output_tokens=10), model="new-model")
    set_rates("anthropic", "new-model", {"input_tokens": 10**9}, start=None)
    assert reprice() == 0
    record.refresh_from_db()
    assert record.unpriced


def test_only_what_the_price_covers_is_priced() -> None:
    saved(Usage(input_tokens=1), model="new-model")
    set_rates("anthropic", "new-model", {"input_tokens": 10**9}, start=HOUR.replace(year=2027))
    assert reprice() == 0


def test_models_that_still_have_no_price_are_not_read_one_by_one(django_assert_num_queries: Any) -> None:
    for _ in range(3):
        saved(Usage(input_tokens=1), model="new-model")
    with django_assert_num_queries(1):
        assert reprice(prices=seeded()) == 0


def test_more_calls_than_a_batch_are_all_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.repricing.BATCH", 2)
    for _ in range(5):
        saved(Usage(input_tokens=1), model="new-model")
    set_rates("anthropic", "new-*", {"input_tokens": 10**9}, start=None)
    assert reprice() == 5


def test_a_call_that_cannot_be_booked_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    absurd = saved(Usage(input_tokens=10**14), model="new-model")
    saved(Usage(output_tokens=1, reasoning_tokens=2), model="new-model")
    set_rates("anthropic", "new-model", {"input_tokens": 10**14, "output_tokens": 10**9}, start=None)
    assert reprice() == 1
    absurd.refresh_from_db()
    assert absurd.unpriced and f"1 calls have a price that can't be booked; the first: {absurd.pk}" in caplog.text


def test_the_command_tells_what_is_left() -> None:
    saved(Usage(input_tokens=1), model="new-model")
    saved(Usage(input_tokens=1), model="other-model")
    set_rates("anthropic", "new-model", {"input_tokens": 10**9}, start=None)
    out = io.StringIO()
    call_command("reprice", "--json", stdout=out)
    assert json.loads(out.getvalue()) == {"repriced": 1, "unpriced": 1}


@pytest.mark.parametrize(("audio", "cost"), [(7 * 10**9, 600 * 1000 + 400 * 7000), (None, 1000 * 1000)])
def test_a_part_of_a_count_is_priced_apart_only_where_it_has_a_rate(audio: int | None, cost: int) -> None:
    part = Quantity("audio_input_tokens", 400, within="input_tokens")
    record = saved(Usage(input_tokens=1000, extra=(part,)), model="new-model")
    rates = {"input_tokens": 10**9} | ({"audio_input_tokens": audio} if audio else {})
    set_rates("anthropic", "new-model", rates, start=None)
    assert reprice() == 1
    record.refresh_from_db()
    assert (record.input_tokens, record.cost_nanos, record.unpriced) == (1000, cost, False)
