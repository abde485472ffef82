"""Limits as people write them, and the exact amounts that they mean."""

from __future__ import annotations

import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeys.limit_text import LARGEST, PERIODS, LimitText, LimitTextError, limit_text, parse_limit


@pytest.mark.parametrize(
    "text, limit",
    [
        ("requests 100 per minute", LimitText("requests", 100, "minute")),
        ("tokens 2000000 per 5h", LimitText("tokens", 2_000_000, "5h")),
        ("cost 5 per day strict", LimitText("cost", 5_000_000_000, "day", strict=True)),
        ("cost 0.1 per total", LimitText("cost", 100_000_000, "total")),
        ("cost 0.000000001 per week", LimitText("cost", 1, "week")),
        ("cost 7.50 per month for claude-opus-* in Europe/Berlin",
         LimitText("cost", 7_500_000_000, "month", models="claude-opus-*", time_zone="Europe/Berlin")),
        ("cost 1 per day in Asia/Tokyo strict", LimitText("cost", 10**9, "day", strict=True, time_zone="Asia/Tokyo")),
        ("concurrency 3", LimitText("concurrency", 3)),
        ("concurrency 0", LimitText("concurrency", 0)),
        ("concurrency 3 for claude-*", LimitText("concurrency", 3, models="claude-*")),
        ("  requests   1  per  hour ", LimitText("requests", 1, "hour")),
    ],
)  # fmt: skip
def test_it_reads(text: str, limit: LimitText) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("", "'' is no metric"),
        ("dollars 5 per day", "'dollars' is no metric"),
        ("cost", "'per' and a period"),
        ("cost 5", "'per' and a period"),
        ("cost 5 day", "'per' and a period"),
        ("cost 5 per", "'per' and a period"),
        ("cost 5 per fortnight", "'fortnight' is no period"),
        ("cost 5.0000000001 per day", "'5.0000000001' is not US dollars"),
        ("cost 1e3 per day", "'1e3' is not US dollars"),
        ("cost nan per day", "'nan' is not US dollars"),
        ("cost -1 per day", "'-1' is not US dollars"),
        ("cost .5 per day", "'.5' is not US dollars"),
        ("cost 1_000 per day", "'1_000' is not US dollars"),
        ("cost ٥ per day", "is not US dollars"),
        ("cost 10000000 per day", "too large"),
        ("requests 1.5 per day", "'1.5' is not a whole number"),
        ("requests x per day", "'x' is not a whole number"),
        ("requests 5 per day in Berlin", "'Berlin' is no IANA time zone"),
        ("requests 5 per day in", "a word is missing after 'in'"),
        ("requests 5 per day for", "a word is missing after 'for'"),
        ("requests 5 per day soft", "'soft' can't stand there"),
        ("requests 5 per day strict strict", "'strict' can't stand there"),
        ("concurrency", "the amount '' is not a whole number"),
        ("concurrency 5 per day", "'per' can't stand there"),
        ("concurrency 5 strict", "'strict' can't stand there"),
    ],
)  # fmt: skip
def test_it_refuses_by_name(text: str, wrong: str) -> None:
    with pytest.raises(LimitTextError) as refused:
        parse_limit(text)
    assert wrong in str(refused.value)


limits = st.one_of(
    st.builds(
        LimitText,
        st.sampled_from(["requests", "tokens", "cost"]),
        st.integers(0, LARGEST),
        per=st.sampled_from(PERIODS),
        strict=st.booleans(),
        models=st.from_regex(r"[a-z0-9*.:\[\]-]{0,12}", fullmatch=True),
        time_zone=st.sampled_from(sorted(zoneinfo.available_timezones())),
    ),
    st.builds(LimitText, st.just("concurrency"), st.integers(0, LARGEST)),
)


@given(limits)
def test_what_it_writes_it_reads_back_exactly(limit: LimitText) -> None:
    assert parse_limit(limit_text(limit)) == limit


@given(st.text(max_size=60))
def test_any_text_is_a_limit_or_is_refused(text: str) -> None:
    try:
        limit = parse_limit(text)
    except LimitTextError:
        return
    assert parse_limit(limit_text(limit)) == limit
