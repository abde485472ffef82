"""The list of records in the admin reads what it shows, whatever it is narrowed to: by EXPLAIN, over 30,000 records.

`python -m bench.ledger_size` asks every page of the admin the same over ten million.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test import override_settings

from bench.filling import FILL
from bench.pages import Page, lists, records_with_values_that_are_rare, signed_in, visit

RECORDS, DAYS = 30_000, 5
MOST_IN_VAIN = 6_000  # 50 rows of one model in thirty are 1,500 records apart


def pages() -> list[Page]:
    with signed_in() as (client, user):
        addresses = [*(url for url in lists(user) if "usagerecord" in url), *records_with_values_that_are_rare()]
        return [visit(client, address, clock=time.perf_counter) for address in addresses]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="about PostgreSQL's plans")
@pytest.mark.django_db
def test_no_list_reads_records_in_vain() -> None:
    start = datetime.now(UTC) - timedelta(days=DAYS)
    with connection.cursor() as cursor:
        cursor.execute(FILL, [start.timestamp() * 1000, DAYS * 86400_000 / RECORDS, 0, RECORDS - 1])
        cursor.execute("ANALYZE relay_usagerecord")
    with override_settings(RELAY_INTERNAL_URL="http://127.0.0.1:9"):
        found = pages()
    assert {page.status for page in found} == {200}
    assert len(found) > 40
    assert {page.address: page.vain() for page in found if page.vain() > MOST_IN_VAIN} == {}
