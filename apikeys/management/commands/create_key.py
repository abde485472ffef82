"""Make an API key and show it, this once."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from apikeys import key_text
from apikeys.authentication import new_secret
from apikeys.key_rows import set_bindings, set_limits, team_named
from apikeys.limit_text import parse_limit
from apikeys.models import ApiKey


class Command(BaseCommand):
    help = "Make an API key and show it: the only time, because only a digest of it is stored."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")
        many: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}
        parser.add_argument("--provider", metavar="FAMILY", help="What it may call; without: everything.", **many)
        parser.add_argument("--limit", metavar="LIMIT", help="Such as 'cost 5 per day strict'.", **many)
        parser.add_argument("--bind", metavar="NAME", help="Account or group that it uses; NAME:fallback.", **many)
        parser.add_argument("--model", metavar="PATTERN", help="Models that it may ask for: 'claude-*'.", **many)
        parser.add_argument("--team", default="", help="Whose usage it is; made if there is no such team yet.")
        parser.add_argument("--tag", metavar="NAME=VALUE", help="Stands in all its usage records.", **many)
        parser.add_argument("--expires", metavar="TIME", default="", help="ISO 8601.")
        parser.add_argument("--ip", metavar="CIDR", help="Addresses that may use it; without: any.", **many)
        parser.add_argument("--json", action="store_true", help="Print one JSON document: id, name, key.")

    def handle(self, *, name: str, json: bool, **options: Any) -> None:
        try:
            row, secret = create_key(name, options)
        except (ValueError, ValidationError) as error:
            raise CommandError(said(error)) from error
        shown = {"id": row.pk, "name": row.name, "key": secret}
        self.stdout.write(as_json(shown) if json else f"Key {row.name}: {secret}\nIt is not shown again.")


@transaction.atomic
def create_key(
    name: str, options: dict[str, Any], *, identity: tuple[str, str, bytes] | None = None
) -> tuple[ApiKey, str]:
    """Return the row and the whole key; saves nothing and raises `ValueError` (also Django's) if a word is wrong.

    `identity` = public id, whole key and digest of a key that exists elsewhere already.
    """
    if ApiKey.objects.filter(name=name, deleted_at=None).exists():
        raise key_text.KeyTextError(f"A key named {name!r} exists already.")
    public_id, secret, digest = identity or new_secret()
    if ApiKey.objects.filter(digest=digest).exists():
        raise key_text.KeyTextError(f"The key of {name!r} is here already, under another name or deleted.")
    row = ApiKey(
        name=key_text.name_of("name", name),
        public_id=public_id,
        digest=digest,
        team=team_named(options["team"]),
        expires_at=key_text.moment_of(options["expires"], field="expires"),
        families=key_text.families_of(options["provider"]),
        model_patterns=key_text.listed(key_text.filled("model", options["model"])),
        tags=key_text.tags_of(options["tag"]),
        ip_allow=key_text.networks_of(options["ip"]),
    )
    row.full_clean()
    row.save()
    set_limits(row, [parse_limit(text) for text in options["limit"]])
    set_bindings(row, key_text.filled("bind", options["bind"]))
    return row, secret


def said(error: ValueError | ValidationError) -> str:
    """The error in words, field by field."""
    if isinstance(error, ValidationError) and hasattr(error, "message_dict"):
        return " ".join(f"{field}: {' '.join(messages)}" for field, messages in error.message_dict.items())
    return str(error)


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
