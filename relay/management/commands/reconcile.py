"""Prove that roll-ups equal records and corrections."""

from __future__ import annotations

import json as json_module
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand

from relay import reconcile
from relay.management.commands.ship_journal import moment_or_error


class Command(BaseCommand):
    help = "Compare every hour and day with its records and corrections; ends with 1 where something is wrong."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--since", metavar="TIME", default="", help="Only from this hour on (ISO 8601).")
        parser.add_argument("--json", action="store_true", help="Print one JSON document: ok, reasons, differences ...")

    def handle(self, *, json: bool, **options: Any) -> None:
        since = moment_or_error(options["since"])
        report = reconcile.reconcile(now=datetime.now(UTC), since=since)
        if json:
            self.stdout.write(json_module.dumps({"ok": report.ok, "reasons": report.reasons, **asdict(report)}))
        else:
            self.stdout.write("\n".join(reconcile.lines(report)))
        if not report.ok:
            sys.exit(1)
