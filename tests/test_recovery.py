"""What dead processes leave: every call gets its one record, every reservation is settled, however often tried."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from django.db import connection

from relay.call import CallStatus, Record, UsageSource, new_call_id
from relay.entries import Kind, Opening, encode_end, encode_open
from relay.ledger import Ledger
from relay.models import Quarantine, RollUpMark, UsageRecord
from relay.recovery import OnRecovered, interrupted, recover
from relay.rows import Books
from relay.segments import is_done, load_cursor
from relay.state.base import Hold
from tests.journals import Recovered, a_dead_folder, a_journal, a_ledger, a_record, entries_in, eventually, write

STRICT = Hold("1:0", "cost", 900, 1000)
PLAIN = Hold("2:0", "cost", 50, 1000, over=True)
SEVERAL = (STRICT, PLAIN, Hold("3:0", "tokens", 5000, 9000), Hold("4", "concurrency", 1, 2))


def nobody(record: Record, holds: Sequence[Hold]) -> None:
    pass


def recover_all(folder: Path, on_recovered: OnRecovered = nobody) -> int:
    books = Books()
    try:
        return sum(recover(folder, books=books, on_recovered=on_recovered))
    finally:
        books.close()


def opened(**fields: object) -> Record:
    return a_record(status=CallStatus.INTERRUPTED.value, usage_source=UsageSource.NONE.value, cost_nanos=0, **fields)


def statuses() -> dict[str, str]:
    return {str(pk): status for pk, status in UsageRecord.objects.values_list("pk", "status")}


@pytest.mark.parametrize(
    ("source", "cost", "holds", "expected"),
    [
        (None, 0, (), ("none", 0)),
        (None, 0, SEVERAL, ("none", 900)),
        (None, 0, (PLAIN,), ("none", 0)),
        ("partial", 70, SEVERAL, ("partial", 0)),
        ("provider", 70, SEVERAL, ("partial", 0)),
        ("estimated", 70, SEVERAL, ("estimated", 830)),
        ("estimated", 9999, SEVERAL, ("estimated", 0)),
        ("none", 0, SEVERAL, ("none", 900)),
    ],
)
def test_what_an_interrupted_call_is_booked_with_and_what_a_strict_budget_keeps(
    source: str | None, cost: int, holds: tuple[Hold, ...], expected: tuple[str, int]
) -> None:
    record = opened()
    latest = None if source is None else a_record(id=record.id, usage_source=source, cost_nanos=cost, status="ok")
    made = interrupted(Opening(record=record, holds=holds), latest)
    assert (made.status, made.error, made.id) == ("interrupted", "process_died", record.id)
    assert (made.usage_source, made.held_nanos) == expected
    assert made.cost_nanos == cost


@pytest.mark.django_db(transaction=True)
def test_a_dead_process_s_calls_are_shipped_ended_and_settled(tmp_path: Path) -> None:
    whole, cut, counted, refused = a_record(), opened(), opened(), a_record(status="refused")
    counts = a_record(id=counted.id, usage_source="partial", input_tokens=7, cost_nanos=3)
    folder = a_dead_folder(
        tmp_path,
        ("open", (opened(id=whole.id), [PLAIN])),
        ("open", (cut, SEVERAL)),
        ("open", counted),
        ("progress", a_record(id=counted.id, usage_source="partial", input_tokens=1)),
        ("progress", counts),
        ("end", whole),
        ("end", refused),
    )
    settled: Recovered = []
    assert recover_all(folder, lambda record, holds: settled.append((record, holds))) == 4
    assert statuses() == {
        whole.id: "ok",
        cut.id: "interrupted",
        counted.id: "interrupted",
        refused.id: "refused",
    }
    row = UsageRecord.objects.get(pk=counted.id)
    assert (row.usage_source, row.input_tokens, row.cost_nanos, row.held_nanos) == ("partial", 7, 3, 0)
    assert UsageRecord.objects.get(pk=cut.id).held_nanos == 900
    assert {record.id: tuple(holds) for record, holds in settled} == {
        whole.id: (PLAIN,),
        cut.id: SEVERAL,
        counted.id: (),
        refused.id: (),
    }
    assert next(record for record, _ in settled if record.id == whole.id).status == "ok"
    assert is_done(folder) and RollUpMark.objects.exists()
    assert recover_all(folder, lambda record, holds: settled.append((record, holds))) == 0
    assert len(settled) == 4


@pytest.mark.django_db(transaction=True)
def test_entries_that_nobody_can_read_keep_no_folder_open(tmp_path: Path) -> None:
    good, bad, cut = a_record(), a_record(duration_ms="soon"), opened(input_tokens="many")
    folder = a_dead_folder(tmp_path, ("open", cut), ("end", bad), ("end", good))
    settled: Recovered = []
    recover_all(folder, lambda record, holds: settled.append((record, holds)))
    assert is_done(folder) and statuses() == {good.id: "ok"}
    assert {row.record_id for row in Quarantine.objects.all()} == {bad.id, cut.id}
    assert [record.id for record, _ in settled] == [good.id]


def dead_folder_of(root: Path, data: bytes) -> Path:
    folder = root / new_call_id()
    folder.mkdir(parents=True)
    (folder / "000000000001.journal").write_bytes(data)
    return folder


@pytest.mark.django_db(transaction=True)
def test_a_call_that_ended_long_before_the_death_is_not_settled_again(tmp_path: Path) -> None:
    early, late = a_record(), a_record()
    data = encode_end(early, at=1000.0) + encode_end(late, at=1061.5)
    settled: Recovered = []
    recover_all(dead_folder_of(tmp_path, data), lambda record, holds: settled.append((record, holds)))
    assert [record.id for record, _ in settled] == [late.id]
    assert set(statuses()) == {early.id, late.id}


@pytest.mark.django_db(transaction=True)
def test_records_arrive_though_settling_fails_and_settling_is_tried_again(tmp_path: Path) -> None:
    cut = opened()
    folder = a_dead_folder(tmp_path, ("open", (cut, [STRICT])))

    def away(record: Record, holds: Sequence[Hold]) -> None:
        raise ConnectionError("no Redis")

    for _ in range(2):
        with pytest.raises(ConnectionError):
            recover_all(folder, away)
        assert statuses() == {cut.id: "interrupted"} and not is_done(folder)
    settled: Recovered = []
    recover_all(folder, lambda record, holds: settled.append((record, holds)))
    assert [(record.id, record.held_nanos, tuple(holds)) for record, holds in settled] == [(cut.id, 900, (STRICT,))]
    assert is_done(folder) and UsageRecord.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_recovery_that_dies_after_any_step_is_taken_up_by_the_next(tmp_path: Path) -> None:
    for steps in range(6):
        UsageRecord.objects.all().delete()
        ended = [a_record(provider_usage="x" * 2000) for _ in range(400)]
        cut = opened()
        folder = a_dead_folder(tmp_path / str(steps), ("open", cut), *[("end", record) for record in ended])
        settled: Recovered = []
        books = Books()
        recovery = recover(folder, books=books, on_recovered=lambda record, holds, s=settled: s.append((record, holds)))  # type: ignore[misc]
        for _ in range(steps):
            next(recovery, None)
        recovery.close()  # type: ignore[attr-defined]
        books.close()
        recover_all(folder, lambda record, holds, s=settled: s.append((record, holds)))  # type: ignore[misc]
        assert statuses() == {record.id: "ok" for record in ended} | {cut.id: "interrupted"}
        assert {record.id for record, _ in settled} == set(statuses())
        assert [entry.kind for entry in entries_in(folder)].count(Kind.RECOVERED) == 1


@pytest.mark.django_db(transaction=True)
def test_a_tail_cut_at_any_byte_after_the_last_sync_and_garbage_behind_it(tmp_path: Path) -> None:
    """A power cut in simulation: what was synced counts, of the rest only what is whole."""
    synced, flying = a_record(), opened()
    base = encode_open(opened(id=synced.id), [], at=1.0) + encode_end(synced, at=2.0) + encode_open(flying, [], at=3.0)
    unsynced = encode_end(a_record(id=flying.id), at=4.0)
    books = Books()
    for cut in range(len(unsynced) + 1):
        garbage = [b"", b"\0" * 100, random.Random(cut).randbytes(100), b"\n1 e 1764547200123 0000"][cut % 4]
        folder = dead_folder_of(tmp_path, base + unsynced[:cut] + garbage)
        for _ in recover(folder, books=books, on_recovered=nobody):
            pass
        whole = cut >= len(unsynced) - 1 and (cut == len(unsynced) or garbage != b"")
        assert statuses() == {synced.id: "ok", flying.id: "ok" if whole else "interrupted"}, cut
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM relay_usagerecord")
    books.close()


@pytest.mark.django_db(transaction=True)
def test_a_living_process_s_folder_is_left_alone(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:
        write(journal, ("open", opened()))
        assert recover_all(journal.folder) == 0
        assert not is_done(journal.folder) and statuses() == {}


@pytest.mark.django_db(transaction=True)
def test_many_who_recover_at_once_make_one_record_of_each_call(tmp_path: Path) -> None:
    cuts = [opened() for _ in range(50)]
    folders = [
        a_dead_folder(tmp_path, *[("open", (cut, [STRICT])) for cut in cuts[start : start + 10]])
        for start in range(0, 50, 10)
    ]
    settled: Recovered = []
    gate = threading.Barrier(4)

    def race() -> None:
        gate.wait()
        for folder in folders:
            recover_all(folder, lambda record, holds: settled.append((record, holds)))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for folder in folders:
        recover_all(folder)
        assert is_done(folder)
        assert [entry.kind for entry in entries_in(folder)].count(Kind.RECOVERED) == 10
    assert statuses() == {cut.id: "interrupted" for cut in cuts}
    assert {record.id for record, _ in settled} == {cut.id for cut in cuts}


@pytest.mark.django_db(transaction=True)
def test_a_living_relay_recovers_the_dead_and_says_when_it_has(tmp_path: Path) -> None:
    cut, ended = opened(), a_record()
    a_dead_folder(tmp_path, ("open", (cut, [STRICT])), ("end", ended))
    settled: Recovered = []
    with a_journal(tmp_path) as journal, a_ledger(journal, settled) as ledger:
        assert ledger.caught_up.wait(20)
        assert statuses() == {cut.id: "interrupted", ended.id: "ok"}
        assert {record.id for record, _ in settled} == {cut.id, ended.id}


@pytest.mark.django_db(transaction=True)
def test_it_has_not_caught_up_while_a_folder_can_not_be_finished(tmp_path: Path) -> None:
    cut, ended = opened(), a_record()
    a_dead_folder(tmp_path, ("open", (cut, [STRICT])))
    a_dead_folder(tmp_path, ("end", ended))
    away, settled = threading.Event(), []
    away.set()

    def settle(record: Record, holds: Sequence[Hold]) -> None:
        if away.is_set() and holds:
            raise ConnectionError("no Redis")
        settled.append(record.id)

    with a_journal(tmp_path) as journal:
        ledger = Ledger(journal, interval=0.02, on_recovered=settle)
        ledger.start()
        eventually(lambda: statuses() == {cut.id: "interrupted", ended.id: "ok"} and ended.id in settled)
        assert not ledger.caught_up.wait(0.3)
        away.clear()
        assert ledger.caught_up.wait(20) and cut.id in settled
        ledger.stop()


@pytest.mark.django_db(transaction=True)
def test_a_call_that_opened_long_before_all_that_is_shipped_is_still_found(tmp_path: Path) -> None:
    long, others = opened(), [a_record(provider_usage="x" * 500) for _ in range(40)]
    settled: Recovered = []
    with a_journal(tmp_path, segment_bytes=4096) as journal:
        with a_ledger(journal, settled):
            write(journal, ("open", (long, [STRICT])))
            for record in others:
                write(journal, ("end", record))
            eventually(lambda: journal.waiting == 0)
        cursor = load_cursor(journal.folder)
        assert cursor.unsettled.segment == 1 < cursor.shipped.segment
    assert recover_all(journal.folder, lambda record, holds: settled.append((record, holds))) == 1
    assert statuses() == {record.id: "ok" for record in others} | {long.id: "interrupted"}
    assert long.id in {record.id for record, _ in settled}


@pytest.mark.django_db(transaction=True)
def test_a_clean_stop_ends_the_own_folder(tmp_path: Path) -> None:
    left, ended = opened(), a_record()
    settled: Recovered = []
    with a_journal(tmp_path) as journal, a_ledger(journal, settled):
        write(journal, ("open", (left, [STRICT])), ("open", opened(id=ended.id)), ("end", ended))
        journal.stop()
    assert is_done(journal.folder)
    assert statuses() == {left.id: "interrupted", ended.id: "ok"}
    assert [record.id for record, _ in settled] == [left.id]


WRITER = """
import asyncio, sys
from pathlib import Path
from relay.call import Record, new_call_id
from relay.journal import Journal

