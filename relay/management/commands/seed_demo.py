"""Fill the pages with a made-up month, or take it away again."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from relay import demo, demo_month
from relay.demo import Seeded

LEAST_URGENT = 19


class Command(BaseCommand):
    help = "Write a month of plausible, marked records through the real pricing and roll-ups; --remove takes them away."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--days", type=int, default=demo_month.DAYS, help="How many days back (30).")
        parser.add_argument(
            "--per-day", type=int, default=demo_month.PER_DAY, help="About how many calls on a working day (300)."
        )
        choice = parser.add_mutually_exclusive_group()
        choice.add_argument("--remove", action="store_true", help="Remove everything that this command ever made.")
        choice.add_argument(
            "--first-start", action="store_true", help="What `up` runs: the month, once, beside a relay that works."
        )

    def handle(self, *, days: int, per_day: int, remove: bool, first_start: bool, **options: Any) -> None:
        if remove:
            removed = demo_month.take_away()
            self.stdout.write(f"Removed {removed} demo records, with their keys, teams and accounts.")
            return
        try:
            seeded = first_month() if first_start else made(days=days, per_day=per_day)
        except demo.DemoExists:
            raise CommandError("There is demo data already. Remove it first: manage.py seed_demo --remove") from None
        except demo.DemoNameTaken:
            raise CommandError("A key, team or account of yours has a name of the demo's. Rename it first.") from None
        except demo.DemoClosed:
            raise CommandError("These days reach into a closed billing period. Choose fewer: --days N") from None
        except demo.DemoUnwanted:
            raise CommandError("Somebody has removed the demo data while it was written.") from None
        if seeded is not None:
            self.tell(seeded)

    def tell(self, seeded: Seeded) -> None:
        self.stdout.write(f"Wrote {seeded.records} demo records and rolled up {seeded.hours} hours.")
        self.stdout.write("They carry the tag demo=1 and the origin demo. Remove them: manage.py seed_demo --remove")


def first_month() -> Seeded | None:
    """The month of the first start, None where nobody wants it (any more)."""
    os.nice(LEAST_URGENT)
    return demo_month.fill()


def made(*, days: int, per_day: int) -> Seeded:
    if not (1 <= days <= 400 and 1 <= per_day <= 100_000):
        raise CommandError("--days is 1 to 400, --per-day 1 to 100000.")
    if demo_month.wanted():
        raise CommandError("`manage.py up` is writing the demo month. Remove it: manage.py seed_demo --remove")
    return demo.seed(days=days, per_day=per_day, now=datetime.now(UTC))
