"""Calls that were booked without a price get one as soon as it exists."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from uuid import UUID

from django.db import transaction

from relay.corrections import bill_of, correct_bill
from relay.models import UsageRecord
from relay.prices import load_prices
from relay.pricing import PriceBook

logger = logging.getLogger(__name__)

AUTHOR = "repricing"
REASON = "A price exists now."
BATCH = 200


def reprice(*, prices: PriceBook | None = None, now: datetime | None = None) -> int:
    """Price every `unpriced` record whose prices exist now, each by a correction; return how many became priced.

    Idempotent and safe to interrupt: each batch is a transaction.
    """
    book, at = prices or load_prices(), now or datetime.now(UTC)
    done, last = 0, UUID(int=0)
    while True:
        rows = UsageRecord.objects.filter(unpriced=True, id__gt=last).order_by("id").values_list("id", flat=True)
        ids = list(rows[:BATCH])
        if not ids:
            return done
        last = ids[-1]
        done += _batch(ids, book, at)


@transaction.atomic
def _batch(ids: list[UUID], book: PriceBook, now: datetime) -> int:
    done = 0
    for record in UsageRecord.objects.select_for_update().filter(id__in=ids, unpriced=True).order_by("id"):
        bill = bill_of(record, book)
        if not bill.unpriced:
            correct_bill(record, bill, author=AUTHOR, reason=REASON, now=now)
            done += 1
    if done:
        logger.info("%d calls became priced", done)
    return done
