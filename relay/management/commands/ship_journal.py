"""Put what stands in journals into the database again: after a restored backup, or from another machine's disk."""

from __future__ import annotations

import json as json_module
from argparse import ArgumentParser
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from accounts.snapshot import ACCOUNTS
from apikeys.key_text import KeyTextError, moment_of
from relay.outside import folders_of, ship_all_again
from relay.rows import DatabaseAway
from relay.state import StoreAway
from relay.state.snapshot import SnapshotPoller


class Command(BaseCommand):
    help = (
        "Book every finished call of the journals that is not in the database. What is there already stays as it is, "
        "so it may be run at any time. Copy a folder from another machine only once its relay is dead: calls without "
        "an end are booked as interrupted."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("path", nargs="?", help="A journal folder, or a folder of them; default: this machine's.")
        parser.add_argument("--since", metavar="TIME", default="", help="Only what was written since (ISO 8601).")
        parser.add_argument("--json", action="store_true", help="Print one JSON document: folders, records, alive.")

    def handle(self, *, json: bool, **options: Any) -> None:
        root = Path(options["path"] or Path(settings.RELAY_DATA_DIR) / "journal")
        if options["path"] and not (root.is_dir() and folders_of(root)):
            raise CommandError(f"{root} is no journal folder and has none.")
        since = moment_or_error(options["since"])
        SnapshotPoller([ACCOUNTS], interval=1.0).load_all()
        try:
            done = ship_all_again(root, since=since.timestamp() if since else 0.0)
        except (DatabaseAway, StoreAway, OSError) as error:
            raise CommandError(f"{error}. Nothing is lost: run it again.") from error
        if json:
            self.stdout.write(json_module.dumps(asdict(done)))
        else:
            self.stdout.write(f"{done.folders} folders, {done.alive} of living processes, {done.records} new records.")


def moment_or_error(text: str) -> datetime | None:
    try:
        return moment_of(text, field="--since")
    except KeyTextError as error:
        raise CommandError(str(error)) from None
