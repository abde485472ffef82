"""Price rows: seeded, updated without touching the past, overridden by people, found under every name of a model."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from genai_prices import Usage as CatalogueUsage
from genai_prices import calc_price
from msgspec import structs

from relay import price_catalogue
from relay.call import Usage
from relay.models import Price
from relay.price_catalogue import EPOCH, Listed, listed
from relay.prices import load_prices, set_rates, sync
from relay.pricing import PriceBook, cost

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
USED = Usage(
    input_tokens=1000,
    cache_read_input_tokens=20_000,
    cache_creation_5m_input_tokens=3000,
    output_tokens=400,
)


def run(*arguments: str) -> Any:
    out = io.StringIO()
    call_command(*arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def nanos(provider: str, model: str, usage: Usage = USED, *, at: datetime = NOW, book: PriceBook | None = None) -> int:
    made = cost(usage, models=(model,), provider=provider, book=book or load_prices(), at=at.timestamp())
    assert not made.unpriced, made
    return made.cost


def test_a_fresh_database_is_priced() -> None:
    assert Price.objects.filter(provider="anthropic", model="claude-sonnet-5-5").count() >= 6
    assert Price.objects.filter(source=price_catalogue.catalogue_version()).count() == sum(1 for _ in listed())


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", "claude-sonnet-5-5"),
        ("anthropic", "claude-haiku-5-5"),
        ("anthropic", "claude-opus-4-5-20251101"),
        ("anthropic", "claude-fable-5-2"),
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("aws", "global.anthropic.claude-sonnet-5-5"),
        ("google", "claude-opus-4-8@20260101"),
    ],
)
def test_it_costs_what_the_catalogue_calculates(provider: str, model: str) -> None:
    theirs = calc_price(
        CatalogueUsage(input_tokens=24_000, cache_read_tokens=20_000, cache_write_tokens=3000, output_tokens=400),
        model,
        provider_id=provider,
        genai_request_timestamp=NOW,
    )
    assert Decimal(nanos(provider, model)) == theirs.total_price * 1_000_000_000


@pytest.mark.parametrize(
    ("provider", "name", "same_as"),
    [
        ("anthropic", "claude-sonnet-5-5-20260901", "claude-sonnet-5-5"),
        ("anthropic", "anthropic/claude-sonnet-5-5", "claude-sonnet-5-5"),
        ("aws", "us.anthropic.claude-sonnet-5-5-v1:0", "regional.anthropic.claude-sonnet-5-5"),
        ("aws", "eu.anthropic.claude-sonnet-5-5", "regional.anthropic.claude-sonnet-5-5"),
        ("aws", "global.anthropic.claude-sonnet-5-5-v1:0", "global.anthropic.claude-sonnet-5-5"),
        (
            "aws",
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-5-5",
            "regional.anthropic.claude-sonnet-5-5",
        ),
        ("aws", "anthropic.claude-sonnet-5-5-20260901-v1:0", "regional.anthropic.claude-sonnet-5-5"),
        ("google", "claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
    ],
)
def test_a_model_is_priced_under_every_name_it_goes_by(provider: str, name: str, same_as: str) -> None:
    assert nanos(provider, name) == nanos(provider, same_as)


def test_a_reseller_without_a_price_of_its_own_costs_what_the_vendor_does() -> None:
    assert nanos("google", "claude-sonnet-5") == nanos("anthropic", "claude-sonnet-5")


def test_an_unknown_model_has_no_price() -> None:
    assert load_prices().find("anthropic", "claude-next-99") is None
    assert load_prices().find("nobody", "claude-sonnet-5-5") is None


def test_fast_mode_in_the_us_costs_both() -> None:
    book, used = load_prices(), Usage(input_tokens=1000, output_tokens=1000, speed="fast")
    plain = nanos("anthropic", "claude-opus-5-5", Usage(input_tokens=1000, output_tokens=1000), book=book)
    assert nanos("anthropic", "claude-opus-5-5", used, book=book) == plain * 2
    assert nanos("anthropic", "claude-opus-5-5", structs.replace(used, geo="us"), book=book) * 10 == plain * 22


@pytest.mark.parametrize(
    ("cached", "at", "per_million"),
    [
        (199_000, datetime(2026, 3, 12, tzinfo=UTC), 3),
        (199_001, datetime(2026, 3, 12, tzinfo=UTC), 6),
        (199_001, datetime(2026, 3, 13, tzinfo=UTC), 3),
    ],
)
def test_a_threshold_that_was_given_up_still_prices_the_calls_of_its_time(
    cached: int, at: datetime, per_million: int
) -> None:
    usage = Usage(input_tokens=1000, cache_read_input_tokens=cached)
    made = cost(usage, models=("claude-sonnet-4-6",), provider="anthropic", book=load_prices(), at=at.timestamp())
    assert made.lines[0].cost == 1000 * per_million * 1000


@pytest.mark.parametrize(("hour", "dollars"), [(0, "0.15"), (2, "0.3"), (5, "0.15"), (6, "0.3"), (10, "0.15")])
def test_hours_of_the_day_price_a_call(hour: int, dollars: str) -> None:
    used = Usage(input_tokens=1_000_000)
    assert nanos("deepseek", "deepseek-flash", used, at=NOW.replace(hour=hour)) == Decimal(dollars) * 10**9


# --- updates ----------------------------------------------------------------------------------------


def catalogue(dollars: str, *, model: str = "test-model", meter: str = "input_tokens", above: int = 0) -> Listed:
    return Listed("test", model, meter, "", above, int(Decimal(dollars) * 10**9), EPOCH)


def in_force() -> list[tuple[str, int]]:
    rows = Price.objects.filter(provider="test", valid_to=None).order_by("meter", "above_tokens")
    return [(row.meter, row.rate) for row in rows]


def test_the_same_catalogue_changes_nothing() -> None:
    before = list(Price.objects.values_list())
    changes = sync(now=NOW)
    assert (changes.added, changes.changed, changes.ended, changes.gone) == ([], [], [], [])
    assert list(Price.objects.values_list()) == before


def test_a_new_price_ends_the_old_one_and_leaves_the_past_alone() -> None:
    sync(now=NOW - timedelta(days=9), listed=[catalogue("1")])
    changes = sync(now=NOW, listed=[catalogue("2")])
    assert changes.changed == ["test test-model input_tokens: 1 -> 2"]
    used, book = Usage(input_tokens=1_000_000), load_prices()
    assert nanos("test", "test-model", used, at=NOW - timedelta(seconds=1), book=book) == 10**9
    assert nanos("test", "test-model", used, at=NOW, book=book) == 2 * 10**9


def test_a_threshold_that_the_catalogue_drops_is_ended() -> None:
    sync(now=NOW, listed=[catalogue("1"), catalogue("2", above=1000)])
    assert sync(now=NOW, listed=[catalogue("1")]).ended == ["test test-model input_tokens above 1000: 2 -> none"]
    assert in_force() == [("input_tokens", 10**9)]


def test_a_model_that_the_catalogue_drops_keeps_its_price() -> None:
    sync(now=NOW, listed=[catalogue("1")])
    changes = sync(now=NOW, listed=[catalogue("1", model="other")])
    assert "test test-model" in changes.gone
    assert nanos("test", "test-model", Usage(input_tokens=1)) == 1000


def test_a_price_announced_for_later_waits_for_its_day() -> None:
    soon = NOW + timedelta(days=3)
    sync(now=NOW, listed=[catalogue("1")])
    dated = [replace(catalogue("1"), end=soon), replace(catalogue("5"), start=soon)]
    sync(now=NOW, listed=dated)
    assert sync(now=NOW + timedelta(days=1), listed=dated).changed == []
    used, book = Usage(input_tokens=1), load_prices()
    assert [nanos("test", "test-model", used, at=at, book=book) for at in (NOW, soon)] == [1000, 5000]


def test_a_persons_price_stays_in_force_and_is_reported() -> None:
    sync(now=NOW, listed=[catalogue("1")])
    set_rates("test", "test-model", {"input_tokens": 7 * 10**9}, start=NOW - timedelta(days=1))
    changes = sync(now=NOW, listed=[catalogue("2")])
    assert changes.overridden == ["test test-model input_tokens: 2 listed, 7 in force"]
    assert nanos("test", "test-model", Usage(input_tokens=1)) == 7000


# --- commands ---------------------------------------------------------------------------------------


def test_a_price_for_a_model_without_one_holds_from_the_beginning() -> None:
    shown = run("set_price", "test", "new-model", "input_tokens=1.5", "output_tokens=0.000000001")
    assert [(row["meter"], row["rate"], row["valid_from"][:4]) for row in shown] == [
        ("input_tokens", 1_500_000_000, "2020"),
        ("output_tokens", 1, "2020"),
    ]
    assert nanos("test", "new-model", Usage(input_tokens=10, output_tokens=500_000)) == 15_000


def test_a_price_over_a_listed_one_holds_from_now_on() -> None:
    (row,) = run("set_price", "anthropic", "claude-sonnet-5-5-20260901", "input_tokens=9")
    assert datetime.fromisoformat(row["valid_from"]) > NOW - timedelta(days=1)


def test_from_tier_and_threshold_are_kept() -> None:
    run("set_price", "test", "m", "input_tokens=1", "--from", "2026-01-01T00:00:00Z")
    run("set_price", "test", "m", "input_tokens=2", "--above", "1000", "--from", "2026-01-01T00:00:00Z")
    run("set_price", "test", "m", "input_tokens=3", "--tier", "us+fast", "--from", "2026-01-01T00:00:00Z")
    book = load_prices()
    assert nanos("test", "m", Usage(input_tokens=1000), book=book) == 1_000_000
    assert nanos("test", "m", Usage(input_tokens=1001), book=book) == 2_002_000
    assert nanos("test", "m", Usage(input_tokens=1000, speed="fast", geo="us"), book=book) == 3_000_000


def test_a_second_price_follows_the_first() -> None:
    run("set_price", "test", "m", "input_tokens=1", "--from", "2026-01-01T00:00:00Z")
    run("set_price", "test", "m", "input_tokens=3", "--from", "2026-09-01T00:00:00Z")
    run("set_price", "test", "m", "input_tokens=2", "--from", "2026-05-01T00:00:00Z")
    rows = Price.objects.filter(provider="test").order_by("valid_from").values_list("rate", "valid_to__month")
    assert list(rows) == [(10**9, 5), (2 * 10**9, 9), (3 * 10**9, None)]


def test_a_pattern_prices_every_model_that_has_no_price_of_its_own() -> None:
    run("set_price", "test", "family-*", "input_tokens=4")
    run("set_price", "test", "family-big", "input_tokens=8")
    assert [nanos("test", name, Usage(input_tokens=1)) for name in ("family-small", "family-big")] == [4000, 8000]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["input_token=3"], "meter 'input_token' is unknown"),
        (["input_tokens"], "'input_tokens' is not METER=USD_PER_MTOK"),
        (["input_tokens=cheap"], "'cheap' is no number"),
        (["input_tokens=-1"], "must be from 0"),
        (["input_tokens=NaN"], "must be from 0"),
        (["input_tokens=0.0000000001"], "finer than a nano-dollar"),
        (["input_tokens=1", "input_tokens=2"], "stands twice"),
        (["input_tokens=1", "--from", "soon"], "'soon' is no ISO 8601 time"),
        (["input_tokens=1", "--from", "0001-01-01T00:00:00+10:00"], "--from '0001.*' is too far off"),
        (["input_tokens=1", "--above", "-1"], "--above -1"),
    ],
)
def test_it_refuses_by_name_and_saves_nothing(words: list[str], said: str) -> None:
    before = Price.objects.count()
    with pytest.raises(CommandError, match=said):
        run("set_price", "test", "m", *words)
    assert Price.objects.count() == before


def test_sync_prices_reports_in_one_document() -> None:
    shown = run("sync_prices")
    assert shown["source"].startswith("genai-prices ")
    assert shown["changed"] == []
