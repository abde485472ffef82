"""What an upstream failure rests, for how long, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from hypothesis import given
from hypothesis import strategies as st

from accounts import events, health
from accounts.events import EventWriter
from accounts.health import RESTS, decide, failed, in_words, is_guess, succeeded
from relay.call import Account
from relay.errors import AccountRejected, UpstreamError, UpstreamFailed, UpstreamOverloaded, UpstreamRejected
from relay.state.base import Rest
from relay.state.memory import MemoryStore
from tests.account_cases import MODEL, NOW, account, forget

A = account("a")


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> EventWriter:
    """The events of this test; nobody writes them."""
    forget()
    own = EventWriter()
    monkeypatch.setattr(events, "EVENTS", own)
    return own


def failure(rest: str, *, retry_after: float | None = None, status: int | None = None) -> UpstreamError:
    return UpstreamFailed("failed", rest=rest, retry_after=retry_after, status=status)


def decided(error: UpstreamError, *, of: Account = A, last: bool = False, failures: int = 1) -> Rest | None:
    return decide(of, MODEL, error, last=last, failures=failures, now=NOW)


def book(store: MemoryStore, error: UpstreamError, *, last: bool = False, now: float = NOW) -> Rest | None:
    return async_to_sync(failed)(store, A, MODEL, error, last=last, now=now)


# -- the table of DESIGN section 4 -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "failures", "model", "seconds"),
    [
        ("429", 1, MODEL, 300),
        ("529", 1, MODEL, 600),
        ("503", 1, MODEL, 60),
        ("5xx", 1, None, 0),
        ("5xx", 2, None, 0),
        ("5xx", 3, MODEL, 300),
        ("timeout", 2, None, 0),
        ("timeout", 3, MODEL, 300),
        ("model", 1, MODEL, 1800),
        ("credential", 1, "", 1800),
        ("", 9, None, 0),
    ],
)
def test_what_rests_and_how_long(rest: str, failures: int, model: str | None, seconds: float) -> None:
    expected = None if model is None else Rest(A.id, model, NOW + seconds, rest)
    assert decided(failure(rest), failures=failures) == expected


@pytest.mark.parametrize(("named", "seconds"), [(17.0, 17), (0.0, 1), (0.2, 1), (7200.0, 1800), (float("inf"), 1800)])
def test_a_429_rests_until_the_reset_that_the_upstream_named(named: float, seconds: float) -> None:
    expected = Rest(A.id, MODEL, NOW + seconds, "429", named=True, http_status=429)
    assert decided(failure("429", retry_after=named, status=429)) == expected


def test_a_retry_after_of_an_overload_is_no_reset() -> None:
    assert decided(failure("529", retry_after=5)) == Rest(A.id, MODEL, NOW + 600, "529")


# -- the last candidate --------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", ["429", "529", "503", "5xx", "timeout", "model"])
def test_the_last_candidate_never_rests_on_a_guess(rest: str) -> None:
    assert decided(failure(rest), last=True, failures=9) is None


def test_the_last_candidate_rests_until_a_named_reset() -> None:
    assert decided(failure("429", retry_after=17), last=True) == Rest(A.id, MODEL, NOW + 17, "429", named=True)


def test_a_rejected_credential_always_rests() -> None:
    assert decided(failure("credential"), last=True) == Rest(A.id, "", NOW + 1800, "credential")


# -- overrides of the account ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cooldowns", "rest", "retry_after", "seconds"),
    [
        ({"529": 20.0}, "529", None, 20),
        ({"529": 0.0}, "529", None, None),
        ({"429": 0.0}, "429", 40.0, None),
        ({"429": 20.0}, "429", 40.0, 40),
        ({"credential": 0.0}, "credential", None, None),
        ({"503": 9.0}, "529", None, 600),
    ],
)
def test_an_account_has_its_own_times_and_zero_is_never(
    cooldowns: dict[str, float], rest: str, retry_after: float | None, seconds: float | None
) -> None:
    own = account("own", cooldowns=cooldowns)
    found = decided(failure(rest, retry_after=retry_after), of=own)
    assert (found and found.until - NOW) == seconds


@given(
    rest=st.sampled_from(["", *RESTS, "unknown"]),
    retry_after=st.none() | st.floats(0, 1e12),
    last=st.booleans(),
    failures=st.integers(0, 10),
    cooldowns=st.dictionaries(st.sampled_from(sorted(RESTS)), st.floats(0, 7 * 86400)),
)
def test_every_rest_ends_and_the_last_candidate_is_held_back_by_facts_only(
    rest: str, retry_after: float | None, last: bool, failures: int, cooldowns: dict[str, float]
) -> None:
    own = account("own", cooldowns=cooldowns)
    error = failure(rest, retry_after=retry_after)
    found = decide(own, MODEL, error, last=last, failures=failures, now=NOW)
    if found is not None:
        assert found.until > NOW - 1e-3 and found.until <= NOW + max(1800, *cooldowns.values(), 0)
        assert not (last and is_guess(found))


# -- with a store ------------------------------------------------------------------------------------------


def test_three_server_errors_in_a_row_rest_and_a_success_in_between_begins_anew() -> None:
    store = MemoryStore()
    assert [book(store, failure("5xx")), book(store, failure("timeout"))] == [None, None]
    async_to_sync(succeeded)(store, A, MODEL, now=NOW)
    assert [book(store, failure("5xx")), book(store, failure("5xx"))] == [None, None]
    assert book(store, failure("5xx")) == Rest(A.id, MODEL, NOW + 300, "5xx")


def test_the_callers_fault_rests_nothing() -> None:
    store = MemoryStore()
    assert book(store, UpstreamRejected("no", status=400)) is None
    assert async_to_sync(store.rests)(now=NOW) == {}


def test_the_callers_fault_on_a_probe_shows_that_the_account_answers_again(noted: EventWriter) -> None:
    store = MemoryStore()
    book(store, failure("529"))
    health.expect_recovery(A.id, [MODEL])
    book(store, UpstreamRejected("no", status=400), now=NOW + 601)
    assert async_to_sync(store.rests)(now=NOW + 601) == {}
    assert [event.kind for event in noted._next_batch()] == ["rest", "recovered"]


def test_a_failure_of_a_call_without_a_model_rests_no_whole_account() -> None:
    """A call on a stored response names no model, and "" would be the account itself."""
    assert decide(A, "", failure("529"), last=False, failures=1, now=NOW) is None
    assert decide(A, "", failure("credential"), last=False, failures=1, now=NOW) == Rest(
        A.id, "", NOW + 1800, "credential"
    )


def test_a_success_that_began_before_the_rest_does_not_end_it() -> None:
    store = MemoryStore()
    book(store, failure("529"))
    async_to_sync(succeeded)(store, A, MODEL, now=NOW + 5)
    assert len(async_to_sync(store.rests)(now=NOW + 5)) == 1


def test_a_rejected_credential_is_logged_without_it(noted: EventWriter, caplog: pytest.LogCaptureFixture) -> None:
    secret = account("mine", credential={"api_key": "sk-ant-canary"})
    error = AccountRejected("no", status=401, rest="credential", body=b"canary")
    async_to_sync(failed)(MemoryStore(), secret, MODEL, error, last=True, now=NOW)
    assert "Account mine rests: its credential or balance was rejected (401)" in caplog.text
    assert "canary" not in caplog.text
    assert [(event.kind, event.model, event.http_status) for event in noted._next_batch()] == [("credential", "", 401)]


def test_an_overload_of_the_last_candidate_leaves_no_event(noted: EventWriter) -> None:
    book(MemoryStore(), UpstreamOverloaded("busy", rest="529", status=529), last=True)
    assert noted._next_batch() == []


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        (Rest(1, MODEL, NOW + 211.2, "429"), "this model rests 212 s after 429"),
        (Rest(1, MODEL, NOW + 30, "429", named=True), "this model rests 30 s after 429, as the upstream said"),
        (Rest(1, "", NOW + 5, "credential"), "rests 5 s after its credential or balance was rejected"),
        (Rest(1, MODEL, NOW + 5, "model"), "this model rests 5 s after saying that it lacks the model"),
    ],
)
def test_a_rest_in_words(rest: Any, words: str) -> None:
    assert in_words(rest, now=NOW) == words


def test_a_rest_that_ended_otherwise_makes_nothing_of_one_failure() -> None:
    """The client of the call that went first has left, and another process ended the rest."""
    store = MemoryStore()
    async_to_sync(store.rest)(Rest(A.id, MODEL, NOW, "5xx"), now=NOW - 300)
    health.expect_recovery(A.id, (MODEL,))
    async_to_sync(store.clear_rest)(A.id, MODEL)
    assert book(store, failure("5xx"), now=NOW + 3600) is None
    assert not health._recovering
