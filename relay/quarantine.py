"""Another try for entries that the database refused, once a person has removed the cause."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from relay.entries import Entry, Kind
from relay.models import Quarantine, UsageRecord
from relay.rows import Books, DatabaseAway


def retry(row: Quarantine, *, now: datetime) -> bool:
    """Try to book the entry; return whether its record is in the table now, and then mark the row as resolved."""
    books = Books()
    try:
        books.add([entry_of(row)])
    except DatabaseAway:
        return False
    finally:
        books.close()
    try:
        booked = UsageRecord.objects.filter(id=UUID(row.record_id)).exists()
    except ValueError:  # what is no id was the entry's fault
        return False
    if booked:
        row.resolved_at = now
        row.save(update_fields=["resolved_at"])
    return booked


def entry_of(row: Quarantine) -> Entry:
    """The entry as the journal had it; whether it carries a reservation is read from its shape."""
    payload = bytes(row.entry)
    kind = Kind.RECOVERED if payload.startswith(b'{"record"') else Kind.END
    return Entry(kind=kind, call_id=row.record_id, at=row.at.timestamp(), payload=payload)
