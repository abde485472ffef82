"""Whose turn it is where load does not tell accounts apart: the least recently used, weights counted."""

from __future__ import annotations

import itertools

from relay.call import Account


class Turns:
    """Stride scheduling over what this process has used; accounts of equal weight take turns in order of last use.

    An account that comes back from a rest does not catch up on what it missed.
    """

    def __init__(self) -> None:
        self._used: dict[int, tuple[float, int]] = {}
        self._pace = 0.0
        self._numbers = itertools.count(1)

    def place(self, account: Account) -> tuple[float, int]:
        """Sorts accounts: the lowest is next."""
        return self._used.get(account.id, (0.0, 0))

    def took(self, account: Account) -> None:
        self._pace = max(self._used.get(account.id, (0.0, 0))[0], self._pace)
        self._used[account.id] = (self._pace + 1 / account.weight, next(self._numbers))

    def forget(self) -> None:
        """Begin anew, as after a start."""
        self._used.clear()
        self._pace = 0.0
