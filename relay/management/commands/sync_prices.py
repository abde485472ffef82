"""Bring the price rows up to what the installed price catalogue says; works offline."""

from __future__ import annotations

import json as json_module
from argparse import ArgumentParser
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand

from relay.price_catalogue import catalogue_version
from relay.prices import Changes, sync

SHOWN = 20


class Command(BaseCommand):
    help = "Update the catalogue's price rows, from now on. The past, and rows that people set, stay as they are."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON document: source, added, changed ...")

    def handle(self, *, json: bool, **options: Any) -> None:
        changes = sync(now=datetime.now(UTC))
        if json:
            self.stdout.write(json_module.dumps({"source": catalogue_version(), **asdict(changes)}))
        else:
            self.stdout.write("\n".join(report(changes)))


def report(changes: Changes) -> list[str]:
    """Lines for a person: what changed, long lists cut."""
    lines = [f"Prices are those of {catalogue_version()}."]
    for name, items in asdict(changes).items():
        if items:
            lines.append(f"{name}: {len(items)}")
            lines += [f"  {item}" for item in items[:SHOWN]]
            lines += [f"  ... and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return lines
