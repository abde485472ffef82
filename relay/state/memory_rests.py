"""What a process knows of its accounts' health and its clients' conversations: advice, not money.

The memory store is made of it, and the Redis store falls back on it while Redis is away.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from relay.state.base import NOTHING, Question, Rest

MOST = 100_000  # entries of each kind; the oldest go first
FORGOTTEN = 24 * 3600.0  # seconds after which a rest that ended, or a failure, means nothing any more
OWNERS_KEPT = 30 * 24 * 3600.0


class MemoryRests:
    """Rests, probes, failures in a row, affinity and the owners of stored responses."""

    def __init__(self) -> None:
        self._advice = threading.Lock()
        self._rests: dict[tuple[int, str], Rest] = {}
        self._probes: dict[tuple[int, str], tuple[str, float]] = {}
        self._failures: dict[tuple[int, str], tuple[int, float]] = {}
        self._affinity: OrderedDict[tuple[int, str], tuple[int, float]] = OrderedDict()
        self._owners: OrderedDict[str, tuple[int, int, float]] = OrderedDict()

    async def rest(self, rest: Rest, *, now: float) -> None:
        place = (rest.account_id, rest.model)
        with self._advice:
            if outranks(rest, self._rests.get(place), now=now):
                self._rests[place] = rest
            self._probes.pop(place, None)

    async def rests(self, *, now: float) -> Mapping[tuple[int, str], Rest]:
        return self._known_rests(now)

    def _known_rests(self, now: float) -> Mapping[tuple[int, str], Rest]:
        if not self._rests:
            return NOTHING
        with self._advice:
            self._rests = {place: rest for place, rest in self._rests.items() if rest.until > now - FORGOTTEN}
            return dict(self._rests)

    async def clear_rest(self, account_id: int, model: str | None = None) -> None:
        with self._advice:
            for place in [place for place in self._rests if place[0] == account_id and model in {None, place[1]}]:
                del self._rests[place]
                self._probes.pop(place, None)

    async def take_probe(self, account_id: int, model: str, owner: str, *, now: float, lease: float) -> bool:
        place = (account_id, model)
        with self._advice:
            rest = self._rests.get(place)
            if rest is None:
                return True
            held_by, until = self._probes.get(place, ("", 0.0))
            if rest.until > now or (until > now and held_by != owner):
                return False
            self._probes[place] = (owner, now + lease)
            return True

    async def count_failure(self, account_id: int, model: str, *, now: float) -> int:
        place = (account_id, model)
        with self._advice:
            count, at = self._failures.get(place, (0, now))
            count = count + 1 if at > now - FORGOTTEN else 1
            self._failures[place] = (count, now)
            return count

    async def clear_failures(self, account_id: int, model: str) -> None:
        with self._advice:
            self._failures.pop((account_id, model), None)

    def _pinned(self, question: Question, *, now: float) -> int | None:
        """The account of the conversation."""
        place = (question.key_id, question.conversation)
        with self._advice:
            account_id, until = self._affinity.get(place, (None, 0.0))
            if account_id is None or until <= now:
                self._affinity.pop(place, None)
                return None
            self._affinity[place] = (account_id, now + question.kept)
            self._affinity.move_to_end(place)
            return account_id

    def _pin(self, key_id: int, conversation: str, account_id: int, *, until: float) -> None:
        place = (key_id, conversation)
        with self._advice:
            self._affinity[place] = (account_id, until)
            self._affinity.move_to_end(place)
            drop_oldest(self._affinity)

    async def set_affinity(self, key_id: int, conversation: str, account_id: int, *, now: float, ttl: float) -> None:
        self._pin(key_id, conversation, account_id, until=now + ttl)

    async def flush_affinity(self, *, key_id: int | None = None, account_id: int | None = None) -> int:
        with self._advice:
            gone = [
                place
                for place, (account, _) in self._affinity.items()
                if key_id in {None, place[0]} and account_id in {None, account}
            ]
            for place in gone:
                del self._affinity[place]
            return len(gone)

    async def set_response_owner(self, response_id: str, key_id: int, account_id: int, *, now: float) -> None:
        with self._advice:
            self._owners[response_id] = (key_id, account_id, now + OWNERS_KEPT)
            drop_oldest(self._owners)

    async def response_owner(self, response_id: str, *, now: float) -> tuple[int, int] | None:
        return self._owner_of(response_id, now=now)

    def _owner_of(self, response_id: str, *, now: float) -> tuple[int, int] | None:
        with self._advice:
            key_id, account_id, until = self._owners.get(response_id, (0, 0, 0.0))
            return (key_id, account_id) if until > now else None


def outranks(new: Rest, old: Rest | None, *, now: float) -> bool:
    """Whether a new rest replaces what is there: a time that the upstream named beats a guess, then the later one."""
    if old is None or old.until <= now or new.named > old.named:
        return True
    return new.named == old.named and new.until >= old.until


def drop_oldest(entries: OrderedDict[Any, Any]) -> None:
    while len(entries) > MOST:
        entries.popitem(last=False)
