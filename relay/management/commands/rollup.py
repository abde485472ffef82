"""Recompute the hours and days that changed."""

from __future__ import annotations

import json as json_module
from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from relay.management.commands.ship_journal import moment_or_error
from relay.rollup import mark_since, roll_up


class Command(BaseCommand):
    help = "Roll up the hours whose records or corrections changed. Celery does it every minute."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--since", metavar="TIME", default="", help="Recompute every hour from this one on (ISO 8601)."
        )
        parser.add_argument("--json", action="store_true", help="Print one JSON document: hours, failed.")

    def handle(self, *, json: bool, **options: Any) -> None:
        since = moment_or_error(options["since"])
        if since is not None:
            mark_since(since, until=datetime.now(UTC))
        done = roll_up()
        failed = [hour.isoformat() for hour in done.failed]
        if json:
            self.stdout.write(json_module.dumps({"hours": done.hours, "failed": failed}))
        else:
            self.stdout.write(f"{done.hours} hours rolled up.")
        if failed:
            raise CommandError(f"these hours could not be written: {', '.join(failed)}")
