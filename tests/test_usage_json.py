"""The usage command's contract: exactly these fields, oldest first."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apikeys.models import ApiKey
from relay.call import new_call_id
from relay.models import UsageRecord
from relay.usage_json import dollars, first_id

FIELDS = """id created_at key team account provider dialect endpoint requested_model upstream_model response_model
stream status http_status usage_source input_tokens cache_read_input_tokens cache_creation_5m_input_tokens
cache_creation_1h_input_tokens output_tokens reasoning_tokens cost_nanos unpriced price_version duration_ms
time_to_first_token_ms attempts lines origin upstream_request_id response_id session end_user user_agent tags
service_tier""".split()
NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z


def record(at: float = NOON, **fields: Any) -> UsageRecord:
    values = {"key_name": "ci", "status": "ok", "usage_source": "provider", **fields}
    return UsageRecord.objects.create(id=new_call_id(at), created_at=datetime.fromtimestamp(at, UTC), **values)


def usage(*arguments: str) -> Any:
    out = io.StringIO()
    call_command("usage", *arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


@pytest.mark.django_db
def test_a_record_has_the_fields_of_the_contract_in_order() -> None:
    row = record(
        NOON + 0.25,
        team_name="research",
        account_name="main",
        input_tokens=7,
        output_tokens=0,
        cost_nanos=2**53 + 1,
        attempts=[{"account": "main", "status": 200, "error": "", "duration_ms": 12, "internal": 1}],
        lines=[{"meter": "input_tokens", "quantity": 7, "model": "m", "rate": 3, "cost": 21}],
        tags={"job": "nightly"},
    )
    [shown] = usage()
    assert list(shown) == FIELDS
    assert shown["id"] == str(row.id)
    assert shown["created_at"] == "2026-11-23T12:00:00.250Z"
    assert (shown["key"], shown["team"], shown["account"]) == ("ci", "research", "main")
    assert (shown["input_tokens"], shown["output_tokens"], shown["reasoning_tokens"]) == (7, 0, None)
    assert shown["cost_nanos"] == 9007199254740993
    assert shown["attempts"] == [{"account": "main", "status": 200, "error": "", "duration_ms": 12}]
    assert shown["lines"] == [
        {
            "meter": "input_tokens",
            "quantity": 7,
            "model": "m",
            "tier": "",
            "speed": "",
            "geo": "",
            "rate": 3,
            "cost": 21,
        }
    ]
    assert shown["tags"] == {"job": "nightly"}


@pytest.mark.django_db
def test_records_come_oldest_first_and_limit_takes_the_newest() -> None:
    for second in (2, 0, 1):
        record(NOON + second, requested_model=str(second))
    assert [row["requested_model"] for row in usage()] == ["0", "1", "2"]
    assert [row["requested_model"] for row in usage("--limit", "2")] == ["1", "2"]


@pytest.mark.django_db
def test_it_chooses_by_call_key_and_time() -> None:
    first, second = record(NOON), record(NOON + 60, key_name="other")
    assert [row["id"] for row in usage("--call", str(first.id))] == [str(first.id)]
    assert [row["id"] for row in usage("--key", "other")] == [str(second.id)]
    assert [row["id"] for row in usage("--since", "2026-11-23T13:01:00+01:00")] == [str(second.id)]
    assert usage("--since", "2026-11-24") == []
    assert usage("--call", new_call_id(NOON)) == []


@pytest.mark.django_db
def test_a_renamed_key_is_found_by_its_present_name_too() -> None:
    key = ApiKey.objects.create(name="renamed", public_id="p", digest=b"d")
    row = record(key_name="before", key_id=key.pk)
    assert [found["id"] for found in usage("--key", "renamed")] == [str(row.id)]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--call", "x"], "--call 'x' is no call id"),
        (["--key", "nobody"], "No key is named 'nobody'"),
        (["--since", "yesterday"], "'yesterday' is no ISO 8601 time"),
        (["--since", "1960-01-01"], "--since '1960-01-01' is too far off"),
        (["--since", ""], "--since needs a time"),
        (["--limit", "0"], "--limit 0"),
    ],
)
def test_it_refuses_by_name(arguments: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        usage(*arguments)


@pytest.mark.django_db
def test_without_json_people_get_a_table() -> None:
    record(account_name="main", requested_model="claude-opus-4", input_tokens=5, cache_read_input_tokens=10)
    record(NOON + 1, unpriced=True)
    out = io.StringIO()
    call_command("usage", stdout=out)
    heading, first, second = out.getvalue().splitlines()
    assert heading.split()[:4] == ["TIME", "(UTC)", "KEY", "ACCOUNT"]
    assert first.split()[:9] == ["2026-11-23", "12:00:00", "ci", "main", "claude-opus-4", "ok", "15", "-", "0.00"]
    assert "unpriced" in second


def test_ids_are_bounded_by_time() -> None:
    moment = datetime.fromtimestamp(NOON, UTC)
    assert first_id(moment).hex <= new_call_id(NOON).replace("-", "")
    assert first_id(datetime(1960, 1, 1, tzinfo=UTC)).int == 0
    assert first_id(moment).hex > new_call_id(NOON - 0.001).replace("-", "")


@pytest.mark.parametrize(
    "nanos, text", [(0, "0.00"), (1, "0.000000001"), (5 * 10**9, "5.00"), (-1_500_000_000, "-1.50")]
)
def test_dollars_are_exact(nanos: int, text: str) -> None:
    assert dollars(nanos) == text
