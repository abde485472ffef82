"""Regular work: each scheduled task exists, does its sweep, and does not pile up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings
from django.test import override_settings
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import ModelEntry

from relay import tasks
from relay.models import RetentionFloor, RollUpMark, UsageHour, UsageRecord
from relay.partitions import month_start
from relay_site.celery import app
from tests.test_rollup import book


@pytest.mark.django_db
def test_every_scheduled_task_exists_and_expires_before_it_is_due_again() -> None:
    """As beat keeps them in its table: its scheduler reads other options than Celery's."""
    app.loader.import_default_modules()
    for name, entry in settings.CELERY_BEAT_SCHEDULE.items():
        ModelEntry.from_entry(name, app=app, **entry)
        task = PeriodicTask.objects.get(name=name)
        assert task.task in app.tasks and task.task == entry["task"]
        assert 0 < task.expire_seconds < task.schedule.run_every.total_seconds()


@pytest.mark.django_db
def test_roll_up_takes_the_marks() -> None:
    book(datetime.now(UTC))
    tasks.roll_up()
    assert (UsageHour.objects.get().calls, RollUpMark.objects.count()) == (1, 0)


@pytest.mark.django_db
@pytest.mark.parametrize(("months", "left"), [(0, 3), (1, 2), (2, 3)])
def test_retention_rolls_up_and_drops_whole_months_only_if_it_is_set(months: int, left: int) -> None:
    now = datetime.now(UTC)
    for at in (now, month_start(now), month_start(now, later=-1) - timedelta(seconds=1)):
        book(at)
    with override_settings(RELAY_RETENTION_MONTHS=months):
        tasks.keep_partitions()
    assert UsageRecord.objects.count() == left
    assert RetentionFloor.objects.exists() == (left < 3)
    if months:
        assert UsageHour.objects.filter(hour__lt=month_start(now)).get().calls == 1
