"""Calls that were booked without a price get one as soon as it exists."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

from django.db import transaction
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


def reprice(*, prices: PriceBook | None = None, now: datetime | None = None) -> int:
    """Price every `unpriced` record whose prices exist now, each by a correction; return how many became priced.

    Idempotent and safe to interrupt: each batch is a transaction. Records of models that still have no price are not
    read one by one: there may be many, and this is asked for every few minutes.
    """
    unpriced = UsageRecord.objects.filter(unpriced=True).order_by()
    models = list(unpriced.values_list("provider", "response_model", "upstream_model").distinct())
    if not models:
        return 0
    book, at = prices or load_prices(), now or datetime.now(UTC)
    done = 0
    for provider, response, upstream in models:
        if any(book.find(provider, name) is not None for name in names_of(response, upstream) if name):
            rows = unpriced.filter(provider=provider, response_model=response, upstream_model=upstream)
            done += sum(_batch(ids, book, at) for ids in _batches(rows))
    if done:
        logger.info("%d calls became priced", done)
    return done


def _batches(rows: QuerySet[UsageRecord]) -> Iterator[list[UUID]]:
    last = UUID(int=0)
    while ids := list(rows.filter(id__gt=last).order_by("id").values_list("id", flat=True)[:BATCH]):
        yield ids
        last = ids[-1]


@transaction.atomic
def _batch(ids: list[UUID], book: PriceBook, now: datetime) -> int:
    done = 0
    for record in UsageRecord.objects.select_for_update().filter(id__in=ids, unpriced=True).order_by("id"):
        bill = bill_of(record, book)
        if not bill.unpriced:
            correct_bill(record, bill, author=AUTHOR, reason=REASON, now=now)
            done += 1
    return done
