"""Who may go on with a stored answer: the key whose record made it, or its team. Everyone else finds nothing."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.db import DatabaseError

from accounts.snapshot import ACCOUNTS
from apikeys.authentication import KEYS
from relay.call import Key
from relay.errors import AnswerNotFound, Interrupted
from relay.models import UsageRecord
from relay.state.snapshot import give_connection_back

if TYPE_CHECKING:
    from relay.runtime import Runtime

logger = logging.getLogger(__name__)

LONGEST_ID = 200  # as the record's column has it
PATIENCE = 5.0  # seconds for the one query that an answer costs which the store has forgotten


@dataclass(frozen=True, slots=True)
class Maker:
    """Who made an answer, as the record says."""

    key_id: int | None
    team_id: int | None
    account_id: int


async def account_of(run: Runtime, key: Key, answer_id: str, *, now: float) -> int:
    """Return the id of the account that holds the answer.

    Raises `AnswerNotFound`, also for an answer that is somebody else's or whose account is gone, and `Interrupted`
    where the record can't be read.
    """
    if len(answer_id) > LONGEST_ID or not answer_id.isprintable():
        raise AnswerNotFound("")  # no vendor made it, and no database takes it
    known = await run.store.response_owner(answer_id, now=now)
    if known is not None and known[0] == key.id:
        return present(known[1], answer_id)
    maker = await look_up(answer_id) or just_now(known)
    if maker is None or not may_reach(key, maker):
        raise AnswerNotFound(answer_id)
    account_id = present(maker.account_id, answer_id)
    if known is None and maker.key_id is not None:
        await run.store.set_response_owner(answer_id, maker.key_id, account_id, now=now)
    return account_id


def just_now(known: tuple[int, int] | None) -> Maker | None:
    """Who made an answer whose record has not reached the database yet."""
    key = KEYS.current.by_id.get(known[0]) if known is not None else None
    return Maker(key.id, key.team_id, known[1]) if key is not None and known is not None else None


def may_reach(key: Key, maker: Maker) -> bool:
    return maker.key_id == key.id or (key.team_id is not None and maker.team_id == key.team_id)


def present(account_id: int, answer_id: str) -> int:
    if not any(account.id == account_id for account in ACCOUNTS.current):
        raise AnswerNotFound(answer_id)
    return account_id


async def look_up(answer_id: str) -> Maker | None:
    try:
        async with asyncio.timeout(PATIENCE):
            return await sync_to_async(first_record)(answer_id)
    except (DatabaseError, TimeoutError) as error:
        logger.error("The record of an answer could not be looked up: %s", type(error).__name__)
        raise Interrupted("Baton can't read its records at the moment.", retry_after=2) from None


def first_record(answer_id: str) -> Maker | None:
    """The oldest record of an answer is its making; later ones are calls on it."""
    try:
        rows = UsageRecord.objects.filter(response_id=answer_id, account_id__isnull=False).order_by("id")
        row = rows.values_list("key_id", "team_id", "account_id").first()
        key_id, team_id, account_id = row or (None, None, None)
        return Maker(key_id, team_id, account_id) if account_id is not None else None
    finally:
        give_connection_back()
