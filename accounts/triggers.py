"""Triggers that raise a table's version whenever its rows change: through the ORM, in bulk, or by raw SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps.registry import Apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations import RunPython

# Every table whose rows relays hold in memory.
TABLES = (
    "accounts_account",
    "accounts_account_groups",
    "accounts_accountgroup",
    "accounts_accounttoken",
    "apikeys_apikey",
    "apikeys_team",
    "apikeys_limit",
    "apikeys_binding",
    "apikeys_digestsuffix",
    "relay_price",
)
# Columns that change with use and that no relay reads: an update of nothing else raises no version.
UNWATCHED = frozenset({"last_used_at", "leased_by", "leased_until", "failure"})

# The first version of a table is a time, so that a row that was deleted and made again never repeats a version.
SQLITE_RAISE = """
    INSERT INTO accounts_tableversion ("table", version)
    VALUES ('{table}', CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))
    ON CONFLICT ("table") DO UPDATE SET version = accounts_tableversion.version + 1
"""
POSTGRES_FUNCTION = """
    CREATE OR REPLACE FUNCTION baton_raise_version() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO accounts_tableversion ("table", version)
        VALUES (TG_TABLE_NAME, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
        ON CONFLICT ("table") DO UPDATE SET version = accounts_tableversion.version + 1;
        RETURN NULL;
    END
    $$
"""


def create_version_triggers(tables: Sequence[str]) -> RunPython:
    """The migration operation that watches these tables; accounts' first migration must have run."""

    def forwards(apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:
        watch(editor.connection, tables)

    def backwards(apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:
        unwatch(editor.connection, tables)

    return RunPython(forwards, backwards)


def watch(connection: BaseDatabaseWrapper, tables: Sequence[str]) -> None:
    """Create the triggers of these tables anew; those that don't exist are left out.

    Called after each `migrate` too: SQLite drops a table's triggers with every change of its columns, and PostgreSQL's
    list the columns they watch.
    """
    with connection.cursor() as cursor:
        existing = set(connection.introspection.table_names(cursor))
        if "accounts_tableversion" not in existing:
            return
        if connection.vendor == "postgresql":
            cursor.execute(POSTGRES_FUNCTION)
        for table in tables:
            if table in existing:
                for statement in statements(connection, cursor, table):
                    cursor.execute(statement)


def unwatch(connection: BaseDatabaseWrapper, tables: Sequence[str]) -> None:
    with connection.cursor() as cursor:
        for table in tables:
            for name, _ in triggers(connection.vendor, table, columns=[]):
                cursor.execute(drop(connection.vendor, table, name))


def statements(connection: BaseDatabaseWrapper, cursor: Any, table: str) -> list[str]:
    """SQL that replaces the triggers of one table, and gives it a version if it has none."""
    columns = [column.name for column in connection.introspection.get_table_description(cursor, table)]
    watched = [column for column in columns if column not in UNWATCHED]
    made = []
    for name, event in triggers(connection.vendor, table, columns=watched):
        made.append(drop(connection.vendor, table, name))
        if connection.vendor == "postgresql":
            made.append(
                f'CREATE TRIGGER {name} AFTER {event} ON "{table}" '
                "FOR EACH STATEMENT EXECUTE FUNCTION baton_raise_version()"
            )
        else:
            raise_version = SQLITE_RAISE.format(table=table)
            made.append(f'CREATE TRIGGER {name} AFTER {event} ON "{table}" BEGIN {raise_version}; END')
    first = "INSERT INTO accounts_tableversion (\"table\", version) VALUES ('{}', 1) ON CONFLICT DO NOTHING"
    return [*made, first.format(table)]


def triggers(vendor: str, table: str, *, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Name and event of each trigger of a table."""
    listed = ", ".join(f'"{column}"' for column in columns)
    events = {"insert": "INSERT", "delete": "DELETE", "update": f"UPDATE OF {listed}"}
    if vendor == "postgresql":
        events["truncate"] = "TRUNCATE"
    return [(f"baton_{table}_{word}", event) for word, event in events.items()]


def drop(vendor: str, table: str, name: str) -> str:
    return f'DROP TRIGGER IF EXISTS {name} ON "{table}"' if vendor == "postgresql" else f"DROP TRIGGER IF EXISTS {name}"


def watch_after_migrate(*, using: str, **_: Any) -> None:
    """Receiver of `post_migrate`: see `watch`."""
    from django.db import connections

    watch(connections[using], TABLES)
