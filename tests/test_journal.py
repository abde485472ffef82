"""The journal on a real disk: who is told what is on disk, and what happens when the disk says no."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop
from asgiref.sync import async_to_sync

import relay.journal as journal_module
from relay.call import CallStatus, Record, new_call_id
from relay.entries import Entry, Kind, scan
from relay.journal import Journal
from relay.state.base import Hold


def record(error: str = "", **fields: object) -> Record:
    return Record(id=new_call_id(), created_at=1.0, error=error, **fields)  # type: ignore[arg-type]


def on_disk(journal: Journal) -> list[Entry]:
    entries = []
    for path in sorted(journal.folder.glob("*.journal")):
        found = scan(path.read_bytes(), whole=True)
        assert found.torn == 0
        entries += [entry for entry, _ in found.entries]
    return entries


@contextmanager
def running(root: Path, *, segment_bytes: int = 2**20) -> Iterator[Journal]:
    journal = Journal(root, segment_bytes=segment_bytes)
    journal.start()
    try:
        yield journal
    finally:
        journal.stop()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow: what a full disk does, on a machine whose disk is not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_entry_is_on_disk_before_its_future_is_done(tmp_path: Path) -> None:
    first = record("first", user_agent="x")

    async def call(journal: Journal) -> None:
        await journal.open(first, holds=[Hold("7:0", "cost", 5, 10)])
        [entry] = on_disk(journal)
        assert entry.kind is Kind.OPEN
        assert entry.opening().record == first
        assert entry.opening().holds == (Hold("7:0", "cost", 5, 10),)
        first.status = CallStatus.OK
        await journal.close(first)
        assert on_disk(journal)[1].record().status == "ok"

    with running(tmp_path) as journal:
        async_to_sync(call)(journal)
        assert (journal.waiting, journal.healthy) == (1, True)


def test_those_who_wait_together_are_synced_together_and_in_order(tmp_path: Path) -> None:
    async def calls(journal: Journal) -> None:
        await asyncio.gather(*[journal.close(record(f"e{n}")) for n in range(500)])

    with running(tmp_path) as journal:
        async_to_sync(calls)(journal)
        assert [entry.record().error for entry in on_disk(journal)] == [f"e{n}" for n in range(500)]


class Counting(Journal):
    """Remembers how many entries each sync took."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.synced_together: list[int] = []

    def _sync(self, piece: list[journal_module._Waiting]) -> None:
        super()._sync(piece)
        self.synced_together.append(len(piece))


def test_an_opening_shares_the_sync_of_what_is_awaited_but_a_stream_s_goes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "IDLE", 60.0)
    monkeypatch.setattr(journal_module, "GATHER", 60.0)

    async def calls(kept: Counting) -> None:
        first, second = record("first"), record("second")
        opened = [kept.open(first), kept.open(second)]
        await asyncio.sleep(0.05)
        assert kept.synced_together == []
        await kept.close(first)
        assert [future.done() for future in opened] == [True, True]
        await kept.open(record("stream", stream=True))
        assert kept.synced_together == [3, 1]

    kept = Counting(tmp_path)
    kept.start()
    async_to_sync(calls)(kept)
    kept.stop()


def test_the_more_calls_are_in_flight_the_more_entries_share_a_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "SPACING", 0.02)
    monkeypatch.setattr(journal_module, "MOST_SPACING", 0.1)
    calls = [record(f"{number}", stream=True) for number in range(4)]

    async def story(kept: Counting) -> None:
        await kept.close(record("alone"))
        await kept.close(record("another", status=CallStatus.REFUSED.value))
        await asyncio.gather(*[kept.open(call) for call in calls[:1]])
        assert kept.synced_together == [1, 1, 1]
        await asyncio.gather(*[later(kept, number) for number in range(1, 4)])
        assert kept.synced_together == [1, 1, 1, 3]

    async def later(kept: Counting, number: int) -> None:
        await asyncio.sleep(number / 1000)
        await kept.open(calls[number])

    kept = Counting(tmp_path)
    kept.start()
    async_to_sync(story)(kept)
    kept.stop()


