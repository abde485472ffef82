"""What every store of shared state promises: one suite, played on memory and on Redis."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from relay.state import Hold, Refused, Rest, Seed, Settlement, Store, Unseeded
from tests.stores import KINDS, Story, in_flight, pinned, play

NOW = 1_780_315_200.0
LEASE = 90.0
LIMITS = ("1.aa", "2.bb", "3.cc", "4.dd")


@pytest.fixture(params=KINDS)
def on(request: pytest.FixtureRequest) -> Callable[[Story], None]:
    """Play a story on a store that was seeded empty a thousand seconds ago."""

    def seeded(story: Story) -> None:
        async def from_seed(store: Store) -> None:
            await store.seed([Seed(limit, NOW - 1000, {}) for limit in LIMITS], generation="first")
            await story(store)

        play(request.param, from_seed)

    return seeded


@pytest.fixture(params=KINDS)
def unseeded(request: pytest.FixtureRequest) -> Callable[[Story], None]:
    return lambda story: play(request.param, story)


def hold(amount: int = 1, cap: int = 10, *, limit: str = "1.aa", start: int = 0, over: bool = False) -> Hold:
    return Hold(f"{limit}:{start}", "cost", amount, cap, NOW + 3600, over)


def calls(cap: int) -> Hold:
    return Hold("9.ff", "concurrency", 1, cap)


async def take(store: Store, owner: str, *holds: Hold, now: float = NOW) -> Refused | tuple[int, ...]:
    return await store.reserve(owner, holds, now=now, lease=LEASE)


async def stands(store: Store, counter: str = "1.aa:0", now: float = NOW) -> int:
    return (await store.used([counter], now=now))[counter]


def test_a_reservation_tells_what_each_counter_stands_at(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        assert await take(store, "a", hold(3), hold(4, limit="2.bb")) == (3, 4)
        assert await take(store, "b", hold(2), hold(5, limit="2.bb"), calls(2)) == (5, 9, 1)

    on(story)


def test_what_does_not_fit_takes_nothing(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await take(store, "a", hold(7))
        too_much = hold(4)
        assert await take(store, "b", hold(limit="2.bb"), calls(5), too_much) == Refused(too_much, 7)
        assert await store.used(["1.aa:0", "2.bb:0", "9.ff"], now=NOW) == {"1.aa:0": 7, "2.bb:0": 0, "9.ff": 0}

    on(story)


def test_a_limit_that_is_not_strict_admits_while_anything_is_left(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        assert await take(store, "a", hold(9)) == (9,)
        assert await take(store, "b", hold(500, over=True)) == (509,)
        assert isinstance(await take(store, "c", hold(1, over=True)), Refused)

    on(story)


def test_a_spent_limit_admits_nothing_even_for_free(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        assert await take(store, "a", hold(0, cap=1)) == (0,)
        assert isinstance(await take(store, "b", hold(0, cap=0)), Refused)

    on(story)


def test_the_same_owner_takes_once(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await take(store, "a", hold(6), calls(1))
        assert await take(store, "a", hold(6), calls(1)) == (6, 1)
        assert await stands(store) == 6

    on(story)


def test_settling_replaces_the_reserved_amount_once(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        holds = (hold(6), calls(1))
        await take(store, "a", *holds)
        for _ in range(2):
            await store.settle(Settlement("a", holds, {"1.aa:0": 2}, NOW + 1, NOW))
        assert await store.used(["1.aa:0", "9.ff"], now=NOW) == {"1.aa:0": 2, "9.ff": 0}
        assert await store.stand(["1.aa:0"], now=NOW) == ({"1.aa:0": 2}, {"1.aa:0": 0})

    on(story)


def test_a_settlement_may_exceed_the_cap(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await take(store, "a", hold(1))
        await store.settle(Settlement("a", (hold(1),), {"1.aa:0": 2**53 - 1}, NOW + 1))
        assert await stands(store) == 2**53 - 1

    on(story)


def test_open_reservations_are_told_apart_from_what_was_used(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await take(store, "a", hold(6), calls(3))
        await take(store, "b", hold(1), hold(2, limit="2.bb"))
        await store.settle(Settlement("b", (), {"1.aa:0": 3}, NOW))
        assert await store.stand(["2.bb:0", "1.aa:0"], now=NOW) == (
            {"2.bb:0": 0, "1.aa:0": 9},
            {"2.bb:0": 0, "1.aa:0": 6},
        )

    on(story)


def test_a_lapsed_lease_frees_concurrency_and_no_money(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await take(store, "a", hold(6), calls(1))
        assert isinstance(await take(store, "b", calls(1), now=NOW + LEASE - 1), Refused)
        assert await take(store, "b", calls(1), now=NOW + LEASE) == (1,)
        assert await stands(store) == 6

    on(story)


def test_a_renewed_lease_keeps_its_place(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await take(store, "a", calls(1))
        await store.take_slot(5, "a", slots=1, now=NOW, lease=LEASE)
        await store.renew(["a", "unknown"], now=NOW + 60, lease=LEASE)
        assert isinstance(await take(store, "b", calls(1), now=NOW + 120), Refused)
        assert await in_flight(store, [5], now=NOW + 120) == {5: 1}

    on(story)


def test_a_counter_that_ended_takes_no_settlement(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await take(store, "a", hold(6))
        await store.settle(Settlement("a", (hold(6),), {"1.aa:0": 6}, NOW + 3600))
        assert await stands(store, now=NOW + 3600) in {0, 6}  # forgotten, or as it was; never half of it

    on(story)


def test_a_store_without_a_mark_admits_nothing(unseeded: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        assert await store.generation() == ""
        with pytest.raises(Unseeded):
            await take(store, "a", hold())
        await store.seed([Seed("1.aa", NOW, {"1.aa:0": (9, NOW + 3600)})], generation="first")
        assert await store.generation() == "first"
        assert await take(store, "a", hold()) == (10,)

    unseeded(story)


def test_a_new_limit_is_seeded_once(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        with pytest.raises(Unseeded) as missing:
            await take(store, "a", hold(), hold(limit="7.ee"))
        assert missing.value.limits == ("7.ee",)
        for value in (4, 400):
            await store.seed([Seed("7.ee", NOW, {"7.ee:0": (value, 0.0)})], generation="first")
        await store.seed([Seed("8.ee", NOW, {"8.ee:0": (1, 0.0)})], generation="another")
        assert await take(store, "a", hold(limit="7.ee")) == (5,)
        assert set(await store.seeded()) == {*LIMITS, "7.ee"}

    on(story)


def test_a_limit_that_is_edited_back_holds_what_calls_in_flight_reserved(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await take(store, "a", hold(6), calls(1))
        await store.seed([Seed("7.ee", NOW + 1, {}, ("1.aa",))], generation="first")
        await store.seed([Seed("1.aa", NOW + 2, {"1.aa:0": (30, NOW + 3600)}, ("7.ee",))], generation="first")
        assert await stands(store) == 36
        await store.settle(Settlement("a", (hold(6), calls(1)), {"1.aa:0": 2}, NOW + 3, NOW))
        assert await stands(store) == 32

    on(story)


def test_a_call_in_flight_when_its_limit_was_made_counts_when_it_settles(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        new = hold(0, limit="7.ee")
        await take(store, "a", hold(2))
        await store.seed([Seed("7.ee", NOW + 5, {"7.ee:0": (30, NOW + 3600)})], generation="first")
        for _ in range(2):
            await store.settle(Settlement("a", (hold(2), new), {"1.aa:0": 3, "7.ee:0": 3}, NOW + 9, NOW))
        await store.settle(Settlement("ended before", (new,), {"7.ee:0": 100}, NOW + 4, NOW))
        await store.settle(Settlement("began after", (new,), {"7.ee:0": 100}, NOW + 9, NOW + 6))
        assert await store.used(["1.aa:0", "7.ee:0"], now=NOW) == {"1.aa:0": 3, "7.ee:0": 33}

    on(story)


def test_a_correction_changes_what_is_there_and_nothing_below_zero(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await take(store, "a", hold(6))
        await store.adjust({"1.aa:0": -2, "1.aa:99": 5}, now=NOW)
        assert await store.used(["1.aa:0", "1.aa:99"], now=NOW) == {"1.aa:0": 4, "1.aa:99": 0}
        await store.adjust({"1.aa:0": -20}, now=NOW)
        assert await stands(store) == 0

    on(story)


def test_slots_are_counted_and_freed(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        taken = [await store.take_slot(5, owner, slots=2, now=NOW, lease=LEASE) for owner in ("a", "b", "c", "a")]
        assert taken == [True, True, False, True]
        await store.free_slot(5, "a")
        await store.free_slot(5, "a")
        assert await in_flight(store, [5, 6], now=NOW) == {5: 1, 6: 0}
        assert await store.take_slot(5, "c", slots=2, now=NOW, lease=LEASE)

    on(story)


def test_unlimited_slots_are_counted_too(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        for owner in "abc":
            assert await store.take_slot(5, owner, slots=0, now=NOW, lease=LEASE)
        assert await in_flight(store, [5], now=NOW + 1) == {5: 3}
        assert await in_flight(store, [5], now=NOW + LEASE) == {5: 0}

    on(story)


def test_rests_are_kept_until_they_are_cleared(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        account, model = Rest(5, "", NOW + 60, "credential"), Rest(5, "m", NOW + 10, "429", named=True, http_status=429)
        await store.rest(account, now=NOW)
        await store.rest(model, now=NOW)
        assert await store.rests(now=NOW + 30) == {(5, ""): account, (5, "m"): model}
        await store.clear_rest(5, "m")
        assert await store.rests(now=NOW + 30) == {(5, ""): account}
        await store.clear_rest(5)
        assert await store.rests(now=NOW + 30) == {}

    on(story)


def test_a_time_that_the_upstream_named_outranks_a_guess(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        named = Rest(5, "m", NOW + 10, "429", named=True)
        for rest in (Rest(5, "m", NOW + 300, "429"), named, Rest(5, "m", NOW + 600, "529")):
            await store.rest(rest, now=NOW)
        assert await store.rests(now=NOW) == {(5, "m"): named}
        after = Rest(5, "m", NOW + 40, "529")
        await store.rest(after, now=NOW + 11)
        assert await store.rests(now=NOW + 11) == {(5, "m"): after}

    on(story)


def test_one_call_goes_first_after_a_rest(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        async def may(owner: str, now: float) -> bool:
            return await store.take_probe(5, "m", owner, now=now, lease=30)

        assert await may("a", NOW)
        await store.rest(Rest(5, "m", NOW + 10, "529"), now=NOW)
        assert [await may("a", NOW + 9), await may("a", NOW + 10), await may("b", NOW + 11)] == [False, True, False]
        assert [await may("a", NOW + 12), await may("b", NOW + 50)] == [True, True]
        await store.rest(Rest(5, "m", NOW + 60, "529"), now=NOW + 51)
        assert await may("c", NOW + 61)

    on(story)


def test_failures_are_counted_in_a_row(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        assert [await store.count_failure(5, "m", now=NOW) for _ in range(3)] == [1, 2, 3]
        await store.clear_failures(5, "m")
        assert await store.count_failure(5, "m", now=NOW) == 1
        assert await store.count_failure(5, "n", now=NOW) == 1

    on(story)


def test_affinity_slides_and_is_the_keys_own(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        async def account(key: int, at: float) -> int | None:
            return await pinned(store, key, "talk", now=at, ttl=100)

        await store.set_affinity(1, "talk", 7, now=NOW, ttl=100)
        assert [await account(1, NOW + 90), await account(1, NOW + 180), await account(2, NOW)] == [7, 7, None]
        assert await account(1, NOW + 280) is None

    on(story)


def test_affinity_can_be_flushed_by_key_and_by_account(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        for key, account in ((1, 7), (2, 7), (3, 8)):
            await store.set_affinity(key, "talk", account, now=NOW, ttl=100)
        assert await store.flush_affinity(key_id=1) == 1
        assert await store.flush_affinity(account_id=7) == 1
        assert await store.flush_affinity() == 1
        assert await pinned(store, 3, "talk", now=NOW, ttl=100) is None

    on(story)


def test_the_owner_of_a_stored_response_is_remembered(on: Callable[[Story], None]) -> None:
    async def story(store: Store) -> None:
        await store.set_response_owner("resp_1", 3, 7, now=NOW)
        assert await store.response_owner("resp_1", now=NOW + 86_400) == (3, 7)
        assert await store.response_owner("resp_2", now=NOW) is None

    on(story)
