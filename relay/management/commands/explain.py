"""Say why a call went where it went, or what would happen to a key and model now."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from relay.explain import Unknown, explain_call, explain_now


class Command(BaseCommand):
    help = "Say why a recorded call went where it went (--call), or what would happen now (--key and --model)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--call", metavar="ID", help="A recorded call: its x-request-id.")
        parser.add_argument("--key", metavar="NAME")
        parser.add_argument("--model", metavar="MODEL", help="As a client would ask for it.")
        parser.add_argument(
            "--dialect", metavar="NAME", default="", help="Without: the first that can serve the model."
        )
        parser.add_argument("--json", action="store_true", help="Print one JSON document.")

    def handle(self, **options: Any) -> None:
        call, key, model = options["call"], options["key"], options["model"]
        if bool(call) == bool(key or model) or bool(key) != bool(model):
            raise CommandError("Give --call ID, or --key NAME and --model MODEL.")
        try:
            found = explain_call(call) if call else explain_now(key, model, dialect=options["dialect"])
        except Unknown as error:
            raise CommandError(str(error)) from error
        text = json.dumps(found, ensure_ascii=False) if options["json"] else "\n".join(lines(found))
        self.stdout.write(text)


def lines(found: dict[str, Any]) -> Iterable[str]:
    """The explanation for a person."""
    if "call" in found:
        where = found["account"] or "no account"
        yield f"Call {found['call']} of {found['key']}: {found['requested_model']} -> {where}"
        yield f"It ended as {found['status']} ({found['http_status']}) {found['error']}".rstrip()
        for attempt in found["attempts"]:
            outcome = attempt["error"] or "answered"
            yield f"  tried {attempt['account']}: {attempt['status']} {outcome}, {attempt['duration_ms']} ms"
    else:
        what = f"A call of {found['key']} for {found['model']} ({found['dialect']})"
        carried = found["outcome"] == "carried"
        yield f"{what} would go to {found['account']}." if carried else f"{what} would be refused:"
        if not carried:
            yield f"  {found['status']} {found['message']}"
    if not found.get("live", True):
        yield (
            f"No relay answers at {settings.RELAY_INTERNAL_URL}: "
            "calls in flight and limits are not known, rests are those noted so far."
        )
    width = max((len(row["account"]) for row in found["candidates"]), default=0)
    for row in found["candidates"]:
        yield f"  {'*' if row['taken'] else ' '} {row['account']:<{width}}  {row['reason']}"
