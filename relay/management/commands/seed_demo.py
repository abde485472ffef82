"""Fill the pages with a made-up month, or take it away again."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from relay import demo


class Command(BaseCommand):
    help = "Write a month of plausible, marked records through the real pricing and roll-ups; --remove takes them away."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--days", type=int, default=30, help="How many days back (30).")
        parser.add_argument("--per-day", type=int, default=300, help="About how many calls on a working day (300).")
        parser.add_argument("--remove", action="store_true", help="Remove everything that this command ever made.")

    def handle(self, *, days: int, per_day: int, remove: bool, **options: Any) -> None:
        if remove:
            self.stdout.write(f"Removed {demo.remove()} demo records, with their keys, teams and accounts.")
            return
        if not (1 <= days <= 400 and 1 <= per_day <= 100_000):
            raise CommandError("--days is 1 to 400, --per-day 1 to 100000.")
        try:
            seeded = demo.seed(days=days, per_day=per_day, now=datetime.now(UTC))
        except demo.DemoExists:
            raise CommandError("There is demo data already. Remove it first: manage.py seed_demo --remove") from None
        self.stdout.write(f"Wrote {seeded.records} demo records and rolled up {seeded.hours} hours.")
        self.stdout.write("They carry the tag demo=1. Remove them: manage.py seed_demo --remove")