async def call(journal):
    while True:
        record = Record(id=new_call_id(), created_at=1.0, usage_source="none", provider_usage="x" * 300)
        await journal.open(record)
        print("open", record.id, flush=True)
        record.output_tokens, record.usage_source = 1, "partial"
        journal.progress(record)
        record.status, record.usage_source = "ok", "provider"
        await journal.close(record)
        print("end", record.id, flush=True)

async def main():
    journal = Journal(Path(sys.argv[1]), segment_bytes=20_000)
    journal.start()
    await asyncio.gather(*[call(journal) for _ in range(8)])

asyncio.run(main())
"""


def killed_writer(root: Path, *, after: float) -> tuple[set[str], set[str]]:
    """Run a process that makes calls, kill -9 it; return the calls it was told are on disk: opened, ended."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        lines = [first, *process.stdout.read().splitlines()]
    # The last line may be cut: then nobody was told.
    told = [line.split() for line in lines if len(line.split()) == 2 and len(line.split()[1]) == 36]
    return {call for what, call in told if what == "open"}, {call for what, call in told if what == "end"}


def check_after_kill(root: Path, *, after: float) -> int:
    opened_calls, ended_calls = killed_writer(root, after=after)
    [folder] = [path for path in root.iterdir() if not path.name.startswith(".")]
    settled: Recovered = []
    recover_all(folder, lambda record, holds: settled.append((record, holds)))
    found = statuses()
    assert {found.get(call) for call in ended_calls} <= {"ok"}
    assert opened_calls <= found.keys()
    assert {found[call] for call in opened_calls} <= {"ok", "interrupted"}
    assert {pk for pk, status in found.items() if status == "interrupted"} <= {record.id for record, _ in settled}
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM relay_usagerecord")
    return len(found)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kill", range(4))
def test_kill_9_loses_no_call_that_was_told_to_be_on_disk(tmp_path: Path, kill: int) -> None:
    assert check_after_kill(tmp_path, after=random.Random(kill).uniform(0, 0.3)) > 0


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_kill_9_at_fifty_random_moments(tmp_path: Path) -> None:
    assert sum(check_after_kill(tmp_path / str(kill), after=random.uniform(0, 0.3)) for kill in range(50)) > 50


@pytest.mark.django_db(transaction=True)
def test_a_killed_relay_s_work_appears_while_another_lives(tmp_path: Path) -> None:
    opened_calls, _ = killed_writer(tmp_path, after=0.1)
    with a_journal(tmp_path) as journal, a_ledger(journal):
        eventually(lambda: opened_calls <= statuses().keys())
