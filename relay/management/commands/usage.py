"""Show usage records, oldest first."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q, QuerySet

from apikeys.key_text import KeyTextError, moment_of
from apikeys.models import ApiKey
from relay.demo_calls import ORIGIN
from relay.models import UsageRecord
from relay.usage_json import first_id, table, usage_json

SHOWN = 50


class Command(BaseCommand):
    help = "Show usage records, oldest first."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--call", metavar="ID", help="The record of one call: its x-request-id.")
        parser.add_argument("--key", metavar="NAME")
        parser.add_argument("--since", metavar="TIME", help="ISO 8601.")
        parser.add_argument("--limit", type=int, metavar="N", help=f"The newest N only; without --json {SHOWN}.")
        parser.add_argument("--demo", action="store_true", help="With the made-up records of seed_demo.")
        parser.add_argument("--json", action="store_true", help="Print one JSON document: a list of all of them.")

    def handle(self, *, json: bool, **options: Any) -> None:
        limit = options["limit"]
        if limit is not None and limit < 1:
            raise CommandError(f"--limit {limit}: must be at least 1.")
        records = chosen(call=options["call"], key=options["key"], since=options["since"])
        if not (options["demo"] or options["call"] or options["key"]):
            # What was made up for the pages is nobody's usage.
            records = records.exclude(origin=ORIGIN)
        if limit is None and not json:
            limit = SHOWN
        if json:
            self.write_json(oldest_first(records, limit=limit))
        else:
            self.stdout.write("\n".join(table(oldest_first(records, limit=limit))))

    def write_json(self, records: Iterable[UsageRecord]) -> None:
        """One document, written record by record: a month of a busy relay does not fit into memory twice."""
        separator = "["
        for record in records:
            self.stdout.write(separator + json.dumps(usage_json(record), ensure_ascii=False), ending="")
            separator = ",\n "
        self.stdout.write("]" if separator != "[" else "[]")


def chosen(*, call: str | None, key: str | None, since: str | None) -> QuerySet[UsageRecord]:
    """The records asked for; refuses by name what can't be one."""
    records = UsageRecord.objects.all()
    if call is not None:
        try:
            records = records.filter(id=UUID(call))
        except ValueError:
            raise CommandError(f"--call {call!r} is no call id.") from None
    if key is not None:
        # Records keep the name as it was at the call; a renamed key is found by its present name too.
        ids = list(ApiKey.objects.filter(name=key).values_list("pk", flat=True))
        records = records.filter(Q(key_name=key) | Q(key_id__in=ids))
        if not ids and not records.exists():
            raise CommandError(f"No key is named {key!r}.")
    if since is not None:
        try:
            moment = moment_of(since, field="--since")
        except KeyTextError as error:
            raise CommandError(str(error)) from None
        if moment is None:
            raise CommandError("--since needs a time.")
        records = records.filter(id__gte=first_id(moment))
    return records


def oldest_first(records: QuerySet[UsageRecord], *, limit: int | None) -> Iterable[UsageRecord]:
    if limit is None:
        return records.order_by("id").iterator(chunk_size=500)
    return reversed(records.order_by("-id")[:limit])
