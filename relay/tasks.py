"""Celery tasks: thin wrappers around idempotent sweeps. When they run stands in settings.CELERY_BEAT_SCHEDULE."""

from __future__ import annotations

from datetime import UTC, datetime

from celery import shared_task
from django.conf import settings

from relay import partitions, repricing, rollup


@shared_task(name="relay.roll_up")
def roll_up() -> None:
    """Bring hours and days up to their records."""
    rollup.roll_up()


@shared_task(name="relay.reprice")
def reprice() -> None:
    """Price what was booked without a price, where one exists now."""
    repricing.reprice()


@shared_task(name="relay.keep_partitions")
def keep_partitions() -> None:
    """Make the partitions of the months ahead; drop records older than RELAY_RETENTION_MONTHS, if that is set."""
    now = datetime.now(UTC)
    partitions.create_partitions(now)
    if settings.RELAY_RETENTION_MONTHS:
        rollup.roll_up()
        partitions.drop_records(partitions.month_start(now, later=-settings.RELAY_RETENTION_MONTHS).date())
