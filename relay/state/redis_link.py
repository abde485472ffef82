"""One process's link to Redis: scripts by their digest, short time limits, and a word when Redis is away."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from relay.state.base import StoreAway

logger = logging.getLogger(__name__)

PREFIX = "baton:"
TIMEOUT = 5.0  # seconds for a connection, and for an answer
CONNECTIONS = 64
QUIET = 1.0  # seconds without a try after a failure: an outage must not cost every call a timeout


class RedisLink:
    """Runs commands and scripts. Everything raises `StoreAway` where Redis can't be reached or can't answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: redis.asyncio.Redis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._away_until = 0.0
        self._away = False

    def client(self) -> redis.asyncio.Redis:
        """The client of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                self._url,
                max_connections=CONNECTIONS,
                timeout=TIMEOUT,
                socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT,
                retry=Retry(NoBackoff(), 0),
                decode_responses=True,
                protocol=2,
            )
            self._client, self._loop = redis.asyncio.Redis.from_pool(pool), loop
        return self._client

    async def script(self, text: str, keys: list[str], *args: str | int | float) -> Any:
        """Run a script by its digest; Redis is sent the text once."""
        try:
            return await self.command("EVALSHA", digest(text), len(keys), *keys, *args)
        except NoScriptError:
            return await self.command("EVAL", text, len(keys), *keys, *args)

    async def scripts(self, text: str, runs: list[tuple[list[str], list[str | int | float]]]) -> None:
        """Run a script several times in one round trip, by keys and arguments; the answers don't matter."""
        if len(runs) > 1:
            digested = digest(text)
            try:
                await self.pipeline([("EVALSHA", digested, len(keys), *keys, *args) for keys, args in runs])
                return
            except NoScriptError:
                pass
        for keys, args in runs:
            await self.script(text, keys, *args)

    async def command(self, *parts: str | int | float) -> Any:
        return await self._guarded(lambda: self.client().execute_command(*parts))  # type: ignore[no-untyped-call]

    async def pipeline(self, commands: list[tuple[str | int | float, ...]]) -> list[Any]:
        """Several commands in one round trip."""

        async def run() -> list[Any]:
            pipe = self.client().pipeline(transaction=False)
            for parts in commands:
                pipe.execute_command(*parts)
            return await pipe.execute()

        return list(await self._guarded(run)) if commands else []

    async def _guarded(self, run: Any) -> Any:
        if time.monotonic() < self._away_until:
            raise away()
        task = asyncio.current_task()
        cancelled = task.cancelling() if task is not None else 0
        try:
            try:
                answer = await run()
            except RedisConnectionError:
                # An idle connection that the server has closed meanwhile; all that we send may be sent twice.
                answer = await run()
        except NoScriptError:
            raise
        except (RedisConnectionError, RedisTimeoutError, RedisError, OSError) as error:
            self._note(error)
            raise away() from error
        if task is not None and task.cancelling() > cancelled:
            # Python 3.11's wait_for, which the client is built on, can swallow a cancellation.
            raise asyncio.CancelledError
        if self._away:
            self._away = False
            logger.info("Redis answers again")
        return answer

    def _note(self, error: Exception) -> None:
        if not self._away:
            logger.error("Redis is away: %s", type(error).__name__)
        self._away = True
        self._away_until = time.monotonic() + QUIET

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()
            await client.connection_pool.disconnect()


_digests: dict[str, str] = {}


def digest(script: str) -> str:
    if script not in _digests:
        _digests[script] = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    return _digests[script]


def away() -> StoreAway:
    return StoreAway("This relay can't check limits at the moment.", retry_after=5, reason="limits_unchecked")
