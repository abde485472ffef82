"""Rests, probes, failures, affinity and response owners in Redis, seen by every relay.

All of it is advice: while Redis is away, each process goes on with what it knows itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from relay.state import scripts
from relay.state.base import Rest, StoreAway
from relay.state.memory_rests import FORGOTTEN, OWNERS_KEPT, MemoryRests
from relay.state.redis_link import PREFIX, RedisLink

RESTS, PROBES = f"{PREFIX}rests", f"{PREFIX}probes"
RESTS_FOR = 0.25  # seconds for which a process trusts its copy of the rests; its own changes show at once


class RedisRests(MemoryRests):
    """The advice half of the Redis store; `rests_for` seconds may pass before another process's rest shows here."""

    def __init__(self, link: RedisLink, *, rests_for: float = RESTS_FOR) -> None:
        super().__init__()
        self._link = link
        self._rests_for = rests_for
        self._copy: Mapping[tuple[int, str], Rest] = {}
        self._copied = 0.0
        self._changes = 0  # of our own: what was asked before one and answered after it must not become the copy

    def _changed(self) -> None:
        self._changes += 1
        self._copied = 0.0

    async def rest(self, rest: Rest, *, now: float) -> None:
        await super().rest(rest, now=now)
        self._copy = {**self._copy, (rest.account_id, rest.model): rest}
        self._changed()
        text = json.dumps(
            {"until": rest.until, "cause": rest.cause, "named": rest.named, "http_status": rest.http_status}
        )
        place = place_of(rest.account_id, rest.model)
        try:
            await self._link.script(scripts.REST, [RESTS, PROBES], place, now, rest.until, int(rest.named), text)
        except StoreAway:
            return
        finally:
            self._changed()

    async def rests(self, *, now: float) -> Mapping[tuple[int, str], Rest]:
        if not self._rests_wanted():
            return self._copy
        asked = self._changes
        try:
            found: dict[str, str] = pairs(await self._link.command("HGETALL", RESTS))
        except StoreAway:
            return await super().rests(now=now)
        return await self._take_over(found, now=now, asked=asked)

    def _rests_wanted(self) -> bool:
        """Whether it is time to ask again."""
        return self._copied + self._rests_for <= time.monotonic()

    async def _take_over(self, found: Mapping[str, str], *, now: float, asked: int) -> Mapping[tuple[int, str], Rest]:
        """The rests as Redis has them are this process's copy, unless it has changed some since it `asked`."""
        rests = [rest_of(place, text) for place, text in found.items()]
        gone = [rest for rest in rests if rest.until <= now - FORGOTTEN]
        known = {(rest.account_id, rest.model): rest for rest in rests if rest not in gone}
        if asked == self._changes:
            self._copy, self._copied = known, time.monotonic()
        for rest in gone:
            await self.clear_rest(rest.account_id, rest.model)
        return known

    async def clear_rest(self, account_id: int, model: str | None = None) -> None:
        await super().clear_rest(account_id, model)
        self._copy = {
            key: rest for key, rest in self._copy.items() if key[0] != account_id or model not in {None, key[1]}
        }
        self._changed()
        try:
            places = [place_of(account_id, model)] if model is not None else await self._places_of(account_id)
            if places:
                await self._link.pipeline([("HDEL", RESTS, *places), ("HDEL", PROBES, *places)])
        except StoreAway:
            return
        finally:
            self._changed()

    async def _places_of(self, account_id: int) -> list[str]:
        found = await self._link.command("HKEYS", RESTS)
        return [place for place in found if place.startswith(f"{account_id} ")]

    async def take_probe(self, account_id: int, model: str, owner: str, *, now: float, lease: float) -> bool:
        place = place_of(account_id, model)
        try:
            return bool(await self._link.script(scripts.TAKE_PROBE, [RESTS, PROBES], place, now, owner, now + lease))
        except StoreAway:
            return await super().take_probe(account_id, model, owner, now=now, lease=lease)

    async def count_failure(self, account_id: int, model: str, *, now: float) -> int:
        key = f"{PREFIX}failures:{place_of(account_id, model)}"
        try:
            count, _ = await self._link.pipeline([("INCR", key), ("EXPIRE", key, int(FORGOTTEN))])
            return int(count)
        except StoreAway:
            return await super().count_failure(account_id, model, now=now)

    async def clear_failures(self, account_id: int, model: str) -> None:
        await super().clear_failures(account_id, model)
        try:
            await self._link.command("DEL", f"{PREFIX}failures:{place_of(account_id, model)}")
        except StoreAway:
            return

    async def set_affinity(self, key_id: int, conversation: str, account_id: int, *, now: float, ttl: float) -> None:
        key = conversation_key(key_id, conversation)
        try:
            await self._link.command("SET", key, f"{account_id} {now + ttl!r}", "PX", milliseconds(ttl))
        except StoreAway:
            await super().set_affinity(key_id, conversation, account_id, now=now, ttl=ttl)

    async def flush_affinity(self, *, key_id: int | None = None, account_id: int | None = None) -> int:
        flushed = await super().flush_affinity(key_id=key_id, account_id=account_id)
        pattern = f"{PREFIX}affinity:{'*' if key_id is None else key_id}:*"
        cursor: Any = "0"
        while True:
            cursor, keys = await self._link.command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            values = await self._link.command("MGET", *keys) if keys else []
            gone = [
                key
                for key, value in zip(keys, values, strict=True)
                if value is not None and account_id in {None, int(value.partition(" ")[0])}
            ]
            if gone:
                flushed += int(await self._link.command("DEL", *gone))
            if str(cursor) == "0":
                return flushed

    async def set_response_owner(self, response_id: str, key_id: int, account_id: int, *, now: float) -> None:
        await super().set_response_owner(response_id, key_id, account_id, now=now)
        text = f"{key_id} {account_id}"
        try:
            await self._link.command("SET", f"{PREFIX}response:{response_id}", text, "EX", int(OWNERS_KEPT))
        except StoreAway:
            return

    async def response_owner(self, response_id: str, *, now: float) -> tuple[int, int] | None:
        found = await super().response_owner(response_id, now=now)
        if found is not None:
            return found
        try:
            text = await self._link.command("GET", f"{PREFIX}response:{response_id}")
        except StoreAway:
            return None
        if text is None:
            return None
        key_id, _, account_id = text.partition(" ")
        await super().set_response_owner(response_id, int(key_id), int(account_id), now=now)
        return int(key_id), int(account_id)


def conversation_key(key_id: int, conversation: str) -> str:
    return f"{PREFIX}affinity:{key_id}:{conversation}"


def place_of(account_id: int, model: str) -> str:
    return f"{account_id} {model}"


def rest_of(place: str, text: str) -> Rest:
    account_id, _, model = place.partition(" ")
    fields = json.loads(text)
    return Rest(int(account_id), model, fields["until"], fields["cause"], fields["named"], fields["http_status"])


def milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def pairs(answer: Any) -> dict[str, str]:
    """A hash as redis gives it: a flat list, or a mapping where the client has made one of it."""
    if isinstance(answer, dict):
        return answer
    return dict(zip(answer[::2], answer[1::2], strict=True))
