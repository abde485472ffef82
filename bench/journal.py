"""What the journal and the ledger cost: CPU per record, time until an entry is on disk, until a record is in the table.

    python -m bench.journal [--calls 20000] [--callers 16]

Uses the database of DATABASE_URL (migrated), in a journal folder of its own below RELAY_DATA_DIR; deletes its records.
CPU is that of the whole process, both threads included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "relay_site.settings")

import django

django.setup()  # before the models below are imported

from django.conf import settings  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402

from relay.call import Attempt, Line, Record, new_call_id  # noqa: E402
from relay.journal import Journal  # noqa: E402
from relay.ledger import Ledger  # noqa: E402
from relay.models import RollUpMark, UsageRecord  # noqa: E402
from relay.partitions import first_id  # noqa: E402
from relay.reconcile import reconcile  # noqa: E402
from relay.rollup import roll_up  # noqa: E402
from relay.state.base import Hold  # noqa: E402
from relay.sums import hour_of  # noqa: E402

HOLDS = (Hold("1.a:0", "cost", 1000, 10**9), Hold("2.b:0", "requests", 1, 1000), Hold("3.c", "concurrency", 1, 10))


def a_record() -> Record:
    now = time.time()
    return Record(
        id=new_call_id(now),
        created_at=now,
        key_id=1,
        key_name="bench",
        team_id=1,
        team_name="team",
        account_id=1,
        account_name="account",
        provider="anthropic",
        dialect="anthropic",
        endpoint="messages",
        requested_model="claude-sonnet-4-5",
        upstream_model="claude-sonnet-4-5",
        stream=True,
        candidates=[{"account": "account", "taken": True, "reason": "priority 50, 0 of 10 slots"}],
        session="0f8d7c5e-4b3a-4c1d-9e2f-1a2b3c4d5e6f",
        user_agent="Anthropic/Python 2.12.0",
    )


def finish(record: Record) -> None:
    record.status, record.http_status, record.usage_source = "ok", 200, "provider"
    record.input_tokens, record.output_tokens, record.cost_nanos = 100, 200, 3_300_000
    record.response_model, record.price_version = "claude-sonnet-4-5-20250929", "2026-11-01"
    record.lines = [Line(m, 100, "claude-sonnet-4-5", rate=3000, cost=30) for m in ("input_tokens", "output_tokens")]
    record.attempts = [Attempt("account", 200, "", 812)]
    record.provider_usage = '{"input_tokens":100,"output_tokens":200,"cache_read_input_tokens":0}'
    record.duration_ms, record.time_to_first_token_ms = 812, 204


async def drive(call: Callable[[], Awaitable[None]], *, calls: int, callers: int) -> None:
    left = calls

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    await asyncio.gather(*[caller() for _ in range(callers)])


def measure(name: str, work: Callable[[], Any], *, calls: int) -> float:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"{name:<44} {cpu / calls * 1e6:7.1f} us CPU  {calls / wall:9.0f} a second")
    return cpu / calls


def bench_journal(root: Path, *, calls: int, callers: int) -> None:
    waits: list[float] = []

    async def make() -> None:
        record = a_record()
        finish(record)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def write() -> None:
        record = a_record()
        start = time.perf_counter()
        await journal.open(record, holds=HOLDS)
        waits.append(time.perf_counter() - start)
        finish(record)
        await journal.close(record)

    base = measure(
        f"making a record, {callers} callers",
        lambda: asyncio.run(drive(make, calls=calls, callers=callers)),
        calls=calls,
    )
    journal = Journal(root)
    journal.start()
    total = measure(
        f"journal, two entries a call, {callers} callers",
        lambda: asyncio.run(drive(write, calls=calls, callers=callers)),
        calls=calls,
    )
    journal.stop()
    waits.sort()
    print(f"  the journal's own: {(total - base) * 1e6:.1f} us a call, {(total - base) / 2 * 1e6:.1f} us an entry")
    p50, p99 = statistics.median(waits) * 1e3, waits[int(len(waits) * 0.99)] * 1e3
    print(f"  on disk after {p50:.2f} ms (p50), {p99:.2f} ms (p99)")
    size = sum(path.stat().st_size for path in journal.folder.glob("*.journal"))
    print(f"  {size / calls:.0f} bytes a call")


def bench_ledger(root: Path, *, calls: int) -> None:
    journal = Journal(root)
    journal.start()

    async def fill() -> None:
        records = [a_record() for _ in range(calls)]
        for record in records:
            finish(record)
        for start in range(0, calls, 1000):
            await asyncio.gather(*[journal.close(record) for record in records[start : start + 1000]])

    asyncio.run(fill())
    ledger = Ledger(journal, interval=settings.RELAY_LEDGER_INTERVAL, on_recovered=lambda record, holds: None)

    def ship() -> None:
        ledger.start()
        while journal.waiting:
            time.sleep(0.002)

    measure(f"ledger, backlog, {connection.vendor}", ship, calls=calls)
    asyncio.run(pace(journal, rate=100, seconds=5))
    ledger.stop()
    journal.stop()


async def pace(journal: Journal, *, rate: int, seconds: int) -> None:
    """Until a record is in the table, at a steady rate."""
    waits: list[float] = []
    for number in range(rate * seconds):
        record = a_record()
        finish(record)
        await journal.close(record)
        if number % (rate // 4) == 0:
            waits.append(await asyncio.to_thread(seconds_until_booked, record.id))
        await asyncio.sleep(1 / rate)
    print(f"  in the table after {statistics.median(waits) * 1e3:.0f} ms (p50), {max(waits) * 1e3:.0f} ms (max)")


def seconds_until_booked(call_id: str) -> float:
    start = time.perf_counter()
    while not UsageRecord.objects.filter(pk=call_id).exists():
        time.sleep(0.005)
    connection.close()
    return time.perf_counter() - start


def bench_roll_up(*, calls: int) -> None:
    print(f"  {RollUpMark.objects.count()} marks")
    measure("roll-up", roll_up, calls=calls)
    measure("reconcile", lambda: reconcile(now=datetime.now(UTC)), calls=calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--callers", type=int, default=16)
    arguments = parser.parse_args()
    call_command("migrate", verbosity=0)
    began = datetime.now(UTC)
    root = Path(tempfile.mkdtemp(dir=settings.RELAY_DATA_DIR, prefix="bench-journal-"))
    try:
        bench_journal(root, calls=arguments.calls, callers=arguments.callers)
        bench_journal(root, calls=min(2000, arguments.calls), callers=1)
        bench_ledger(root, calls=arguments.calls)
        bench_roll_up(calls=arguments.calls)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        UsageRecord.objects.filter(pk__gte=first_id(began)).delete()
        RollUpMark.objects.bulk_create([RollUpMark(hour=hour_of(began))])
        roll_up()


if __name__ == "__main__":
    main()
