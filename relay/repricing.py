"""Calls that were booked without a price get one as soon as it exists."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import msgspec
from django.db import DataError, transaction
from django.db.models import QuerySet

from relay.corrections import bill_of, correct_bill
from relay.metering import names_of
from relay.models import UsageRecord
from relay.prices import load_prices
from relay.pricing import PriceBook

logger = logging.getLogger(__name__)

AUTHOR = "repricing"
REASON = "A price exists now."
BATCH = 200
# What one record can have wrong: a line that can't be read, a cost that fits no column.
UNBOOKABLE = (ValueError, OverflowError, DataError, msgspec.MsgspecError)


def reprice(*, prices: PriceBook | None = None, now: datetime | None = None) -> int:
    """Price every `unpriced` record whose prices exist now, each by a correction; return how many became priced.

    Idempotent and safe to interrupt: each batch is a transaction. Records of models that still have no price are not
    read one by one: there may be many, and this is asked for every few minutes. One that can't be booked is left as it
    is, and told of in the log.
    """
    unpriced = UsageRecord.objects.filter(unpriced=True).order_by()
    models = list(unpriced.values_list("provider", "response_model", "upstream_model").distinct())
    if not models:
        return 0
    book, at = prices or load_prices(), now or datetime.now(UTC)
    done, left = 0, list[str]()
    for provider, response, upstream in models:
        if any(book.find(provider, name) is not None for name in names_of(response, upstream) if name):
            rows = unpriced.filter(provider=provider, response_model=response, upstream_model=upstream)
            done += sum(_batch(ids, book, at, left) for ids in _batches(rows))
    if done:
        logger.info("%d calls became priced", done)
    if left:
        logger.error("%d calls have a price that can't be booked; the first: %s", len(left), left[0])
    return done


def _batches(rows: QuerySet[UsageRecord]) -> Iterator[list[UUID]]:
    last = UUID(int=0)
    while ids := list(rows.filter(id__gt=last).order_by("id").values_list("id", flat=True)[:BATCH]):
        yield ids
        last = ids[-1]


@transaction.atomic
def _batch(ids: list[UUID], book: PriceBook, now: datetime, left: list[str]) -> int:
    """Price these records; return how many became priced, and add to `left` what can't be booked."""
    done = 0
    for record in UsageRecord.objects.select_for_update().filter(id__in=ids, unpriced=True).order_by("id"):
        try:
            bill = bill_of(record, book)
            if not bill.unpriced:
                with transaction.atomic():
                    correct_bill(record, bill, author=AUTHOR, reason=REASON, now=now)
                done += 1
        except UNBOOKABLE as error:
            left.append(f"{record.pk}: {type(error).__name__}: {str(error)[:200]}")
    return done
