"""Prove that limit counters equal the ledger."""

from __future__ import annotations

import json as json_module
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Count, Sum

from accounts.snapshot import load_accounts
from apikeys.counters import Difference, Stand, checked, differences, read_ledger, repair, stand_of
from apikeys.keyring import load_keys
from apikeys.rules import Counted
from relay import internal
from relay.models import UsageRecord
from relay.state import StoreAway, make_store

# A call that has settled is in the ledger half a second later: what differs is looked at again before it is told,
# with a longer time each between the store and the ledger.
PAUSES = (0.0, 1.0, 3.0)


class Command(BaseCommand):
    help = "Compare every limit's counter with the ledger's records; ends with 1 where one differs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--repair", action="store_true", help="Set counters that differ to what the ledger says.")
        parser.add_argument("--json", action="store_true", help="Print one JSON document: ok, limits, differences ...")

    def handle(self, *, json: bool, **options: Any) -> None:
        limits = all_limits()
        try:
            found, seeded = look(limits)
            if found and options["repair"]:
                set_right(found)
                found, seeded = look(limits)
        except (internal.RelayUnreachable, StoreAway) as error:
            raise CommandError(f"The counters can't be read: {error}") from error
        held = UsageRecord.objects.exclude(held_nanos=0).aggregate(records=Count("pk"), nanos=Sum("held_nanos"))
        report = {
            "ok": not found,
            "limits": len(limits),
            "unseeded": len(limits) - seeded,
            "held": {"records": held["records"], "nanos": int(held["nanos"] or 0)},
            "differences": [asdict(item) for item in found],
        }
        self.stdout.write(json_module.dumps(report) if json else "\n".join(lines(report, found)))
        if found:
            sys.exit(1)


def all_limits() -> list[Counted]:
    """Every limit of keys, teams and accounts that the ledger can prove."""
    rules = [rule for key in load_keys().by_id.values() for rule in key.limits]
    return checked([*rules, *(rule for account in load_accounts() for rule in account.limits)])


def look(limits: Sequence[Counted]) -> tuple[list[Difference], int]:
    """Return the counters that differ from the ledger every time, and how many limits have a seed."""
    suspects, found, seeded = list(limits), list[Difference](), 0
    for pause in PAUSES:
        now = time.time()
        names = [limit.counter(now)[0] for limit in suspects]
        before = ask(names, now=now)
        time.sleep(pause)
        ledger = read_ledger(suspects, now=now)
        found = differences(suspects, ledger, before=before, after=ask(names, now=now), now=now)
        seeded = seeded or sum(limit.limit in before.seeded for limit in limits)
        differing = {item.counter for item in found}
        suspects = [limit for limit in suspects if limit.counter(now)[0] in differing]
        if not suspects:
            break
    return found, seeded


def ask(names: list[str], *, now: float) -> Stand:
    """What the relay's store says: Redis itself, or the memory of the one relay."""
    if not settings.REDIS_URL:
        return internal.limits(names)

    async def read() -> Stand:
        store = make_store(settings.REDIS_URL)
        try:
            return await stand_of(store, names, now=now)
        finally:
            await store.close()

    return async_to_sync(read)()


def set_right(found: Sequence[Difference]) -> None:
    amounts = {item.counter: item.ledger - item.counted for item in found}
    if not settings.REDIS_URL:
        internal.adjust_counters(amounts)
        return

    async def write() -> None:
        store = make_store(settings.REDIS_URL)
        try:
            await repair(store, amounts, now=time.time())
        finally:
            await store.close()

    async_to_sync(write)()


def lines(report: dict[str, Any], found: Sequence[Difference]) -> list[str]:
    """The report for a person."""
    held = report["held"]
    return [
        f"{report['limits']} limits checked, {report['unseeded']} of them without a counter yet, "
        f"{len(found)} different from the ledger.",
        f"{held['records']} records hold {held['nanos'] / 10**9:.9f} USD until they are corrected.",
        *(
            f"limit {item.limit_id} ({item.scope} {item.owner_id}, {item.metric} per {item.per}): "
            f"counter {item.counted:,}, ledger {item.ledger:,}"
            for item in found
        ),
    ]