def test_no_entry_is_left_behind_by_a_timer_that_rings_early(tmp_path: Path) -> None:
    """uvloop's timers are rounded to milliseconds: who came in the one between waited for the thread's own look."""
    longest, distances = 0.0, random.Random(5)

    async def story(kept: Journal) -> None:
        await asyncio.gather(*[kept.open(record(stream=True)) for _ in range(5)])
        for _ in range(100):
            ended = await asyncio.gather(*[call(kept, distances.uniform(0, 0.004)) for _ in range(3)])
            await asyncio.gather(*[kept.close(one) for one in ended])
            await asyncio.sleep(0.01)

    async def call(kept: Journal, after: float) -> Record:
        nonlocal longest
        one, start = record(stream=True), time.monotonic()
        while time.monotonic() < start + after:  # noqa: ASYNC110 - distances of less than a millisecond are the point
            await asyncio.sleep(0)
        start = time.monotonic()
        await kept.open(one)
        longest = max(longest, time.monotonic() - start)
        return one

    with running(tmp_path) as kept, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story(kept))
    assert longest < journal_module.IDLE * 0.9


def test_a_call_that_ends_as_refused_is_no_longer_in_flight(tmp_path: Path) -> None:
    async def call(kept: Journal) -> None:
        one = record(status=CallStatus.REFUSED.value)
        await asyncio.gather(kept.open(one), kept.close(one))
        assert not kept._in_flight

    with running(tmp_path) as kept:
        async_to_sync(call)(kept)


def test_a_file_system_that_can_t_write_and_sync_at_once_does_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    synced: list[int] = []
    monkeypatch.setattr(os, "pwritev", refused)
    monkeypatch.setattr(os, "fdatasync", synced.append)

    async def call(kept: Journal) -> None:
        await kept.close(record("first"))
        assert [entry.record().error for entry in on_disk(kept)] == ["first"]
        assert len(synced) == 1

    with running(tmp_path) as kept:
        async_to_sync(call)(kept)


def test_an_opening_that_nobody_joins_is_written_nevertheless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "IDLE", 60.0)

    async def calls(kept: Journal) -> None:
        await kept.open(record("first"))
        await kept.open(record("second"))
        assert len(on_disk(kept)) == 2

    with running(tmp_path) as kept:
        async_to_sync(calls)(kept)


def test_segments_follow_one_another_and_are_cut_to_their_length(tmp_path: Path) -> None:
    async def calls(journal: Journal) -> None:
        for start in range(0, 60, 20):
            await asyncio.gather(*[journal.close(record(f"e{n}")) for n in range(start, start + 20)])
        await journal.close(record("x" * 5000))

    with running(tmp_path, segment_bytes=4096) as journal:
        async_to_sync(calls)(journal)
    paths = sorted(journal.folder.glob("*.journal"))
    assert [entry.record().error for entry in on_disk(journal)] == [*[f"e{n}" for n in range(60)], "x" * 5000]
    assert len(paths) > 3
    assert journal.ends == {number: path.stat().st_size for number, path in enumerate(paths, start=1)}


def test_progress_is_written_though_nobody_waits(tmp_path: Path) -> None:
    async def call(journal: Journal) -> None:
        journal.progress(record("counts"))
        for _ in range(200):
            if on_disk(journal):
                return
            await asyncio.sleep(0.02)

    with running(tmp_path) as journal:
        async_to_sync(call)(journal)
        assert [(entry.kind, entry.record().error) for entry in on_disk(journal)] == [(Kind.PROGRESS, "counts")]


def test_stop_writes_what_is_queued_and_lets_go_of_the_folder(tmp_path: Path) -> None:
    async def call(journal: Journal) -> None:
        last = journal.close(record("last"))
        journal.stop()
        await last
        with pytest.raises(OSError, match="not running"):
            await journal.close(record("too late"))

    journal = Journal(tmp_path)
    journal.start()
    lock = os.open(journal.folder / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    async_to_sync(call)(journal)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)
    assert [entry.record().error for entry in on_disk(journal)] == ["last"]


