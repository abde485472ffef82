"""Usage records as scripts read them: the fields of DESIGN section 8, in that order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from relay.models import UsageRecord

# What a line of a record says; stored lines leave out what is empty.
LINE: Mapping[str, Any] = {
    "meter": "",
    "quantity": 0,
    "model": "",
    "tier": "",
    "speed": "",
    "geo": "",
    "rate": None,
    "cost": 0,
}
ATTEMPT = ("account", "status", "error", "duration_ms")


def usage_json(record: UsageRecord) -> dict[str, Any]:
    """Return one record; key, team and account by name, money in nano-dollars, times in milliseconds."""
    return {
        "id": str(record.id),
        "created_at": iso(record.created_at),
        "key": record.key_name,
        "team": record.team_name,
        "account": record.account_name,
        "provider": record.provider,
        "dialect": record.dialect,
        "endpoint": record.endpoint,
        "requested_model": record.requested_model,
        "upstream_model": record.upstream_model,
        "response_model": record.response_model,
        "stream": record.stream,
        "status": record.status,
        "http_status": record.http_status,
        "usage_source": record.usage_source,
        "input_tokens": record.input_tokens,
        "cache_read_input_tokens": record.cache_read_input_tokens,
        "cache_creation_5m_input_tokens": record.cache_creation_5m_input_tokens,
        "cache_creation_1h_input_tokens": record.cache_creation_1h_input_tokens,
        "output_tokens": record.output_tokens,
        "reasoning_tokens": record.reasoning_tokens,
        "cost_nanos": record.cost_nanos,
        "unpriced": record.unpriced,
        "price_version": record.price_version,
        "duration_ms": record.duration_ms,
        "time_to_first_token_ms": record.time_to_first_token_ms,
        "attempts": [{name: attempt.get(name) for name in ATTEMPT} for attempt in record.attempts],
        "lines": [{**LINE, **line} for line in record.lines],
        "origin": record.origin,
        "upstream_request_id": record.upstream_request_id,
        "response_id": record.response_id,
        "session": record.session,
        "end_user": record.end_user,
        "user_agent": record.user_agent,
        "tags": record.tags,
        "service_tier": record.service_tier,
    }


def iso(moment: datetime) -> str:
    """UTC to the millisecond, which is what a UUIDv7 holds: 2026-11-23T10:00:00.123Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def first_id(moment: datetime) -> UUID:
    """The lowest UUIDv7 of that moment: queries over time bound the key, because the table is partitioned by it."""
    return UUID(int=max(0, int(moment.timestamp() * 1000)) << 80)


def table(records: Iterable[UsageRecord]) -> list[str]:
    """The records as lines for people, a heading first."""
    heading = ("TIME (UTC)", "KEY", "ACCOUNT", "MODEL", "STATUS", "INPUT", "OUTPUT", "USD", "MS", "CALL")
    rows: list[tuple[str, ...]] = [heading]
    rows += [row_of(record) for record in records]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def row_of(record: UsageRecord) -> tuple[str, ...]:
    counts = (
        record.input_tokens,
        record.cache_read_input_tokens,
        record.cache_creation_5m_input_tokens,
        record.cache_creation_1h_input_tokens,
    )
    known = [count for count in counts if count is not None]
    return (
        f"{record.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
        record.key_name,
        record.account_name or "-",
        record.requested_model or "-",
        record.status,
        str(sum(known)) if known else "-",
        "-" if record.output_tokens is None else str(record.output_tokens),
        "unpriced" if record.unpriced else dollars(record.cost_nanos),
        "-" if record.duration_ms is None else str(record.duration_ms),
        str(record.id),
    )


def dollars(nanos: int) -> str:
    """Nano-dollars as dollars, exactly, at least two places."""
    sign, (whole, rest) = "-" if nanos < 0 else "", divmod(abs(nanos), 10**9)
    places = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{places}"
