"""Encrypt every stored credential anew under the newest of RELAY_SECRET_KEYS, so that older keys can be taken away."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts.credentials import CredentialUnreadable, is_newest, rotate
from accounts.models import Account, AccountToken
from apikeys.models import DigestSuffix

SECRETS = ("credential", "proxy")


def stored() -> Iterator[tuple[Any, str, tuple[str, ...]]]:
    """Every row that holds something encrypted, its name, and the fields that do."""
    for account in Account.objects.order_by("pk").iterator():
        yield account, account.name, SECRETS
    for token in AccountToken.objects.select_related("account").order_by("pk").iterator():
        yield token, f"{token.account.name}: token", ("secret",)
    for suffix in DigestSuffix.objects.order_by("pk").iterator():
        yield suffix, suffix.name, ("suffix",)


class Command(BaseCommand):
    help = "Encrypt every stored secret anew under the newest key; safe to repeat, also while relays run."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--check", action="store_true", help="Change nothing; fail if something needs an old key.")
        parser.add_argument(
            "--json", action="store_true", help="Print one JSON document: rotated, current, unreadable."
        )

    def handle(self, *, check: bool, **options: Any) -> None:
        rotated, current, unreadable = 0, 0, []
        for row, name, fields in stored():
            for field in fields:
                token = bytes(getattr(row, field))
                if not token:
                    continue
                if is_newest(token):
                    current += 1
                    continue
                try:
                    fresh = rotate(token)
                except CredentialUnreadable:
                    unreadable.append(f"{name}: {field}")
                    continue
                # Only if nobody wrote a new one meanwhile.
                same = type(row)._default_manager.filter(pk=row.pk, **{field: token})
                rotated += 1 if check else same.update(**{field: fresh})
        found = {"rotated": rotated, "current": current, "unreadable": unreadable}
        verb = "need an older key" if check else "encrypted anew"
        text = f"{rotated} {verb}, {current} are under the newest, {len(unreadable)} can't be decrypted."
        self.stdout.write(json.dumps(found) if options["json"] else text)
        if unreadable or (check and rotated):
            raise CommandError("; ".join(f"{item} can't be decrypted" for item in unreadable) or text)
