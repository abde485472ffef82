"""Change fields of an upstream account; running relays follow within two seconds."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts import account_rows
from accounts.fields import READ, AccountRefused


class Command(BaseCommand):
    help = (
        f"Change fields of an upstream account: {', '.join(READ)}, credential.NAME and those of its kind. "
        "An empty value empties the field; an unknown one is refused by name, and nothing is saved."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")
        parser.add_argument("changes", nargs="+", metavar="FIELD=VALUE")
        parser.add_argument("--json", action="store_true", help="Print one JSON document: id, name, changed.")

    def handle(self, *, name: str, changes: list[str], **options: Any) -> None:
        try:
            row, changed = account_rows.change(name, changes)
        except AccountRefused as error:
            raise CommandError(str(error)) from error
        shown = {"id": row.pk, "name": row.name, "changed": changed}
        self.stdout.write(
            json.dumps(shown) if options["json"] else f"Account {row.name}: {', '.join(changed)} changed."
        )
