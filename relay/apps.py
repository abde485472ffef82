"""The relay as a Django app; with it come the checks that every command and server run first."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class RelayConfig(AppConfig):
    name = "relay"
    verbose_name = "Usage and money"

    def ready(self) -> None:
        import relay_site.checks  # noqa: F401 - registers them
        from relay.roles import renew_roles

        post_migrate.connect(renew_roles, sender=self)