def test_a_disk_that_fails_refuses_new_calls_keeps_the_ended_ones_and_recovers(tmp_path: Path) -> None:
    flying = record("flying")

    async def calls(journal: Journal) -> None:
        await journal.open(flying)
        with full_disk():
            with pytest.raises(OSError, match="can't be written"):
                await journal.open(record("refused"))
            assert not journal.healthy
            with pytest.raises(OSError):
                await journal.open(record("refused at once"))
            flying.status, flying.output_tokens = CallStatus.OK, 7
            with pytest.raises(OSError):
                await journal.close(flying)
            with pytest.raises(OSError):
                await journal.close(record("a refusal", status=CallStatus.REFUSED))
        for _ in range(200):
            if journal.healthy:
                break
            await asyncio.sleep(0.02)
        await journal.open(record("again"))

    with running(tmp_path) as journal:
        async_to_sync(calls)(journal)
        assert [(entry.kind, entry.record().error, entry.record().status) for entry in on_disk(journal)] == [
            (Kind.OPEN, "flying", "interrupted"),
            # Its client did not get the last bytes.
            (Kind.END, "flying", "interrupted"),
            (Kind.OPEN, "again", "interrupted"),
        ]
        assert on_disk(journal)[1].record().output_tokens == 7


def test_a_folder_that_is_gone_when_the_segment_is_full_fails_and_recovers_too(tmp_path: Path) -> None:
    async def calls(journal: Journal) -> None:
        away = journal.folder.with_name("away")
        journal.folder.rename(away)
        with pytest.raises(OSError):
            await journal.close(record("x" * 2000))
        away.rename(journal.folder)
        for _ in range(200):
            if journal.healthy:
                break
            await asyncio.sleep(0.02)

    with running(tmp_path, segment_bytes=1024) as journal:
        async_to_sync(calls)(journal)
        assert [entry.record().error for entry in on_disk(journal)] == ["x" * 2000]


def test_a_future_that_was_cancelled_or_whose_loop_is_gone_disturbs_nobody(tmp_path: Path) -> None:
    async def cancel(journal: Journal) -> None:
        journal.close(record("cancelled")).cancel()
        await journal.close(record("waited for"))

    async def leave(journal: Journal) -> None:
        journal.close(record("left behind"))

    with running(tmp_path) as journal:
        asyncio.run(cancel(journal))
        asyncio.run(leave(journal))
        asyncio.run(cancel(journal))
        assert len(on_disk(journal)) == 5


def test_a_reserve_of_the_disk_is_left_to_the_database(tmp_path: Path) -> None:
    async def calls(journal: Journal) -> None:
        journal._reserve_bytes = 2**60
        with pytest.raises(OSError, match="No space left"):
            await journal.close(record("x" * 2000))
        journal._reserve_bytes = 0
        for _ in range(200):
            if journal.healthy:
                break
            await asyncio.sleep(0.02)

    with running(tmp_path, segment_bytes=1024) as journal:
        async_to_sync(calls)(journal)
        assert [entry.record().error for entry in on_disk(journal)] == ["x" * 2000]


def test_a_start_that_fails_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=4096)
    with full_disk(), pytest.raises(OSError):
        journal.start()
    assert list(tmp_path.iterdir()) == []
    journal.start()
    journal.stop()


def test_a_record_with_a_value_that_is_no_json_is_written_as_text(tmp_path: Path) -> None:
    async def call(journal: Journal) -> None:
        await journal.close(record(candidates=[{"account": Path("a"), "reason": {1}}]))

    with running(tmp_path) as journal:
        async_to_sync(call)(journal)
        assert on_disk(journal)[0].record().candidates == [{"account": "a", "reason": [1]}]
