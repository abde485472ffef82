"""Who calls us: teams, their API keys, the limits on both, and the accounts that a key is bound to."""

from __future__ import annotations

import zoneinfo
from decimal import Decimal
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.db import models


def family_choices() -> list[tuple[str, str]]:
    from relay.providers import FAMILIES

    return [(family, family.capitalize()) for family in FAMILIES]


def validate_time_zone(value: str) -> None:
    if value not in zoneinfo.available_timezones():
        raise ValidationError(f"{value!r} is no IANA time zone. Write it like Europe/Berlin.")


class SoftDeleteQuerySet(models.QuerySet[Any]):
    def alive(self) -> SoftDeleteQuerySet:
        return self.filter(deleted_at=None)


class Team(models.Model):
    name = models.CharField(max_length=100, unique=True)
    description = models.CharField(max_length=500, blank=True)
    cost_center = models.CharField(max_length=100, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = SoftDeleteQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class DigestSuffix(models.Model):
    """What another relay appended to its keys before it hashed them: with it, its clients keep their keys."""

    name = models.CharField(max_length=100, unique=True)
    suffix = models.BinaryField(editable=False, help_text="Encrypted text.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["name"]
        verbose_name = "digest suffix"
        verbose_name_plural = "digest suffixes"

    def __str__(self) -> str:
        return self.name


class ApiKey(models.Model):
    """What a client presents. Only the SHA-256 digest of it is stored: a lost key is rotated, never shown again."""

    name = models.CharField(max_length=100)
    public_id = models.CharField(max_length=20, unique=True, editable=False)
    digest = models.BinaryField(max_length=32, unique=True, editable=False)
    # After a rotation the old secret goes on for a while, so that clients can change over one by one.
    previous_digest = models.BinaryField(max_length=32, unique=True, null=True, editable=False)
    previous_until = models.DateTimeField(null=True, editable=False)
    # Set on keys that came from another relay which hashes with a suffix.
    digest_suffix = models.ForeignKey(DigestSuffix, models.PROTECT, null=True, blank=True, editable=False)
    team = models.ForeignKey(Team, models.PROTECT, null=True, blank=True, related_name="keys")
    active = models.BooleanField(default=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    families = models.JSONField(default=list, blank=True, help_text="Empty: all families.")
    model_patterns = models.JSONField(default=list, blank=True, help_text='Such as "claude-*"; empty: every model.')
    tags = models.JSONField(default=dict, blank=True)
    ip_allow = models.JSONField("IP allow-list", default=list, blank=True, help_text="CIDR; empty: any address.")
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = SoftDeleteQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["name"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return self.name


class Limit(models.Model):
    """How much of what, per when; on a key, a team or an account: exactly one of the three."""

    class Metric(models.TextChoices):
        REQUESTS = "requests", "Requests"
        TOKENS = "tokens", "Tokens"
        COST = "cost", "Cost (USD)"
        CONCURRENCY = "concurrency", "Calls at a time"

    class Per(models.TextChoices):
        MINUTE = "minute", "minute"
        HOUR = "hour", "hour"
        FIVE_HOURS = "5h", "5 hours"
        DAY = "day", "day"
        WEEK = "week", "week"
        MONTH = "month", "month"
        TOTAL = "total", "in total"

    key = models.ForeignKey(ApiKey, models.CASCADE, null=True, blank=True, related_name="limits")
    team = models.ForeignKey(Team, models.CASCADE, null=True, blank=True, related_name="limits")
    account = models.ForeignKey("accounts.Account", models.CASCADE, null=True, blank=True, related_name="limits")
    metric = models.CharField(max_length=12, choices=Metric.choices)
    # Requests, tokens or calls as they are; cost in nano-dollars, so that it adds up exactly.
    amount = models.BigIntegerField()
    per = models.CharField(max_length=8, choices=Per.choices, blank=True)
    model_pattern = models.CharField(max_length=200, blank=True, help_text='Such as "claude-*"; empty: every model.')
    time_zone = models.CharField(max_length=64, default="UTC", validators=[validate_time_zone])
    strict = models.BooleanField(default=False, help_text="Reserve the worst case: never overrun, may refuse early.")
    each_key = models.BooleanField(
        "for each key",
        default=False,
        help_text="Of a team: every key has this much for itself, unless it has such a limit of its own. "
        "Otherwise all keys of the team share it.",
    )

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                name="limit_for_each_key_is_a_teams", condition=models.Q(each_key=False) | models.Q(team__isnull=False)
            ),
            models.CheckConstraint(
                name="limit_has_one_owner",
                condition=(
                    models.Q(key__isnull=False, team__isnull=True, account__isnull=True)
                    | models.Q(key__isnull=True, team__isnull=False, account__isnull=True)
                    | models.Q(key__isnull=True, team__isnull=True, account__isnull=False)
                ),
            ),
            models.CheckConstraint(name="limit_amount_not_negative", condition=models.Q(amount__gte=0)),
        ]

    def __str__(self) -> str:
        per = f" per {self.get_per_display()}" if self.per else ""
        dollars = self.metric == self.Metric.COST
        amount = f"{Decimal(self.amount).scaleb(-9).normalize():f}" if dollars else self.amount
        return f"{self.get_metric_display()} {amount}{per}"


class Binding(models.Model):
    """A key bound to accounts or groups uses nothing else, unless `fallback` is set."""

    key = models.ForeignKey(ApiKey, models.CASCADE, related_name="bindings")
    account = models.ForeignKey("accounts.Account", models.CASCADE, null=True, blank=True)
    group = models.ForeignKey("accounts.AccountGroup", models.CASCADE, null=True, blank=True)
    fallback = models.BooleanField(default=False, help_text="Return to the pool when the bound ones can't serve.")

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                name="binding_has_one_target",
                condition=(
                    models.Q(account__isnull=False, group__isnull=True)
                    | models.Q(account__isnull=True, group__isnull=False)
                ),
            ),
        ]

    def __str__(self) -> str:
        return str(self.account or self.group)
