"""Bring the keys of another relay along, so that its clients keep theirs."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from apikeys.foreign import identity, read_rows, suffix_named
from apikeys.key_text import KeyTextError
from apikeys.management.commands.create_key import create_key, said
from apikeys.models import ApiKey, DigestSuffix


class Command(BaseCommand):
    help = (
        "Import keys from a CSV file ('-' = standard input) with the columns name, secret or digest, and as you like "
        "team, expires, provider, limit, bind, model, tag, ip (several words with ; between them). All rows or none. "
        "A digest is the SHA-256 of the key, or of the key and a suffix, in hexadecimal digits."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file")
        parser.add_argument("--suffix", default="", metavar="NAME", help="What the digests were made with.")
        parser.add_argument(
            "--suffix-env",
            default="",
            metavar="VARIABLE",
            help="Make that suffix, from the text in this environment variable; stored encrypted, needed once.",
        )
        parser.add_argument("--json", action="store_true", help="Print one JSON document: a list of id and name.")

    def handle(self, *, file: str, suffix: str, suffix_env: str, **options: Any) -> None:
        text = os.environ.get(suffix_env, "") if suffix_env else ""
        if suffix_env and not (text and suffix):
            raise CommandError(f"{suffix_env} is not set." if suffix else "Name the suffix with --suffix, too.")
        if file != "-" and not Path(file).is_file():
            raise CommandError(f"There is no file {file}.")
        try:
            with transaction.atomic():
                rows = import_keys(file, suffix_named(suffix, text) if suffix else None)
        except KeyTextError as error:
            raise CommandError(str(error)) from error
        shown = [{"id": row.pk, "name": row.name} for row in rows]
        self.stdout.write(json.dumps(shown) if options["json"] else f"{len(rows)} keys imported.")


def import_keys(file: str, suffix: DigestSuffix | None) -> list[ApiKey]:
    """Make every key of the file; raises `KeyTextError` that names the line."""
    made = []
    with sys.stdin if file == "-" else Path(file).open(newline="", encoding="utf-8-sig") as lines:
        for number, row, options in read_rows(lines):
            try:
                used = suffix if row["digest"] else None
                known = identity(secret=row["secret"], digest=row["digest"], suffix=used)
                key, _ = create_key(row["name"], options, identity=known)
            except (ValueError, ValidationError) as error:
                raise KeyTextError(f"Line {number}: {said(error)}") from error
            if used is not None:
                ApiKey.objects.filter(pk=key.pk).update(digest_suffix=used)
            made.append(key)
    return made
