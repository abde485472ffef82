"""How commands, Celery and the admin reach what lives in a relay's memory: signed requests to its internal address."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
from django.conf import settings
from django.core import signing

from apikeys.counters import Stand

SALT = "baton.internal"
HEADER = "x-baton-signature"
MAX_AGE_SECONDS = 30


class RelayUnreachable(RuntimeError):
    """No relay answers at RELAY_INTERNAL_URL."""


def sign(body: bytes) -> str:
    """A signature of the body that is good for half a minute."""
    return signing.TimestampSigner(salt=SALT).sign_object({"body": body.decode()})


def is_signed(body: bytes, signature: str) -> bool:
    try:
        value = signing.TimestampSigner(salt=SALT).unsign_object(signature, max_age=MAX_AGE_SECONDS)
    except signing.BadSignature:
        return False
    return bool(value == {"body": body.decode()})


def ask(question: str, *, timeout: float = 5.0, **arguments: Any) -> dict[str, Any]:
    """Ask the relay; returns its answer. Raises `RelayUnreachable` with what to do."""
    body = json.dumps({"question": question, **arguments}).encode()
    url = f"{settings.RELAY_INTERNAL_URL}/internal/ask"
    try:
        answer = httpx.post(url, content=body, headers={HEADER: sign(body)}, timeout=timeout, trust_env=False)
    except httpx.HTTPError as error:
        raise RelayUnreachable(
            f"No relay answers at {settings.RELAY_INTERNAL_URL} ({type(error).__name__}). "
            "Start it, or set RELAY_INTERNAL_URL."
        ) from error
    if answer.status_code != 200:
        raise RelayUnreachable(f"The relay at {settings.RELAY_INTERNAL_URL} answered {answer.status_code}.")
    result: dict[str, Any] = answer.json()
    return result


def state() -> dict[str, Any]:
    """Rests, slots and calls in flight: `{"rests": [...], "in_flight": {...}, "calls": [...]}`."""
    return ask("state")


def counters(names: list[str]) -> dict[str, int]:
    """What the relay's limit counters stand at, by name."""
    return {name: int(value) for name, value in ask("counters", names=names)["counters"].items()}


def limits(names: list[str]) -> Stand:
    """What the relay's store says of these counters."""
    found = ask("counters", names=names)
    used, reserved = ({name: int(value) for name, value in found[part].items()} for part in ("counters", "reserved"))
    return Stand(used, reserved, frozenset(found["seeded"]))


def adjust_counters(amounts: Mapping[str, int]) -> None:
    """Add signed amounts to counters."""
    ask("adjust_counters", amounts={name: str(amount) for name, amount in amounts.items()})


def clear_rest(account_id: int) -> None:
    """End every rest of an account now."""
    ask("clear_rest", account_id=account_id)


def test_connection(account_id: int, *, model: str = "") -> dict[str, Any]:
    """Make one small real call through the account; it is booked with origin `operator`.

    Returns `{"ok", "status", "model", "duration_ms", "message", "record"}`.
    """
    return ask("test_connection", account_id=account_id, model=model, timeout=90.0)
