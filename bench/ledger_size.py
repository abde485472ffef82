"""Roll-ups, the check command and the admin's lists over many records, on PostgreSQL.

    DATABASE_URL=postgres://.../an_empty_database python -m bench.ledger_size [--records 10000000] [--days 90]

Fills the (empty!) database by SQL, then reports rates, and visits every list, filter, search and report of the admin:
how long each takes and, by EXPLAIN, how it reads the records. Ends with 1 where one reads them without an index.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "relay_site.settings")

import django

django.setup()  # before the models below are imported

from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.test import Client  # noqa: E402

from bench.pages import Page, lists, records_with_values_that_are_rare, reports, signed_in, visit  # noqa: E402
from relay.models import UsageRecord  # noqa: E402
from relay.partitions import create_partitions  # noqa: E402
from relay.reconcile import reconcile  # noqa: E402
from relay.rollup import mark_since, roll_up  # noqa: E402

CHUNK = 500_000
MOST_IN_VAIN = 20_000
PARTITION = re.compile(r"^relay_usage(record_\d+_\d+|record_default|hour|day)_")  # in the names of indexes
FILL = """
    INSERT INTO relay_usagerecord (
        id, created_at, key_id, key_name, team_id, team_name, account_id, account_name, provider, dialect, endpoint,
        requested_model, upstream_model, response_model, stream, status, http_status, error, usage_source, input_tokens,
        output_tokens, cost_nanos, held_nanos, unpriced, price_version, lines, duration_ms, attempts, candidates, flags,
        provider_usage, origin, upstream_request_id, response_id, session, end_user, user_agent, tags, service_tier
    )
    SELECT (lpad(to_hex(ms), 12, '0') || '7' || substr(h, 1, 3) || '8' || substr(h, 4, 15))::uuid,
        to_timestamp(ms / 1000.0), n %% 200, 'key ' || n %% 200, n %% 20, 'team ' || n %% 20, n %% 10,
        'account ' || n %% 10, CASE WHEN n %% 10 = 3 THEN 'aws' ELSE 'anthropic' END, 'anthropic', 'messages',
        'claude-' || n %% 30, 'claude-' || n %% 30,
        CASE WHEN n %% 50000 = 7 THEN 'claude-rare' ELSE 'claude-' || n %% 30 || '-20251001' END, true,
        CASE WHEN n %% 20000 = 0 THEN 'interrupted' WHEN n %% 50 = 0 THEN 'client_disconnected' ELSE 'ok' END, 200, '',
        CASE WHEN n %% 50 = 0 THEN 'partial' ELSE 'provider' END, n %% 5000, n %% 900, n %% 70000, 0, n %% 99999 = 0,
        'v',
        '[{"meter": "input_tokens", "quantity": 100, "model": "claude", "rate": 3000, "cost": 3}]',
        900, '[]', '[]', '[]', '{"input_tokens":100,"output_tokens":20}', 'client', 'req_' || h, 'msg_' || h,
        'session ' || n / 40, '', 'claude-cli/2.0', '{}', ''
    FROM (
        SELECT n, md5(n::text) AS h, (%s + n * %s)::bigint AS ms FROM generate_series(%s::bigint, %s::bigint) AS n
    ) AS numbered
"""


def fill(records: int, *, start: datetime, days: int) -> None:
    step = days * 86400_000 / records
    with connection.schema_editor() as editor:
        for index in UsageRecord._meta.indexes:
            editor.remove_index(UsageRecord, index)
    for first in range(0, records, CHUNK):
        last = min(first + CHUNK, records) - 1
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            cursor.execute(FILL, [start.timestamp() * 1000, step, first, last])
        print(f"{last + 1} records", flush=True)
    with connection.schema_editor() as editor:
        for index in UsageRecord._meta.indexes:
            editor.add_index(UsageRecord, index)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE relay_usagerecord")


def timed(name: str, work: Callable[[], Any], *, records: int) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name}: {wall:.1f} s, {records / wall:.0f} records a second, {cpu:.1f} s of our CPU ({result})", flush=True)


def visited(client: Client, addresses: Iterator[str]) -> list[Page]:
    """Fetch each page twice, the second time with what it needs in memory, and explain its queries."""
    found = []
    for address in addresses:
        client.get(address)
        found.append(visit(client, address, clock=time.perf_counter))
        if found[-1].growing():
            print(told(found[-1]), flush=True)
    return found


def told(page: Page) -> str:
    """A line on a page: time, rows of usage tables read and read in vain by its worst query, the indexes used."""
    reads = page.growing()
    used = ", ".join(sorted({PARTITION.sub("", scan.index) or scan.node for scan in reads}))
    most = max(scan.rows for scan in reads)
    return f"{page.seconds * 1e3:6.0f} ms {most:8} read {page.vain():8} in vain  {page.address}  {used}"


def faults(pages: list[Page]) -> list[str]:
    """Pages that fail, and those that read records without an index, or usage in vain."""
    found = [f"{page.status} {page.address}" for page in pages if page.status != 200]
    for page in pages:
        whole = [scan for scan in page.records() if scan.node == "Seq Scan" and scan.rows + scan.vain > MOST_IN_VAIN]
        if whole or page.vain() > MOST_IN_VAIN:
            found.append(told(page))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--days", type=int, default=90)
    arguments = parser.parse_args()
    call_command("migrate", verbosity=0)
    now = datetime.now(UTC)
    start = now - timedelta(days=arguments.days)
    if not UsageRecord.objects.exists():
        create_partitions(start, ahead=arguments.days // 28 + 1)
        timed("fill", lambda: fill(arguments.records, start=start, days=arguments.days), records=arguments.records)
        mark_since(start, until=now)
        timed("roll-up of everything", roll_up, records=arguments.records)
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE relay_usagehour, relay_usageday")
    timed("reconcile", lambda: reconcile(now=datetime.now(UTC)).reasons or "ok", records=arguments.records)
    mark_since(now - timedelta(hours=2), until=now)
    timed("roll-up of three hours", roll_up, records=arguments.records // arguments.days // 8)
    with signed_in() as (client, user):
        pages = visited(client, chain(lists(user), records_with_values_that_are_rare(), reports()))
    slowest = max(pages, key=lambda page: page.seconds)
    print(f"{len(pages)} pages, the slowest {slowest.seconds:.2f} s: {slowest.address}")
    for fault in (found := faults(pages)):
        print(f"FAULT {fault}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
