"""Refused calls: the first ten a minute for each key and reason are recorded, the rest only counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from django.db import close_old_connections, connection

from relay.call import Record

RECORDED_PER_MINUTE = 10
UPSERT = """
INSERT INTO relay_refusalcount (minute, key_id, reason, count) VALUES (%s, %s, %s, %s)
ON CONFLICT (minute, key_id, reason) DO UPDATE SET count = relay_refusalcount.count + excluded.count
"""


class Refusals:
    """Decides record or count, and keeps the counts until `flush` writes them."""

    def __init__(self, write: Callable[[Record], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._minute = 0
        self._seen: Counter[tuple[int, str]] = Counter()
        self._counts: Counter[tuple[int, int, str]] = Counter()

    def note(self, record: Record, *, now: float) -> None:
        """Record this refusal, or count it."""
        minute, key = int(now // 60), (record.key_id or 0, record.error[:60])
        if minute != self._minute:
            self._minute = minute
            self._seen.clear()
        self._seen[key] += 1
        if self._seen[key] <= RECORDED_PER_MINUTE:
            self._write(record)
            return
        with self._lock:
            self._counts[(minute, *key)] += 1

    def flush(self) -> None:
        """Write the counts to the database; keeps them where that fails."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        adapt = connection.ops.adapt_datetimefield_value
        rows = [
            (adapt(datetime.fromtimestamp(minute * 60, UTC)), key, reason, count)
            for (minute, key, reason), count in counts.items()
        ]
        try:
            close_old_connections()
            with connection.cursor() as cursor:
                cursor.executemany(UPSERT, rows)
        except Exception:
            with self._lock:
                self._counts.update(counts)
            raise
        finally:
            connection.close()
