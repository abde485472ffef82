"""Add an upstream account."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts import account_rows
from accounts.fields import CREDENTIAL, AccountRefused


class Command(BaseCommand):
    help = "Add an upstream account. An unknown kind, field or value is refused by name, and nothing is saved."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("kind", help="Which kind of upstream, such as claude_console.")
        parser.add_argument("name")
        many: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}
        parser.add_argument("--base-url", metavar="URL", help="The server's root; without: the vendor's own.")
        parser.add_argument("--credential", metavar="NAME=VALUE", help="Stored encrypted, never shown again.", **many)
        parser.add_argument("--priority", metavar="N", help="1 to 100; lower is tried first.")
        parser.add_argument("--model-map", metavar="JSON", help='Requested model -> upstream model: {"a": "b"}.')
        parser.add_argument("--set", metavar="FIELD=VALUE", dest="fields", help="Any other field.", **many)
        parser.add_argument("--json", action="store_true", help="Print one JSON document: id, name, kind.")

    def handle(self, *, kind: str, name: str, **options: Any) -> None:
        flags = {"base_url": options["base_url"], "priority": options["priority"], "model_map": options["model_map"]}
        words = [f"{field}={value}" for field, value in flags.items() if value is not None]
        words += [f"{CREDENTIAL}{word}" for word in options["credential"]]
        try:
            row = account_rows.create(kind, name, [*words, *options["fields"]])
        except AccountRefused as error:
            raise CommandError(str(error)) from error
        shown = {"id": row.pk, "name": row.name, "kind": row.kind}
        self.stdout.write(json.dumps(shown) if options["json"] else f"Account {row.name} added.")
