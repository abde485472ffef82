"""Change fields of an API key; running processes follow within two seconds."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from apikeys.key_rows import key_named, set_bindings, set_limits, team_named
from apikeys.key_text import COLUMNS, assignments
from apikeys.limit_text import parse_limit
from apikeys.management.commands.create_key import as_json, said
from apikeys.models import ApiKey

RELATED = ("team", "limit", "bind")


class Command(BaseCommand):
    help = (
        f"Change fields of an API key: {', '.join([*COLUMNS, *RELATED])}. "
        "A list is replaced by all that is given for it (limit=... limit=...) and emptied by FIELD=."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")
        parser.add_argument("changes", nargs="+", metavar="FIELD=VALUE")
        parser.add_argument("--json", action="store_true", help="Print one JSON document: id, name, changed.")

    def handle(self, *, name: str, changes: list[str], json: bool, **options: Any) -> None:
        try:
            row, changed = set_key(name, changes)
        except (ValueError, ValidationError) as error:
            raise CommandError(said(error)) from error
        shown = {"id": row.pk, "name": row.name, "changed": changed}
        self.stdout.write(as_json(shown) if json else f"Key {row.name}: {', '.join(changed)} changed.")


@transaction.atomic
def set_key(name: str, changes: list[str]) -> tuple[ApiKey, list[str]]:
    """Return the row and the names of the fields set; saves nothing if one of them is wrong."""
    row = key_named(name)
    fields = assignments(changes, known=[*COLUMNS, *RELATED])
    for field, words in fields.items():
        if field in COLUMNS:
            column, read = COLUMNS[field]
            setattr(row, column, read(words))
    if "team" in fields:
        row.team = team_named(fields["team"][-1])
    if row.name != name and ApiKey.objects.filter(name=row.name, deleted_at=None).exists():
        raise ValueError(f"A key named {row.name!r} exists already.")
    row.full_clean()
    row.save()
    if "limit" in fields:
        set_limits(row, [parse_limit(text) for text in fields["limit"] if text])
    if "bind" in fields:
        set_bindings(row, fields["bind"])
    return row, list(fields)
