"""How a record becomes a row: cleaned and cut to its columns, inserted in batches, alone in quarantine if refused."""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from operator import gt, itemgetter
from typing import Any, NamedTuple

import msgspec
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError, connections, models
from django.db.backends.base.base import BaseDatabaseWrapper

from relay.call import Record, extra_tokens
from relay.entries import Entry, clean
from relay.models import Quarantine, RollUpMark, UsageRecord

log = logging.getLogger(__name__)
BATCH = 500
BUSY_MS = 2000
POLL_SECONDS = 0.002
LARGEST = 2**53  # sums of more than a thousand such figures would not fit; no real count or cost comes near
WIDEST = (-LARGEST, LARGEST)
_EMPTY: dict[Any, str] = {list: "[]", dict: "{}"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# SQLSTATE classes that name the row's own fault: data, constraints, sizes. Everything else is the database's trouble.
_ROW_FAULTS = frozenset({"21", "22", "23", "44", "54"})
_encode = msgspec.json.Encoder().encode

_COLUMNS = {field.attname: field for field in UsageRecord._meta.concrete_fields}
FIELDS = [*Record.__struct_fields__, "extra_tokens"]


def _places(*kinds: type[models.Field[Any, Any]]) -> list[int]:
    """Where the columns of these kinds stand in a row."""
    return [place for place, name in enumerate(FIELDS) if isinstance(_COLUMNS[name], kinds)]


_TEXTS = _places(models.CharField, models.TextField)
_LENGTHS = [_COLUMNS[FIELDS[place]].max_length or math.inf for place in _TEXTS]
_NUMBERS = [
    (place, *((0, 2**15 - 1) if isinstance(_COLUMNS[FIELDS[place]], models.PositiveSmallIntegerField) else WIDEST))
    for place in _places(models.IntegerField)
]
_JSON = _places(models.JSONField)
_ID, _CREATED = FIELDS.index("id"), FIELDS.index("created_at")
_texts_of = itemgetter(*_TEXTS)
_OTHERS = [field.get_default() for name, field in _COLUMNS.items() if name not in FIELDS]
_NAMES = [*FIELDS, *(name for name in _COLUMNS if name not in FIELDS)]


def _insert_into(model: type[models.Model], columns: Sequence[str]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    return f'INSERT INTO "{model._meta.db_table}" ({names}) VALUES ({", ".join(["%s"] * len(columns))})'  # noqa: S608


_INSERT = f'{_insert_into(UsageRecord, _NAMES)} ON CONFLICT ("id") DO NOTHING'
_INSERT_MARK = _insert_into(RollUpMark, ["hour", "at"])
_INSERT_QUARANTINE = _insert_into(Quarantine, ["record_id", "at", "error", "entry"])
_IS_QUARANTINED = f'SELECT 1 FROM "{Quarantine._meta.db_table}" WHERE "record_id" = %s AND "resolved_at" IS NULL'  # noqa: S608


def _insert_many(size: int) -> str:
    """`_INSERT` for SQLite, for so many rows at once."""
    head, _, rest = _INSERT.replace("%s", "?").partition(" VALUES ")
    row, _, tail = rest.partition(" ON CONFLICT")
    return f"{head} VALUES {', '.join([row] * size)} ON CONFLICT{tail}"


# At each statement sqlite3 lets go of the interpreter, and waits to get it back from a busy event loop; of few sizes,
# because it keeps what it has prepared.
_INSERTS = [(size, _insert_many(size)) for size in (32, 4, 1)]


class DatabaseAway(Exception):
    """The database can't take anything now: try the same again later."""

    def __init__(self, error: Exception) -> None:
        # The first line: PostgreSQL quotes the statement, with its values, in those behind it.
        super().__init__(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}")


class _Row(NamedTuple):
    entry: Entry
    hour: datetime
    values: list[Any]


def row_of(record: Record) -> list[Any]:
    """Return the record as values of `UsageRecord`'s columns, as `FIELDS` names them; raises `ValueError` for what
    can be none.

    Text is cleaned and cut to its column, `created_at` is the id's timestamp.
    """
    row: list[Any] = [*msgspec.structs.astuple(record), extra_tokens(record.lines)]
    row[_ID] = call_id = uuid.UUID(record.id)
    if call_id.version != 7:
        raise ValueError("the id is no UUIDv7")
    row[_CREATED] = _EPOCH + timedelta(milliseconds=call_id.int >> 80)
    texts = _texts_of(row)
    together = "".join(texts)
    if not together.isascii() or "\0" in together or any(map(gt, map(len, texts), _LENGTHS)):
        for place, length in zip(_TEXTS, _LENGTHS, strict=True):
            text = clean(row[place])
            row[place] = text if len(text) <= length else text[: int(length)]
    for place, least, most in _NUMBERS:
        number = row[place]
        if number is not None and not least <= number <= most:
            raise ValueError(f"{FIELDS[place]} is out of range")
    for place in _JSON:
        row[place] = _encode(row[place]).decode() if row[place] else _EMPTY[type(row[place])]
    return row


def is_busy(error: Exception) -> bool:
    """Whether somebody else is writing to SQLite."""
    cause = error.__cause__
    return isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def is_row_fault(error: Exception) -> bool:
    """Whether the database will never take this row; otherwise it may take it later."""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None)
    if state:
        # "No partition found for row" is a check violation of no constraint: a matter of the table.
        no_partition = state == "23514" and not getattr(getattr(cause, "diag", None), "constraint_name", None)
        return (state[:2] in _ROW_FAULTS and not no_partition) or state == "P0001"
    # What the driver refuses to send has no state: text that is no UTF-8, numbers beyond 64 bits.
    return isinstance(error, DataError | IntegrityError | ValueError | TypeError | ArithmeticError)


def describe(error: Exception) -> str:
    """Name an error without the row's content, which drivers like to quote."""
    cause = error.__cause__
    words = [type(error).__name__, getattr(cause, "sqlstate", None) or ""]
    diag = getattr(cause, "diag", None)
    words += [getattr(diag, "column_name", None) or "", getattr(diag, "constraint_name", None) or ""]
    if (
        isinstance(cause, sqlite3.IntegrityError)
        or type(error) is ValueError
        or isinstance(error, msgspec.MsgspecError)
    ):
        words.append(str(error))
    return " ".join(word for word in words if word)


class Books:
    """The ledger's way into the database: a connection of its own, outside the pool. For one thread."""

    def __init__(self, alias: str = "default") -> None:
        self._alias = alias
        self._connection: BaseDatabaseWrapper | None = None

    def add(self, entries: Sequence[Entry]) -> int:
        """Insert the records of `entries` that are not there yet, and mark their hours; returns how many were new.

        Rows that the database refuses go to quarantine, one by one. Raises `DatabaseAway`; then nothing is lost by
        adding the same entries again.
        """
        rows: list[_Row] = []
        for entry in entries:
            try:
                rows.append(self._row(entry))
            except Exception as error:  # whatever it is, it is this entry's fault and must stop no other
                self.quarantine(entry, error)
        # In the order of their ids, so that two who add the same rows never wait for each other in a circle.
        rows.sort(key=lambda row: row.entry.call_id)
        return sum(self._add(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH))

    def quarantine(self, entry: Entry, error: Exception) -> None:
        """Put an entry aside for a person, once. Raises `DatabaseAway`."""
        reason = describe(error)
        values = [entry.call_id[:36], self._now(), reason[:500], entry.payload]
        try:
            with self._transaction() as cursor:
                cursor.execute(_IS_QUARANTINED, [entry.call_id[:36]])
                if cursor.fetchone() is None:
                    cursor.execute(_INSERT_QUARANTINE, values)
                    log.error("ledger: the record of call %s is in quarantine: %s", entry.call_id, reason)
        except Exception as trouble:
            self.close()
            raise DatabaseAway(trouble) from trouble

    def close(self) -> None:
        """Give up the connection; the next use opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(DatabaseError, InterfaceError):
                connection.close()

    def _row(self, entry: Entry) -> _Row:
        row = row_of(entry.record())
        at: datetime = row[_CREATED]
        connection = self._connect()
        row[_CREATED] = connection.ops.adapt_datetimefield_value(at)
        if not connection.features.has_native_uuid_field:
            row[_ID] = row[_ID].hex
        return _Row(entry=entry, hour=at.replace(minute=0, second=0, microsecond=0), values=row + _OTHERS)

    def _add(self, rows: list[_Row]) -> int:
        try:
            return self._insert(rows)
        except Exception as error:
            if not is_row_fault(error):
                self.close()
                raise DatabaseAway(error) from error
            if len(rows) > 1:
                half = len(rows) // 2
                return self._add(rows[:half]) + self._add(rows[half:])
            self.quarantine(rows[0].entry, error)
            return 0

    def _insert(self, rows: list[_Row]) -> int:
        with self._transaction() as cursor:
            new = self._insert_rows(cursor, [row.values for row in rows])
            adapt, now = self._connect().ops.adapt_datetimefield_value, self._now()
            for hour in sorted({row.hour for row in rows}):
                cursor.execute(_INSERT_MARK, [adapt(hour), now])
        return new

    def _insert_rows(self, cursor: Any, rows: list[list[Any]]) -> int:
        connection = self._connect()
        new: int = 0
        if connection.vendor != "sqlite":
            cursor.executemany(_INSERT, rows)
            new = cursor.rowcount
            return max(0, new)
        for size, statement in _INSERTS:
            while len(rows) >= size:
                part, rows = rows[:size], rows[size:]
                # Django would look for its placeholders in these long statements each time.
                with connection.wrap_database_errors:
                    new += max(0, connection.connection.execute(statement, list(chain.from_iterable(part))).rowcount)
        return new

    def _now(self) -> Any:
        return self._connect().ops.adapt_datetimefield_value(datetime.now(tz=UTC))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        connection = self._connect()
        self._begin(connection)
        try:
            with connection.cursor() as cursor:
                yield cursor
            connection.commit()
        except BaseException:
            with contextlib.suppress(DatabaseError, InterfaceError):
                connection.rollback()
            raise
        finally:
            with contextlib.suppress(DatabaseError, InterfaceError):
                connection.set_autocommit(True)

    def _begin(self, connection: BaseDatabaseWrapper) -> None:
        """Begin, on SQLite as soon as it is free: its own waiting sleeps longer and longer, past the gaps of others."""
        deadline = time.monotonic() + BUSY_MS / 1000
        while True:
            try:
                connection.set_autocommit(False, force_begin_transaction_with_broken_autocommit=True)
            except DatabaseError as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return

    def _connect(self) -> BaseDatabaseWrapper:
        if self._connection is None:
            connection = connections[self._alias].copy()
            options = connection.settings_dict["OPTIONS"]
            # A pool that others have emptied must not keep the ledger waiting, nor a lock on SQLite longer than this.
            options.pop("pool", None)
            if connection.vendor == "sqlite":
                options["init_command"] = f"{options.get('init_command', '')} PRAGMA busy_timeout=0;"
            self._connection = connection
        return self._connection
