"""Later changes of a record: the row says what is right, a correction says what changed, who did it and why.

The figures of an hour are its records as they were first booked, plus the corrections booked in it. Where nothing is
closed that is simply the records as they are; a closed period keeps its figures, the difference counts later.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

import msgspec
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction

from relay.call import Line, Quantity, Usage
from relay.dialects import anthropic_usage
from relay.metering import names_of
from relay.models import BillingPeriod, RollUpMark, UsageCorrection, UsageRecord
from relay.prices import load_prices
from relay.pricing import OWN_PLACES, UNITS, Bill, PriceBook, cost
from relay.sums import whose

COUNTS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
    "output_tokens",
    "reasoning_tokens",
)
MAIN_METERS = frozenset(COUNTS[:5])
# A change of these prices the record anew, as of its own time.
PRICED_BY = frozenset((*COUNTS[:5], "provider", "upstream_model", "response_model", "service_tier"))
# Whose usage it is: reports group by these, so a closed period holds them fast.
ATTRIBUTION = frozenset(
    {"team_id", "team_name", "key_id", "key_name", "account_id", "account_name", "provider", "tags"}
)
MODELS = frozenset({"upstream_model", "response_model"})
OTHERS = frozenset({"status", "error", "usage_source", "end_user", "session", "held_nanos", "cost_nanos"})
NUMBERS = frozenset((*COUNTS, "cost_nanos", "held_nanos"))
CORRECTABLE = frozenset(COUNTS) | PRICED_BY | ATTRIBUTION | MODELS | OTHERS
COLUMNS = {column.attname: column for column in UsageRecord._meta.concrete_fields}
STREAMED = ("message_start", "message_delta")  # events whose usage objects a record keeps
ADJUSTMENT = "adjustment"
FLAG = "corrected"


class CorrectionError(ValueError):
    """Why a record can't be changed like that, naming the field."""


@transaction.atomic
def correct(
    record_id: UUID | str,
    changes: Mapping[str, Any],
    *,
    author: str,
    reason: str,
    prices: PriceBook | None = None,
    now: datetime | None = None,
) -> UsageCorrection:
    """Change fields of a record (see `CORRECTABLE`) and book the difference; return the correction.

    Changed counts or names are priced anew with the prices of the call's time; a given `cost_nanos` goes before that
    and becomes a line of its own. Raises `CorrectionError`, `UsageRecord.DoesNotExist`.
    """
    record = UsageRecord.objects.select_for_update().get(pk=record_id)
    before = {name: getattr(record, name) for name in _kept_fields()}
    cleaned = {name: _checked(name, value) for name, value in changes.items()}
    wanted = {name: value for name, value in cleaned.items() if value != before[name]}
    booked_at = hour_of_booking(record.created_at, now=now or datetime.now(UTC))
    if booked_at != _hour(record.created_at) and (held := sorted((ATTRIBUTION | MODELS) & wanted.keys())):
        raise CorrectionError(f"{held[0]}: the record's billing period is closed; it stays where it was reported.")
    for name, value in wanted.items():
        setattr(record, name, value)
    if wanted.keys() & PRICED_BY:
        apply_bill(record, bill_of(record, prices or load_prices()))
    if cleaned.get("cost_nanos", record.cost_nanos) != record.cost_nanos or "cost_nanos" in wanted:
        _adjust(record, cleaned["cost_nanos"])
    if "held_nanos" not in wanted and wanted.keys() & {*COUNTS, "cost_nanos"}:
        record.held_nanos = 0  # it stood for figures that were not known
    return _book(record, before, author=author, reason=reason, booked_at=booked_at)


def correct_bill(record: UsageRecord, bill: Bill, *, author: str, reason: str, now: datetime) -> UsageCorrection:
    """Book another price for the same usage, inside the caller's transaction, which holds the row."""
    before = {name: getattr(record, name) for name in _kept_fields()}
    apply_bill(record, bill)
    return _book(record, before, author=author, reason=reason, booked_at=hour_of_booking(record.created_at, now=now))


def _kept_fields() -> list[str]:
    return sorted(CORRECTABLE | {"unpriced", "price_version"})


def _checked(name: str, value: Any) -> Any:
    """The value as its column takes it; raises `CorrectionError`."""
    if name not in CORRECTABLE:
        raise CorrectionError(f"{name}: can't be corrected.")
    column = COLUMNS[name]
    if value is None and not column.null:
        raise CorrectionError(f"{name}: must have a value.")
    if value is None:
        return None
    if name in NUMBERS and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53):
        raise CorrectionError(f"{name}: must be a whole number, 0 or more.")
    try:
        value = column.to_python(value)
        column.run_validators(value)
    except ValidationError as error:
        raise CorrectionError(f"{name}: {' '.join(error.messages)}") from error
    return value


