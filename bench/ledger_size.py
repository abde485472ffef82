"""Roll-ups, the check command and the admin's lists over many records, on PostgreSQL.

    DATABASE_URL=postgres://.../an_empty_database python -m bench.ledger_size [--records 10000000] [--days 90]

Fills the (empty!) database by SQL, then reports rates and the plans of the queries that people wait for.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "relay_site.settings")

import django

django.setup()  # before the models below are imported

from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.models import Q, QuerySet, Sum  # noqa: E402

from relay.models import UsageDay, UsageHour, UsageRecord  # noqa: E402
from relay.partitions import create_partitions, first_id, month_start  # noqa: E402
from relay.reconcile import reconcile  # noqa: E402
from relay.rollup import mark_since, roll_up  # noqa: E402
from relay.sums import MODEL  # noqa: E402

CHUNK = 500_000
FILL = """
    INSERT INTO relay_usagerecord (
        id, created_at, key_id, key_name, team_id, team_name, account_id, account_name, provider, dialect, endpoint,
        requested_model, upstream_model, response_model, stream, status, http_status, error, usage_source, input_tokens,
        output_tokens, cost_nanos, held_nanos, unpriced, price_version, lines, duration_ms, attempts, candidates, flags,
        provider_usage, origin, upstream_request_id, response_id, session, end_user, user_agent, tags, service_tier
    )
    SELECT (lpad(to_hex(ms), 12, '0') || '7' || substr(h, 1, 3) || '8' || substr(h, 4, 15))::uuid,
        to_timestamp(ms / 1000.0), n %% 200, 'key ' || n %% 200, n %% 20, 'team ' || n %% 20, n %% 10,
        'account ' || n %% 10, 'anthropic', 'anthropic', 'messages', 'claude-' || n %% 30, 'claude-' || n %% 30,
        CASE WHEN n %% 50000 = 7 THEN 'claude-rare' ELSE 'claude-' || n %% 30 || '-20251001' END, true,
        CASE WHEN n %% 20000 = 0 THEN 'interrupted' WHEN n %% 50 = 0 THEN 'client_disconnected' ELSE 'ok' END, 200, '',
        CASE WHEN n %% 50 = 0 THEN 'partial' ELSE 'provider' END, n %% 5000, n %% 900, n %% 70000, 0, n %% 99999 = 0,
        'v',
        '[{"meter": "input_tokens", "quantity": 100, "rate": 3000, "cost": 3}]', 900, '[]', '[]', '[]',
        '{"input_tokens":100,"output_tokens":20}', 'client', 'req_' || h, 'msg_' || h, 'session ' || n / 40, '',
        'claude-cli/2.0', '{}', ''
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


def questions(now: datetime) -> dict[str, QuerySet[Any]]:
    """What the admin's lists and searches ask, with the filters' default time, and reports."""
    records = UsageRecord.objects.order_by("-id")
    week = records.filter(pk__gte=first_id(now - timedelta(days=7)))
    [known] = records[1_000:1_001]
    return {
        "list": week[:100],
        "list of a key": week.filter(key_id=7)[:100],
        "list of a team": week.filter(team_id=7)[:100],
        "list of an account": week.filter(account_id=7)[:100],
        "list of a rare model": week.alias(of_model=MODEL).filter(of_model="claude-rare")[:100],
        "list of a model nobody used": week.alias(of_model=MODEL).filter(of_model="none")[:100],
        "list of a rare status": week.filter(status="interrupted")[:100],
        "list of failures": week.filter(status__in=["upstream_error", "interrupted"])[:100],
        "list of a status nobody has": week.filter(status="upstream_error")[:100],
        "list of estimates": week.filter(usage_source__in=["estimated", "partial"])[:100],
        "list of no figures": week.filter(usage_source="none")[:100],
        "list of unpriced": week.filter(unpriced=True)[:100],
        "one hour": records.filter(
            pk__gte=first_id(now - timedelta(days=20)), pk__lt=first_id(now - timedelta(days=20, hours=-1))
        )[:100],
        "search of a call": records.filter(pk=known.pk),
        "search of a response": records.filter(response_id=known.response_id),
        "search of a session": week.filter(Q(upstream_request_id="session 7") | Q(session=known.session))[:100],
        "what a key used this month": records.filter(key_id=7, pk__gte=first_id(month_start(now))).order_by(),
        "what waits for a price": records.filter(unpriced=True)[:200],
        "report of a quarter by day": UsageDay.objects.values("day").annotate(cost=Sum("cost_nanos")).order_by("day"),
        "report of a day by hour": UsageHour.objects.filter(hour__gte=now - timedelta(days=1))
        .values("hour")
        .annotate(cost=Sum("cost_nanos")),
    }


def explain(name: str, queryset: QuerySet[Any]) -> None:
    """Print how long it takes and how many rows were read in vain: what makes a list slow as the table grows."""
    start = time.perf_counter()
    found = len(list(queryset))
    seconds = time.perf_counter() - start
    plan = queryset.explain(analyze=True)
    vain = sum(int(count) for count in re.findall(r"Rows Removed by (?:Filter|Index Recheck): (\d+)", plan))
    used = sorted(set(re.findall(r"(?:Scan|Scan Backward) using (?:relay_usagerecord_\d+_\d+_)?(\w+)", plan)))
    print(f"{name:<30} {seconds * 1e3:6.0f} ms {found:5} rows, {vain:6} in vain; {', '.join(used)}", flush=True)


def main() -> None:
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
    for name, queryset in questions(now).items():
        explain(name, queryset)


if __name__ == "__main__":
    main()
