"""Limits, a seat and its conversation in one step, and all of it given back in one: one suite for both stores."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from relay.state import Admitted, Hold, Question, Refused, Rest, Seat, Settlement, Store
from tests.stores import Story, answer, in_flight, pinned
from tests.test_state_stores import LEASE, NOW, calls, hold, on, take

__all__ = ["on"]

TALK = Question((Seat(5, "m", slots=2), Seat(6, "m")), 0, key_id=1, conversation="talk", kept=100, lease=LEASE)


async def admitted(store: Store, owner: str, question: Question, *holds: Hold, now: float = NOW) -> Admitted:
    seen = await store.admit(owner, holds, question, now=now, lease=LEASE)
    assert isinstance(seen, Admitted)
    return seen


def test_a_call_gets_limits_seat_and_conversation_in_one_step(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        first = await admitted(store, "a", TALK, hold(3), calls(5))
        assert (first.standing, first.in_flight, first.pinned, first.taken) == ((3, 1), {5: 0, 6: 0}, None, 5)
        second = await admitted(store, "b", TALK, hold(3), calls(5))
        assert (second.standing, second.in_flight, second.pinned, second.taken) == ((6, 2), {5: 1, 6: 0}, 5, 5)
        assert await in_flight(store, [5, 6], now=NOW) == {5: 2, 6: 0}

    on(story)


def test_a_conversation_keeps_its_seat_before_the_first_one(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await store.set_affinity(1, "talk", 6, now=NOW, ttl=100)
        assert (await admitted(store, "a", TALK, now=NOW + 90)).taken == 6
        assert (await admitted(store, "b", TALK, now=NOW + 180)).pinned == 6
        assert (await admitted(store, "c", TALK, now=NOW + 290)).taken == 5

    on(story)


def test_a_conversation_whose_account_is_no_candidate_moves(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await store.set_affinity(1, "talk", 9, now=NOW, ttl=100)
        seen = await admitted(store, "a", TALK)
        assert (seen.pinned, seen.taken) == (9, 5)
        assert await pinned(store, 1, "talk", now=NOW, ttl=100) == 5

    on(story)


@pytest.mark.parametrize(
    "question",
    [
        TALK._replace(lease=0),  # only asked
        TALK._replace(first=-1),  # who goes first depends on the load
        TALK._replace(seats=(Seat(5, "m", front=False), Seat(6, "m")), conversation="behind"),
        TALK._replace(seats=(Seat(5, "full", slots=1),)),
        TALK._replace(seats=(Seat(5, "rested"),)),
        TALK._replace(seats=(Seat(7, "m"),)),  # the whole account has rested
    ],
)
def test_a_seat_that_may_be_the_wrong_one_is_not_taken(on: Callable[[Story], None], question: Question) -> None:
    async def story(store: Store) -> None:
        await store.take_slot(5, "other", slots=0, now=NOW, lease=LEASE)
        await store.set_affinity(1, "behind", 5, now=NOW, ttl=100)
        await store.rest(Rest(5, "rested", NOW + 10, "529"), now=NOW)
        await store.rest(Rest(7, "", NOW - 10, "credential"), now=NOW - 60)
        seen = await admitted(store, "a", question, hold(2))
        assert (seen.standing, seen.taken) == ((2,), 0)
        assert await in_flight(store, [5, 6, 7], now=NOW) == {5: 1, 6: 0, 7: 0}
        assert await pinned(store, 1, "talk", now=NOW, ttl=100) is None

    on(story)


def test_a_refused_call_takes_no_seat(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        too_much = hold(11)
        assert await store.admit("a", (too_much,), TALK, now=NOW, lease=LEASE) == Refused(too_much, 0)
        assert await in_flight(store, [5, 6], now=NOW) == {5: 0, 6: 0}
        assert await pinned(store, 1, "talk", now=NOW, ttl=100) is None

    on(story)


def test_the_answer_has_rests_counters_and_the_owner_of_a_response(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        rest = Rest(5, "m", NOW + 10, "529")
        await store.rest(rest, now=NOW)
        await store.set_response_owner("resp_1", 3, 7, now=NOW)
        await take(store, "a", hold(4))
        seen = await answer(store, Question(counters=("1.aa:0", "2.bb:0"), response_id="resp_1"), now=NOW)
        assert (seen.rests, seen.used, seen.response_owner) == (
            {(5, "m"): rest},
            {"1.aa:0": 4, "2.bb:0": 0},
            (3, 7),
        )

    on(story)


def test_one_step_ends_all_that_a_call_holds(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        own, theirs = (hold(6), calls(1)), (hold(6, limit="2.bb"),)
        await admitted(store, "a", TALK, *own)
        await take(store, "a@5", *theirs)
        ends = (
            Settlement("a", own, {"1.aa:0": 2}, NOW + 1, NOW, (5,)),
            Settlement("a@5", theirs, {"2.bb:0": 3}, NOW + 1, NOW),
        )
        for _ in range(2):
            await store.settle(*ends)
        assert await store.used(["1.aa:0", "9.ff", "2.bb:0"], now=NOW) == {"1.aa:0": 2, "9.ff": 0, "2.bb:0": 3}
        assert await in_flight(store, [5], now=NOW) == {5: 0}

    on(story)


def test_a_slot_brings_its_conversation(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        assert await store.take_slot(5, "a", slots=1, now=NOW, lease=LEASE, pin=TALK)
        assert not await store.take_slot(5, "b", slots=1, now=NOW, lease=LEASE, pin=TALK._replace(conversation="b"))
        assert await pinned(store, 1, "talk", now=NOW + 99, ttl=100) == 5
        assert await pinned(store, 1, "b", now=NOW, ttl=100) is None

    on(story)
