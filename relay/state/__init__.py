"""State that relay processes share: in memory for one process, in Redis for several."""

from __future__ import annotations

from django.conf import settings

from relay.state.base import (
    Admitted,
    Hold,
    Question,
    Refused,
    Rest,
    Seat,
    Seed,
    Settlement,
    Store,
    StoreAway,
    Unseeded,
)
from relay.state.memory import MemoryStore

__all__ = [
    "Admitted", "Hold", "Question", "Refused", "Rest", "Seat", "Seed", "Settlement", "Store", "StoreAway", "Unseeded",
    "make_store",
]  # fmt: skip


def make_store(redis_url: str) -> Store:
    """The store of this process: memory without an address. RELAY_LIMITS_FAIL says whether calls are admitted while
    Redis is away ("open") or refused ("closed", and everything else)."""
    if not redis_url:
        return MemoryStore()
    from relay.state.redis import RedisStore

    return RedisStore(redis_url, fail_open=settings.RELAY_LIMITS_FAIL == "open")
