"""State that relay processes share: in memory for one process, in Redis for several."""

from __future__ import annotations

from relay.state.base import Hold, Refused, Rest, Seed, Store, StoreAway, Unseeded

__all__ = ["Hold", "Refused", "Rest", "Seed", "Store", "StoreAway", "Unseeded", "make_store"]


def make_store(redis_url: str, *, fail_open: bool = False) -> Store:
    """The store of this process: memory without an address. `fail_open`: admit what can't be checked while Redis is
    away."""
    if redis_url:
        from relay.state.redis import RedisStore

        return RedisStore(redis_url, fail_open=fail_open)
    from relay.state.memory import MemoryStore

    return MemoryStore()
