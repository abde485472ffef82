"""The call's traces: usage records, their corrections and roll-ups, the prices that made them, billing periods."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models.functions import Coalesce, NullIf
from django.utils import timezone


class Price(models.Model):
    """One version of one rate. Rows are ended and followed by new ones, never changed: records name their version."""

    provider = models.CharField(max_length=60)
    model = models.CharField(max_length=200, help_text="A model id; * matches any rest.")
    meter = models.CharField(max_length=60)
    # "" = standard; otherwise the service tier, speed or geo that the rate is for: "batch", "fast", "us" ...
    tier = models.CharField(max_length=40, blank=True)
    # Applies to calls whose whole input exceeds so many tokens (long-context tiers); 0 = from the first token.
    above_tokens = models.PositiveIntegerField(default=0)
    rate = models.BigIntegerField(help_text="Nano-dollars per million units.")
    valid_from = models.DateTimeField()
    valid_to = models.DateTimeField(null=True, blank=True)
    source = models.CharField(max_length=100)
    approved_by = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["provider", "model", "meter", "tier", "above_tokens", "-valid_from"]
        indexes: ClassVar = [models.Index(fields=["provider", "model", "meter"], name="price_lookup")]

    def __str__(self) -> str:
        return f"{self.provider} {self.model} {self.meter}"


# The model that answered, else the one that was sent, else the one that was asked for.
ANSWERING_MODEL = Coalesce(
    NullIf("response_model", models.Value("")), NullIf("upstream_model", models.Value("")), "requested_model"
)


class UsageRecord(models.Model):
    """Exactly one for each admitted call. Ids and name snapshots without foreign keys: nothing can stop the ledger.

    On PostgreSQL the table is range-partitioned by `id`, a UUIDv7; `created_at` is the id's timestamp.
    """

    id = models.UUIDField(primary_key=True)
    created_at = models.DateTimeField()
    key_id = models.BigIntegerField(null=True)
    key_name = models.CharField(max_length=100, blank=True)
    team_id = models.BigIntegerField(null=True)
    team_name = models.CharField(max_length=100, blank=True)
    account_id = models.BigIntegerField(null=True)
    account_name = models.CharField(max_length=100, blank=True)
    provider = models.CharField(max_length=60, blank=True)
    dialect = models.CharField(max_length=40, blank=True)
    endpoint = models.CharField(max_length=60, blank=True)
    requested_model = models.CharField(max_length=200, blank=True)
    upstream_model = models.CharField(max_length=200, blank=True)
    response_model = models.CharField(max_length=200, blank=True)
    stream = models.BooleanField(default=False)
    status = models.CharField(max_length=30)
    http_status = models.PositiveSmallIntegerField(null=True)
    error = models.CharField(max_length=200, blank=True)
    usage_source = models.CharField(max_length=12)
    input_tokens = models.BigIntegerField(null=True)
    cache_read_input_tokens = models.BigIntegerField(null=True)
    cache_creation_5m_input_tokens = models.BigIntegerField(null=True)
    cache_creation_1h_input_tokens = models.BigIntegerField(null=True)
    output_tokens = models.BigIntegerField(null=True)
    reasoning_tokens = models.BigIntegerField(null=True)
    # Beside the five counts above: what `lines` hold in tokens that is in none of them (relay.call.extra_tokens).
    extra_tokens = models.BigIntegerField(default=0, editable=False)
    cost_nanos = models.BigIntegerField(default=0)
    held_nanos = models.BigIntegerField(default=0)
    unpriced = models.BooleanField(default=False)
    price_version = models.CharField(max_length=60, blank=True)
    lines = models.JSONField(default=list)
    duration_ms = models.BigIntegerField(null=True)
    time_to_first_token_ms = models.BigIntegerField(null=True)
    attempts = models.JSONField(default=list)
    candidates = models.JSONField(default=list)
    flags = models.JSONField(default=list)
    provider_usage = models.TextField(blank=True)
    origin = models.CharField(max_length=10, default="client")
    upstream_request_id = models.CharField(max_length=200, blank=True)
    response_id = models.CharField(max_length=200, blank=True)
    session = models.CharField(max_length=200, blank=True)
    end_user = models.CharField(max_length=200, blank=True)
    user_agent = models.CharField(max_length=300, blank=True)
    tags = models.JSONField(default=dict)
    service_tier = models.CharField(max_length=40, blank=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [
            models.Index(fields=["key_id", "-id"], name="usage_by_key"),
            models.Index(fields=["account_id", "-id"], name="usage_by_account"),
            models.Index(fields=["team_id", "-id"], name="usage_by_team"),
            models.Index(fields=["provider", "-id"], name="usage_by_provider"),
            models.Index(ANSWERING_MODEL, models.F("id").desc(), name="usage_by_model"),
            models.Index(fields=["status", "-id"], name="usage_not_ok", condition=~models.Q(status="ok")),
            models.Index(
                fields=["usage_source", "-id"],
                name="usage_not_reported",
                condition=~models.Q(usage_source="provider"),
            ),
            models.Index(
                fields=["upstream_request_id"], name="usage_by_upstream_id", condition=~models.Q(upstream_request_id="")
            ),
            models.Index(fields=["session"], name="usage_by_session", condition=~models.Q(session="")),
            models.Index(fields=["response_id"], name="usage_by_response", condition=~models.Q(response_id="")),
            models.Index(fields=["-id"], name="usage_unpriced", condition=models.Q(unpriced=True)),
        ]

    def __str__(self) -> str:
        return str(self.id)


class UsageCorrection(models.Model):
    """A later change of a record: signed differences, who made it and why.

    The record's row has the corrected figures. The figures of an hour are therefore those of its records, minus the
    corrections of these records, plus the corrections booked in that hour.
    """

    record_id = models.UUIDField(db_index=True)
    # The period that the correction counts in: the record's own hour, or a later one once that period is closed.
    booked_at = models.DateTimeField(db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)
    author = models.CharField(max_length=150)
    reason = models.CharField(max_length=500)
    # {"field": [old, new]}: what the record said and says now.
    changes = models.JSONField(default=dict)
    # What sums group by, as relay.sums.whose has it: retention may drop the record first.
    whose = models.JSONField(default=dict)
    input_tokens = models.BigIntegerField(default=0)
    cache_read_input_tokens = models.BigIntegerField(default=0)
    cache_creation_5m_input_tokens = models.BigIntegerField(default=0)
    cache_creation_1h_input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    reasoning_tokens = models.BigIntegerField(default=0)
    cost_nanos = models.BigIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.record_id}: {self.reason}"


class RollUp(models.Model):
    """Sums of the records of one period, recomputed from them, never incremented."""

    team_id = models.BigIntegerField(default=0)  # 0 = none: part of the unique row, where NULLs would be distinct
    team_name = models.CharField(max_length=100, blank=True)
    key_id = models.BigIntegerField(default=0)
    key_name = models.CharField(max_length=100, blank=True)
    account_id = models.BigIntegerField(default=0)
    account_name = models.CharField(max_length=100, blank=True)
    provider = models.CharField(max_length=60, blank=True)
    model = models.CharField(max_length=200, blank=True)
    calls = models.BigIntegerField(default=0)
    errors = models.BigIntegerField(default=0)
    refused = models.BigIntegerField(default=0)
    estimated_calls = models.BigIntegerField(default=0)
    estimated_cost_nanos = models.BigIntegerField(default=0)
    unpriced_calls = models.BigIntegerField(default=0)
    input_tokens = models.BigIntegerField(default=0)
    cache_read_input_tokens = models.BigIntegerField(default=0)
    cache_creation_5m_input_tokens = models.BigIntegerField(default=0)
    cache_creation_1h_input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    reasoning_tokens = models.BigIntegerField(default=0)
    cost_nanos = models.BigIntegerField(default=0)
    held_nanos = models.BigIntegerField(default=0)
    duration_ms = models.BigIntegerField(default=0)
    time_to_first_token_ms = models.BigIntegerField(default=0)
    time_to_first_token_calls = models.BigIntegerField(default=0)

    class Meta:
        abstract = True


class UsageHour(RollUp):
    hour = models.DateTimeField()  # UTC

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["hour", "team_id", "key_id", "account_id", "provider", "model"], name="usage_hour_unique"
            )
        ]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H:00} {self.key_name} {self.model}"


class UsageDay(RollUp):
    day = models.DateField()  # of the installation's REPORT_TIME_ZONE

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["day", "team_id", "key_id", "account_id", "provider", "model"], name="usage_day_unique"
            )
        ]

    def __str__(self) -> str:
        return f"{self.day} {self.key_name} {self.model}"


class RetentionFloor(models.Model):
    """Records before this time were dropped. Their roll-ups stay as they are: nothing can recompute them any more."""

    before = models.DateTimeField()
    records = models.BigIntegerField(default=0)
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"before {self.before:%Y-%m-%d}: {self.records} records"


class RollUpMark(models.Model):
    """An hour whose records changed. Appended by each ledger batch, deleted by the roll-up that read exactly these.

    With a `day`, the hour is rolled up and that day is not yet.
    """

    hour = models.DateTimeField(db_index=True)
    day = models.DateField(null=True, blank=True)
    at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H:00}"


class Quarantine(models.Model):
    """A journal entry that the database refused. It waits here for a person; `reconcile` counts it."""

    record_id = models.CharField(max_length=36, db_index=True)
    at = models.DateTimeField(auto_now_add=True)
    error = models.CharField(max_length=500)
    entry = models.BinaryField()
    resolved_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-at"]
        verbose_name = "quarantined entry"
        verbose_name_plural = "quarantined entries"

    def __str__(self) -> str:
        return f"{self.record_id}: {self.error}"


class RefusalCount(models.Model):
    """Refused calls beyond the first ten a minute for each key and reason: counted, not recorded."""

    minute = models.DateTimeField()
    key_id = models.BigIntegerField()
    reason = models.CharField(max_length=60)
    count = models.BigIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["minute", "key_id", "reason"], name="refusal_count_unique")
        ]

    def __str__(self) -> str:
        return f"{self.count} x {self.reason}"


class BillingPeriod(models.Model):
    """A month, open or closed. Once closed, later changes count in the next open one."""

    start = models.DateField(unique=True)
    end = models.DateField(help_text="Exclusive.")
    closed_at = models.DateTimeField(null=True, blank=True)
    closed_by = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering: ClassVar = ["-start"]

    def __str__(self) -> str:
        return f"{self.start:%B %Y}"
