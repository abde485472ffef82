"""Price the calls that were booked without a price, where one exists now."""

from __future__ import annotations

import json as json_module
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from relay.models import UsageRecord
from relay.repricing import reprice


class Command(BaseCommand):
    help = "Price `unpriced` records whose prices exist now; each one gets a correction. Also done by a regular task."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON document: repriced, unpriced.")

    def handle(self, *, json: bool, **options: Any) -> None:
        shown = {"repriced": reprice(), "unpriced": UsageRecord.objects.filter(unpriced=True).count()}
        self.stdout.write(
            json_module.dumps(shown) if json else f"{shown['repriced']} priced, {shown['unpriced']} left."
        )
