"""Runs the simulated upstream: `manage.py simulator --port N`."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from relay.simulator.run import add_arguments, run


class Command(BaseCommand):
    help = "Run an upstream that stands for the vendors in the demo, tests and the bench (docs/simulator.md)."
    requires_system_checks: list[str] = []  # noqa: RUF012 - as Django names it

    def add_arguments(self, parser: CommandParser) -> None:
        add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        run(host=options["host"], port=options["port"])
