"""The one query on the path: a key that the snapshot does not hold, at most once and not too often.

A new key works at once that way. A flood of invented keys costs a few queries a second and no more: each unknown key is
remembered, and beyond the rate the snapshot alone decides, which is half a second old.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict

from asgiref.sync import sync_to_async
from django.db import DatabaseError

from apikeys.keyring import KeyRing, load_key
from relay.call import Key
from relay.errors import Interrupted
from relay.state.snapshot import Snapshot, give_connection_back

logger = logging.getLogger(__name__)

RATE, BURST = 10.0, 20.0  # queries a second, and at once
REMEMBERED = 20_000
UNKNOWN_FOR = 60.0  # seconds; a key made meanwhile comes with the snapshot, which is asked first
PATIENCE = 5.0


class Lookups:
    """This process's budget of queries and its memory of what it found."""

    def __init__(self) -> None:
        self.tokens = BURST
        self.at = 0.0
        self.unknown: OrderedDict[bytes, float] = OrderedDict()
        # Good for as long as the snapshot is the one it was found missing in: any later load holds it or its end.
        self.found: dict[bytes, Key] = {}
        self.found_for: KeyRing | None = None

    def may_ask(self, now: float) -> bool:
        """Take one query from the budget."""
        self.tokens = min(BURST, self.tokens + max(0.0, now - self.at) * RATE)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def known_unknown(self, digest: bytes, now: float) -> bool:
        return self.unknown.get(digest, 0.0) > now

    def remember(self, digest: bytes, key: Key | None, ring: KeyRing, *, now: float) -> None:
        if key is None:
            self.unknown[digest] = now + UNKNOWN_FOR
            self.unknown.move_to_end(digest)
            while len(self.unknown) > REMEMBERED:
                self.unknown.popitem(last=False)
            return
        if self.found_for is not ring:
            self.found, self.found_for = {}, ring
        self.found[digest] = key

    def recall(self, digest: bytes, ring: KeyRing) -> Key | None:
        return self.found.get(digest) if self.found_for is ring else None


LOOKUPS = Lookups()


async def look_up(secret: str, keys: Snapshot[KeyRing], *, now: float) -> Key | None:
    """Return the key for a secret that the snapshot does not hold, None if there is none or nobody may ask now.

    Raises Interrupted (503) where no snapshot was ever loaded and the database can't be asked.
    """
    ring, memory = keys.current, LOOKUPS
    whole = secret.encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(whole).digest()
    if (key := memory.recall(digest, ring)) is not None:
        return key
    if memory.known_unknown(digest, now) or not memory.may_ask(now):
        return None
    digests = [digest, *(hashlib.sha256(whole + suffix).digest() for suffix in ring.suffixes)]
    try:
        async with asyncio.timeout(PATIENCE):
            key = await sync_to_async(ask)(digests)
    except (DatabaseError, TimeoutError) as error:
        logger.error("An API key could not be looked up: %s", type(error).__name__)
        if keys.loaded:
            return None
        raise Interrupted("Baton can't read its API keys at the moment.", retry_after=2) from None
    memory.remember(digest, key, ring, now=now)
    return key


def ask(digests: list[bytes]) -> Key | None:
    try:
        return load_key(digests)
    finally:
        give_connection_back()
