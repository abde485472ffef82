"""After every `migrate`, the tables that relays hold in memory are watched again."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class AccountsConfig(AppConfig):
    name = "accounts"
    verbose_name = "Upstreams"

    def ready(self) -> None:
        from accounts.triggers import watch_after_migrate

        post_migrate.connect(watch_after_migrate, dispatch_uid="accounts.triggers")
