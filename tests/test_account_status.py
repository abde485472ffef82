"""An account's state from its row and events: what a person must act on comes first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from accounts.admin import state_text
from accounts.health import BY_HAND
from accounts.models import Account, AccountEvent
from accounts.status import Resting, open_rests, status

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=212)


def event(
    seconds_ago: int, kind: str = "rest", *, model: str = "m", cause: str = "429", lasts: int = 3600
) -> AccountEvent:
    at = NOW - timedelta(seconds=seconds_ago)
    until = at + timedelta(seconds=lasts) if kind != "recovered" else None
    return AccountEvent(account_id=1, account_name="a", at=at, kind=kind, model=model, cause=cause, until=until)


@pytest.mark.parametrize(
    "events,resting",
    [
        ([], []),
        ([event(10)], ["m"]),
        ([event(10, lasts=5)], []),
        ([event(10, model=""), event(5, model="n")], ["", "n"]),
        ([event(10), event(5, "recovered", cause="a call succeeded")], []),
        ([event(10), event(5, "recovered", model="n", cause="a call succeeded")], ["m"]),
        # The account's own rest is over, its models' are not.
        ([event(10), event(9, model=""), event(5, "recovered", model="", cause="a call succeeded")], ["m"]),
        # A person ends them all.
        ([event(10), event(9, model=""), event(5, "recovered", model="", cause=BY_HAND)], []),
        ([event(10), event(5, "recovered", model="", cause=BY_HAND), event(1)], ["m"]),
        ([event(10, "credential", model="", cause="credential")], [""]),
        ([event(10), event(5, "switched", model="", cause="off, by hand", lasts=0)], ["m"]),
    ],
)
def test_the_latest_word_about_a_model_counts(events: list[AccountEvent], resting: list[str]) -> None:
    for order in (events, events[::-1]):
        found = open_rests(order, now=NOW).get(1, ())
        assert [rest.model for rest in found] == resting


def account(**fields: object) -> Account:
    return Account(**{"name": "a", "kind": "ccr", **fields})


MODEL_REST = Resting("m", "429", LATER)
OWN_REST = Resting("", "429", LATER)
REJECTED = Resting("", "credential", LATER)


@pytest.mark.parametrize(
    "row,rests,fault,text",
    [
        (account(), [], "", "ready"),
        (account(), [OWN_REST], "", "resting 212 s: 429"),
        (account(), [MODEL_REST], "", "1 model resting 212 s: 429"),
        (account(), [MODEL_REST, Resting("n", "529", NOW)], "", "2 models resting 212 s: 429"),
        (account(), [REJECTED], "", "credential fault"),
        (account(), [OWN_REST], "credential is missing", "credential fault"),
        (account(), [], "this Baton has no kind 'x'", "fault"),
        (account(active=False), [OWN_REST], "credential is missing", "off"),
        (account(expires_at=NOW), [OWN_REST], "", "expired"),
        (account(expires_at=LATER), [], "", "ready"),
        (account(deleted_at=NOW, active=False), [], "", "deleted"),
    ],
)
def test_what_a_person_must_act_on_comes_first(row: Account, rests: list[Resting], fault: str, text: str) -> None:
    assert state_text(status(row, rests, fault=fault, now=NOW), now=NOW) == text
