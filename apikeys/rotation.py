"""A new secret for a key that stays the same key: limits, records and team go on."""

from __future__ import annotations

from datetime import datetime, timedelta

from apikeys.authentication import new_secret
from apikeys.models import ApiKey


def rotate(key: ApiKey, *, overlap: timedelta, now: datetime) -> str:
    """Give the key a new secret and return it, the only time; the old one works for `overlap` longer."""
    old = bytes(key.digest)
    key.public_id, secret, key.digest = new_secret()
    key.previous_digest, key.previous_until = (old, now + overlap) if overlap else (None, None)
    key.save(update_fields=["public_id", "digest", "previous_digest", "previous_until"])
    return secret
