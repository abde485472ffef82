"""The database goes away, comes back, refuses for a while: records wait on disk and arrive once, none in quarantine."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
from django.db import connection

from relay.journal import Journal
from relay.ledger import Ledger
from relay.models import Quarantine, UsageRecord
from tests.journals import a_journal, a_ledger, a_record, eventually, write

pytestmark = pytest.mark.django_db(transaction=True)
postgresql = pytest.mark.skipif("connection.vendor != 'postgresql'", reason="PostgreSQL only")
sqlite = pytest.mark.skipif("connection.vendor != 'sqlite'", reason="SQLite only")


def booked() -> set[str]:
    return {str(pk) for pk in UsageRecord.objects.values_list("pk", flat=True)}


def outlive(root: Path, away: Callable[[Ledger], Any]) -> None:
    """Book before, while and after the database is away; all must be there in the end, once, and none elsewhere."""
    before, meanwhile, after = ([a_record() for _ in range(count)] for count in (5, 700, 5))
    with a_journal(root, segment_bytes=64 * 1024) as journal, a_ledger(journal) as ledger:
        write(journal, *[("end", record) for record in before])
        eventually(lambda: journal.waiting == 0)
        with away(ledger):
            write(journal, *[("end", record) for record in meanwhile])
            eventually(lambda: ledger.failure)
            assert journal.healthy and journal.waiting == 700
            eventually(lambda: journal.oldest_age > 0.2)
        write(journal, *[("end", record) for record in after])
        eventually(lambda: journal.waiting == 0)
        eventually(lambda: not ledger.failure and journal.oldest_age == 0)
    assert booked() == {record.id for record in [*before, *meanwhile, *after]}
    assert not Quarantine.objects.exists()


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def test_a_table_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    @contextmanager
    def away(ledger: Ledger) -> Iterator[None]:
        execute("ALTER TABLE relay_rollupmark RENAME TO elsewhere")
        try:
            yield
        finally:
            execute("ALTER TABLE elsewhere RENAME TO relay_rollupmark")

    outlive(tmp_path, away)


@sqlite
def test_a_file_that_another_has_locked_is_waited_for(tmp_path: Path) -> None:
    @contextmanager
    def away(ledger: Ledger) -> Iterator[None]:
        other = sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.rollback()
            other.close()

    outlive(tmp_path, away)


def administer(*statements: str) -> None:
    """Act as the administrator, from another database."""
    parameters: dict[str, Any] = connection.get_connection_params() | {"dbname": "postgres"}
    parameters.pop("pool", None)
    parameters.pop("cursor_factory", None)
    parameters.pop("context", None)
    with psycopg.connect(**parameters, autocommit=True) as other:
        for statement in statements:
            other.execute(statement.format(name=connection.settings_dict["NAME"]))


def kill_others() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@contextmanager
def changed(there: str, back: str) -> Iterator[None]:
    administer(there)
    kill_others()
    try:
        yield
    finally:
        # Sessions that began meanwhile, this one's own among them, would stay as they began.
        administer(back, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        connection.close()


@postgresql
def test_a_database_that_lets_nobody_in(tmp_path: Path) -> None:
    connection.ensure_connection()
    outlive(
        tmp_path,
        lambda ledger: changed(
            "ALTER DATABASE {name} ALLOW_CONNECTIONS false", "ALTER DATABASE {name} ALLOW_CONNECTIONS true"
        ),
    )


@postgresql
def test_a_database_that_is_read_only_as_after_a_failover(tmp_path: Path) -> None:
    outlive(
        tmp_path,
        lambda ledger: changed(
            "ALTER DATABASE {name} SET default_transaction_read_only = on",
            "ALTER DATABASE {name} RESET default_transaction_read_only",
        ),
    )


@postgresql
def test_connections_that_die_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    records = [a_record() for _ in range(3000)]
    with a_journal(tmp_path) as journal, a_ledger(journal, interval=0.001):
        for start in range(0, 3000, 50):
            write(journal, *[("end", record) for record in records[start : start + 50]])
            kill_others()
        eventually(lambda: journal.waiting == 0)
    assert booked() == {record.id for record in records}
    assert not Quarantine.objects.exists()


@postgresql
def test_an_exhausted_pool_stops_others_but_not_the_ledger(tmp_path: Path) -> None:
    pool = connection.pool  # type: ignore[attr-defined]
    taken = [pool.getconn() for _ in range(pool.max_size - 1)]
    try:
        with a_journal(tmp_path) as journal, a_ledger(journal):
            write(journal, ("end", a_record()))
            eventually(lambda: journal.waiting == 0)
    finally:
        for one in taken:
            pool.putconn(one)


@postgresql
def test_a_pool_finds_a_database_that_is_back_at_once(tmp_path: Path) -> None:
    pool = connection.pool  # type: ignore[attr-defined]
    until = threading.Event()

    def ask_now_and_then() -> None:
        while not until.wait(0.2):
            with suppress(psycopg_pool.PoolTimeout):
                pool.putconn(pool.getconn(timeout=0.5))

    connection.ensure_connection()
    there, back = ("ALTER DATABASE {name} ALLOW_CONNECTIONS " + word for word in ("false", "true"))
    others = [threading.Thread(target=ask_now_and_then) for _ in range(3)]
    with changed(there, back):
        for thread in others:
            thread.start()
        time.sleep(8)  # it would try again after 1, 2, 4 and then 8 seconds
    start = time.monotonic()
    pool.putconn(pool.getconn(timeout=20))
    seconds = time.monotonic() - start
    until.set()
    for thread in others:
        thread.join()
    assert seconds < 4


@contextmanager
def raising(code: str, *, when: str = "true") -> Iterator[None]:
    """A trigger answers with this SQLSTATE, as the database would."""
    execute(
        "CREATE FUNCTION raise_it() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'secret text' USING ERRCODE = '{code}'; END $$"
    )
    execute(
        f"CREATE TRIGGER raise_it BEFORE INSERT ON relay_usagerecord FOR EACH ROW WHEN ({when}) "
        "EXECUTE FUNCTION raise_it()"
    )
    try:
        yield
    finally:
        execute("DROP TRIGGER raise_it ON relay_usagerecord")
        execute("DROP FUNCTION raise_it()")


TROUBLES = {
    "disk full": "53100",
    "out of memory": "53200",
    "too many connections": "53300",
    "read only": "25006",
    "shutting down": "57P01",
    "starting up": "57P03",
    "serialization failure": "40001",
    "deadlock": "40P01",
    "no privilege": "42501",
    "undefined column": "42703",
    "lock timeout": "55P03",
    "statement timeout": "57014",
    "I/O error": "58030",
    "internal error": "XX000",
}


@postgresql
@pytest.mark.parametrize("code", TROUBLES.values(), ids=TROUBLES.keys())
def test_a_trouble_of_the_database_is_no_fault_of_the_row(tmp_path: Path, code: str) -> None:
    outlive(tmp_path, lambda ledger: raising(code))


FAULTS = {
    "bad text": "22021",
    "number out of range": "22003",
    "not null": "23502",
    "unique": "23505",
    "row too large": "54000",
    "a rule of the installation": "P0001",
}


@postgresql
@pytest.mark.parametrize("code", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_of_a_row_is_found_among_many_and_its_text_is_not_shown(
    tmp_path: Path, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = [a_record() for _ in range(30)]
    bad = [a_record(error="poison") for _ in range(3)]
    mixed = [*good[:4], bad[0], *good[4:20], bad[1], *good[20:], bad[2]]
    with raising(code, when="NEW.error = 'poison'"), a_journal(tmp_path) as journal, a_ledger(journal):
        write(journal, *[("end", record) for record in mixed])
        eventually(lambda: journal.waiting == 0)
    assert booked() == {record.id for record in good}
    assert set(Quarantine.objects.values_list("record_id", flat=True)) == {record.id for record in bad}
    assert all(code in error and "secret" not in error for error in Quarantine.objects.values_list("error", flat=True))
    assert "secret" not in caplog.text and "poison" not in caplog.text


@sqlite
def test_sqlite_refuses_a_row_by_a_rule_of_the_installation(tmp_path: Path) -> None:
    good, bad = [a_record() for _ in range(10)], a_record(error="poison")
    execute(
        "CREATE TRIGGER raise_it BEFORE INSERT ON relay_usagerecord WHEN NEW.error = 'poison' "
        "BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    try:
        with a_journal(tmp_path) as journal, a_ledger(journal):
            write(journal, *[("end", record) for record in [*good, bad]])
            eventually(lambda: journal.waiting == 0)
    finally:
        execute("DROP TRIGGER raise_it")
    assert booked() == {record.id for record in good}
    assert [row.record_id for row in Quarantine.objects.all()] == [bad.id]


def test_two_processes_that_ship_the_same_records_in_opposite_order_never_block_each_other(tmp_path: Path) -> None:
    records = [a_record() for _ in range(400)]
    journals: list[Journal] = []
    gate = threading.Barrier(2)

    def ship(root: Path, order: list[Any]) -> None:
        with a_journal(root) as journal, a_ledger(journal):
            gate.wait()
            for start in range(0, 400, 40):
                write(journal, *[("end", record) for record in order[start : start + 40]])
            eventually(lambda: journal.waiting == 0)
            journals.append(journal)

    threads = [
        threading.Thread(target=ship, args=(tmp_path / "a", records)),
        threading.Thread(target=ship, args=(tmp_path / "b", records[::-1])),
    ]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(journals) == 2 and time.monotonic() - start < 60
    assert booked() == {record.id for record in records}
