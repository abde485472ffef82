"""Whom we call: upstream accounts, the groups they form, and what happened to them."""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models


def kind_choices() -> list[tuple[str, str]]:
    """The registry's kinds; a callable, so that a new provider needs no migration."""
    from relay.providers import PROVIDERS

    return [(kind, provider.label) for kind, provider in PROVIDERS.items()]


class SoftDeleteQuerySet(models.QuerySet[Any]):
    def alive(self) -> SoftDeleteQuerySet:
        return self.filter(deleted_at=None)


class AccountGroup(models.Model):
    name = models.CharField(max_length=100, unique=True)
    description = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class Account(models.Model):
    """One login at a provider. The credential is encrypted at rest and can be written, not read."""

    class OnDisconnect(models.TextChoices):
        ABORT = "abort", "Abort the upstream call"
        DRAIN = "drain", "Let the upstream call finish"

    name = models.CharField(max_length=100, unique=True)
    description = models.CharField(max_length=500, blank=True)
    kind = models.CharField(max_length=40, choices=kind_choices)
    base_url = models.CharField("base URL", max_length=500, blank=True, help_text="Empty: the vendor's own address.")
    credential = models.BinaryField(editable=False, default=bytes, help_text="Encrypted JSON.")
    provider = models.CharField(
        "price owner", max_length=60, blank=True, help_text="Whose prices apply. Empty: the kind's own."
    )
    settings = models.JSONField(default=dict, blank=True, help_text="Fields of this kind: region, location, project.")
    active = models.BooleanField(default=True, help_text="The human switch. Automatic recovery never changes it.")
    priority = models.PositiveSmallIntegerField(
        default=50, validators=[MinValueValidator(1), MaxValueValidator(100)], help_text="Lower is tried first."
    )
    weight = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1)])
    slots = models.PositiveIntegerField(default=0, help_text="Calls at a time; 0 = unlimited.")
    proxy = models.BinaryField(editable=False, default=bytes, help_text="Encrypted URL; it may carry a password.")
    model_map = models.JSONField(
        default=dict, blank=True, help_text="Requested model -> upstream model; also the list of supported models."
    )
    groups = models.ManyToManyField(AccountGroup, blank=True, related_name="accounts")
    on_disconnect = models.CharField(max_length=10, choices=OnDisconnect.choices, default=OnDisconnect.ABORT)
    cooldowns = models.JSONField(default=dict, blank=True, help_text="Seconds of rest by cause; 0 = never rest.")
    expires_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = SoftDeleteQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["priority", "name"]

    def __str__(self) -> str:
        return self.name


class AccountEvent(models.Model):
    """What happened to an account: rested, recovered, credential rejected, switched. No foreign key: it outlives it."""

    account_id = models.BigIntegerField(db_index=True)
    account_name = models.CharField(max_length=100)
    at = models.DateTimeField(db_index=True)
    kind = models.CharField(max_length=40)  # "rest", "recovered", "credential" ...
    model = models.CharField(max_length=200, blank=True)  # "" = the whole account
    cause = models.CharField(max_length=200, blank=True)
    until = models.DateTimeField(null=True, blank=True)
    http_status = models.PositiveSmallIntegerField(null=True, blank=True)
    named = models.BooleanField(default=False)  # the upstream named `until`; otherwise it is Baton's guess

    class Meta:
        ordering: ClassVar = ["-at"]

    def __str__(self) -> str:
        return f"{self.account_name}: {self.kind}"


class AccountToken(models.Model):
    """The access token that a token server gave for an account's credential. A row of its own: it changes by the hour,
    and by nobody's hand. The lease decides which process asks for the next one."""

    account = models.OneToOneField(Account, on_delete=models.CASCADE, primary_key=True, related_name="token")
    secret = models.BinaryField(editable=False, default=bytes)  # encrypted: access_token, refresh_token
    origin = models.CharField(max_length=64, blank=True)
    version = models.PositiveIntegerField(default=0)
    issued_at = models.DateTimeField(null=True)
    due_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)
    leased_by = models.CharField(max_length=36, blank=True)
    leased_until = models.DateTimeField(null=True)  # nobody else asks before; after a failure, nobody at all
    failure = models.CharField(max_length=40, blank=True)  # of the last try, "" = it succeeded

    def __str__(self) -> str:
        return f"token {self.version} of account {self.account_id}"


class TableVersion(models.Model):
    """One counter for each table whose rows the relay holds in memory; triggers raise it, the relay polls it."""

    table = models.CharField(max_length=60, primary_key=True)
    version = models.BigIntegerField(default=1)

    def __str__(self) -> str:
        return f"{self.table} {self.version}"
