"""Bring the journals of dead processes to their end."""

from __future__ import annotations

import json as json_module
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from accounts.snapshot import ACCOUNTS
from relay.outside import recover_all
from relay.rows import DatabaseAway
from relay.state import StoreAway
from relay.state.snapshot import SnapshotPoller


class Command(BaseCommand):
    help = (
        "Book what relays that died left in their journals: finished calls as they ended, open ones as interrupted. "
        "Every relay that lives does it by itself; folders of living processes are left alone."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON document: folders, records, alive.")

    def handle(self, *, json: bool, **options: Any) -> None:
        SnapshotPoller([ACCOUNTS], interval=1.0).load_all()
        try:
            done = recover_all(Path(settings.RELAY_DATA_DIR) / "journal")
        except (DatabaseAway, StoreAway, OSError) as error:
            raise CommandError(f"{error}. Nothing is lost: run it again.") from error
        if json:
            self.stdout.write(json_module.dumps(asdict(done)))
        else:
            self.stdout.write(f"{done.folders} folders, {done.alive} of living processes, {done.records} new records.")
