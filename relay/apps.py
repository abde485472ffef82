"""The relay as a Django app; with it come the checks that every command and server run first."""

from __future__ import annotations

from django.apps import AppConfig


class RelayConfig(AppConfig):
    name = "relay"

    def ready(self) -> None:
        import relay_site.checks  # noqa: F401 - registers them
