"""Set what a model costs, from a moment on; running processes follow within two seconds."""

from __future__ import annotations

import json as json_module
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apikeys.key_text import moment_of
from relay.models import Price
from relay.price_text import dollars_of, rates_of
from relay.prices import set_rates


class Command(BaseCommand):
    help = (
        "Set rates of a model in dollars per million units. They go before the catalogue's; a tier's rates are set "
        "with --tier. Unpriced calls whose time they cover are priced by the next `reprice`."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("provider", help="As in the records: anthropic, aws, openai ...")
        parser.add_argument("model", help='A model id; "*" matches any rest, as in "claude-*".')
        parser.add_argument("rates", nargs="+", metavar="METER=USD_PER_MTOK")
        parser.add_argument("--from", dest="start", metavar="TIME", default="", help="ISO 8601; default: now.")
        parser.add_argument("--tier", default="", help='Tier, speed and place that it is for, such as "fast+us".')
        parser.add_argument("--above", type=int, default=0, help="For calls whose whole input exceeds so many tokens.")
        parser.add_argument("--json", action="store_true", help="Print one JSON document: the new price rows.")

    def handle(self, *, provider: str, model: str, rates: list[str], json: bool, **options: Any) -> None:
        try:
            refuse_bad_names(provider, model, tier=options["tier"], above=options["above"])
            rows = set_rates(
                provider,
                model,
                rates_of(rates),
                start=moment_of(options["start"], field="--from"),
                tier=options["tier"],
                above=options["above"],
                source="set_price",
            )
        except ValueError as error:
            raise CommandError(str(error)) from error
        if json:
            self.stdout.write(json_module.dumps([as_json(row) for row in rows]))
        else:
            for row in rows:
                self.stdout.write(f"{row}: {dollars_of(row.rate)} USD per million from {row.valid_from.isoformat()}")


def refuse_bad_names(provider: str, model: str, *, tier: str, above: int) -> None:
    """Raises `ValueError` that names what does not fit."""
    for name, value, limit in (("provider", provider, 60), ("model", model, 200), ("--tier", tier, 40)):
        if len(value) > limit or (not value.strip() and name != "--tier"):
            raise ValueError(f"{name} {value!r}: must have 1 to {limit} characters.")
    if not 0 <= above < 2**31:
        raise ValueError(f"--above {above}: must be a number of tokens, 0 or more.")


def as_json(row: Price) -> dict[str, Any]:
    return {
        "id": row.pk,
        "provider": row.provider,
        "model": row.model,
        "meter": row.meter,
        "tier": row.tier,
        "above_tokens": row.above_tokens,
        "usd_per_million": dollars_of(row.rate),
        "rate": row.rate,
        "valid_from": row.valid_from.isoformat(),
        "valid_to": row.valid_to.isoformat() if row.valid_to is not None else None,
        "source": row.source,
    }