def usage_of(record: UsageRecord) -> Usage:
    """What the record says was used: its counts, and the lines of whatever else was billed."""
    lines = [msgspec.convert(line, Line) for line in record.lines]
    first = lines[0] if lines else None
    return Usage(
        input_tokens=record.input_tokens,
        cache_read_input_tokens=record.cache_read_input_tokens,
        cache_creation_5m_input_tokens=record.cache_creation_5m_input_tokens,
        cache_creation_1h_input_tokens=record.cache_creation_1h_input_tokens,
        output_tokens=record.output_tokens,
        reasoning_tokens=record.reasoning_tokens,
        extra=tuple(
            Quantity(line.meter, line.quantity, line.model if line.run else "", line.run, line.within)
            for line in lines
            if (line.run or line.meter not in MAIN_METERS) and line.meter != ADJUSTMENT
        ),
        longest_prompt=_longest_prompt(record.provider_usage),
        service_tier=record.service_tier,
        speed=first.speed if first is not None else "",
        geo=first.geo if first is not None else next((flag for flag in record.flags if flag in OWN_PLACES), ""),
    )


def _longest_prompt(provider_usage: str) -> int | None:
    """What no column tells of counts that add up several model runs, as only Anthropic's do: a whole answer's usage
    object, or those of a stream by their events."""
    if '"iterations"' not in provider_usage:
        return None
    try:
        reported = anthropic_usage.mapping(msgspec.json.decode(provider_usage))
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None
    fields: Mapping[str, Any] = {}
    for part in [reported[event] for event in STREAMED if event in reported] or [reported]:
        fields = anthropic_usage.merge(fields, anthropic_usage.mapping(part))
    return anthropic_usage.read(fields, raw=b"").longest_prompt


def bill_of(record: UsageRecord, prices: PriceBook) -> Bill:
    """What the record's usage costs by the prices of its time."""
    return cost(
        usage_of(record),
        models=names_of(record.response_model, record.upstream_model),
        provider=record.provider,
        book=prices,
        at=record.created_at.timestamp(),
    )


def apply_bill(record: UsageRecord, bill: Bill) -> None:
    record.lines = msgspec.to_builtins(bill.lines)
    record.cost_nanos, record.unpriced, record.price_version = bill.cost, bill.unpriced, bill.version


def _adjust(record: UsageRecord, nanos: int) -> None:
    """Make the lines add up to what a person says it cost."""
    lines = [msgspec.convert(line, Line) for line in record.lines]
    lines = [line for line in lines if line.meter != ADJUSTMENT]
    missing = nanos - sum(line.cost for line in lines)
    model = record.response_model or record.upstream_model
    if missing:
        lines.append(Line(ADJUSTMENT, 1, model, rate=missing * UNITS, cost=missing))
    record.lines = msgspec.to_builtins(lines)
    record.cost_nanos, record.unpriced = nanos, False


def _book(
    record: UsageRecord, before: Mapping[str, Any], *, author: str, reason: str, booked_at: datetime
) -> UsageCorrection:
    changed = {name: [old, getattr(record, name)] for name, old in before.items() if old != getattr(record, name)}
    if not changed:
        raise CorrectionError("Nothing changes.")
    counted = bool(changed.keys() & {"output_tokens", "reasoning_tokens"})
    if counted and record.reasoning_tokens is not None and record.reasoning_tokens > (record.output_tokens or 0):
        raise CorrectionError("reasoning_tokens: they are a part of output_tokens and can't exceed them.")
    if FLAG not in record.flags:
        record.flags = [*record.flags, FLAG]
    record.save(update_fields=[*changed, "lines", "flags"])
    difference = {
        name: (getattr(record, name) or 0) - (before[name] or 0) for name in (*COUNTS, "cost_nanos") if name in changed
    }
    # Earlier corrections that count in other hours count there for whom the record is now.
    earlier, owner = UsageCorrection.objects.filter(record_id=record.pk).order_by(), whose(record)
    for hour in {booked_at, _hour(record.created_at), *map(_hour, earlier.values_list("booked_at", flat=True))}:
        RollUpMark.objects.create(hour=hour)
    earlier.update(whose=owner)
    given = {"author": author, "reason": reason, "changes": changed, "whose": owner, **difference}
    return UsageCorrection.objects.create(record_id=record.pk, booked_at=booked_at, **given)


def hour_of_booking(created_at: datetime, *, now: datetime) -> datetime:
    """The hour that a change of a record counts in: its own, or, once that period is closed, now, or the beginning
    of the next open period if that lies ahead."""
    opens = _end_of_closed(created_at)
    if opens is None:
        return _hour(created_at)
    hour = _hour(max(opens, now))
    # Where days begin within an hour, that hour begins on the last closed day.
    return hour if hour >= opens else hour + timedelta(hours=1)


def _end_of_closed(moment: datetime) -> datetime | None:
    """When the closed periods from `moment` on, one after the other, end; None where it lies in an open one."""
    zone = zoneinfo.ZoneInfo(settings.REPORT_TIME_ZONE)
    closed = BillingPeriod.objects.exclude(closed_at=None)
    day, end = moment.astimezone(zone).date(), None
    while (period := closed.filter(start__lte=day, end__gt=day).first()) is not None:
        day = end = period.end
    return datetime.combine(end, time(), zone) if end is not None else None


def _hour(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
