"""Whether this installation still waits for its demo month: a file in the data folder says so, from the first start
until the month is whole, or taken away."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from django.conf import settings

from relay import demo
from relay.demo import Seeded

DAYS, PER_DAY = 30, 300
GENTLE_CHUNK, GENTLE_SECONDS = 50, 0.1


def wanted() -> bool:
    return mark().exists()


def want() -> None:
    mark().touch()


def no_longer_want() -> None:
    mark().unlink(missing_ok=True)


def mark() -> Path:
    return Path(settings.RELAY_DATA_DIR) / "demo_month_wanted"


def fill() -> Seeded | None:
    """Write the month beside a relay that works, in small steps; what an earlier start was cut off in begins anew.

    Returns None where it is not wanted (any more). Until it is whole, each start tries again.
    """
    if not wanted():
        return None
    demo.remove()
    try:
        seeded = demo.seed(days=DAYS, per_day=PER_DAY, now=datetime.now(UTC), chunk=GENTLE_CHUNK, go_on=pause)
    except demo.DemoUnwanted:
        return None
    no_longer_want()
    return seeded


def pause() -> bool:
    """Let the ledger and everybody else go first."""
    time.sleep(GENTLE_SECONDS)
    return wanted()


def take_away(*, roll_up: bool = True) -> int:
    """Remove the demo's data, also while it is being written; return how many records went."""
    no_longer_want()
    return demo.remove(roll_up=roll_up)
