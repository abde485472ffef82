"""Both stores of shared state for one suite: memory always, Redis where it can be reached or `REDIS_URL` is set."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache

import pytest
import redis
from asgiref.sync import async_to_sync
from django.conf import settings

from relay.state.base import Admitted, Question, Seat, Store
from relay.state.memory import MemoryStore
from relay.state.redis import RedisStore

# Tests empty it: a database of its own for each xdist worker.
LOCAL = f"redis://127.0.0.1:6379/{9 + int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw'))}"
Story = Callable[[Store], Awaitable[None]]
KINDS = ("memory", "redis")


@cache
def reachable(url: str) -> bool:
    with redis.Redis.from_url(url, socket_connect_timeout=1) as client:
        try:
            return bool(client.ping())
        except redis.exceptions.RedisError:
            return False


def redis_url() -> str:
    """The database that tests may empty; skips where there is none and nobody asked for one."""
    if not settings.REDIS_URL and not reachable(LOCAL):
        pytest.skip(f"REDIS_URL is not set and no Redis answers at {LOCAL}")
    return settings.REDIS_URL or LOCAL


def make(kind: str) -> Store:
    """A new store of a kind: the memory of a new process, or another link to the same Redis."""
    return MemoryStore() if kind == "memory" else RedisStore(redis_url(), rests_for=0.0)


def empty_redis() -> None:
    """Delete what Baton keeps there, and nothing of anybody else's."""
    with redis.Redis.from_url(redis_url()) as client:
        keys = list(client.scan_iter(match="baton:*", count=1000))
        if keys:
            client.delete(*keys)


def play(kind: str, story: Story) -> None:
    """Let a story happen on an empty store of a kind."""
    if kind == "redis":
        empty_redis()

    async def run() -> None:
        store = make(kind)
        try:
            await story(store)
        finally:
            await store.close()

    async_to_sync(run)()


async def answer(store: Store, question: Question, *, now: float) -> Admitted:
    """What the store answers where nothing is reserved and nothing is taken."""
    seen = await store.admit("nobody", (), question, now=now, lease=90)
    assert isinstance(seen, Admitted)
    return seen


async def in_flight(store: Store, account_ids: Sequence[int], *, now: float) -> Mapping[int, int]:
    return (await answer(store, Question(tuple(Seat(number, "m") for number in account_ids)), now=now)).in_flight


async def pinned(store: Store, key_id: int, conversation: str, *, now: float, ttl: float) -> int | None:
    """The account of a conversation; asking for it keeps it."""
    asked = Question(key_id=key_id, conversation=conversation, kept=ttl)
    return (await answer(store, asked, now=now)).pinned
