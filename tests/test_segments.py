"""Journal folders as readers see them: where to read on, what may be deleted."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from relay.call import new_call_id
from relay.entries import encode_end
from relay.journal import Position, segment_path
from relay.segments import (
    START,
    Cursor,
    drop_shipped,
    held,
    journal_folders,
    load_cursor,
    mark_done,
    read,
    read_all,
    save_cursor,
    segment_numbers,
    waiting,
)
from tests.journals import a_journal, a_record

NOW = 1_800_000_000.0
GENEROUS = {"keep_seconds": 3600.0, "keep_bytes": 2**40, "free_bytes": 0}


def a_folder(root: Path, *segments: list[str], age: float = 0.0) -> Path:
    """A folder whose segments hold records with these errors, the last one with an empty tail."""
    folder = root / new_call_id()
    folder.mkdir(parents=True)
    for number, errors in enumerate(segments, start=1):
        path = segment_path(folder, number)
        data = b"".join(encode_end(a_record(error=error), at=NOW) for error in errors)
        path.write_bytes(data + (b"\0" * 5000 if number == len(segments) else b""))
        os.utime(path, (NOW - age, NOW - age))
    return folder


def errors_in(folder: Path, start: Position = START) -> list[str]:
    return [entry.record().error for piece in read_all(folder, start) for entry, _ in piece.entries]


def test_segments_are_read_in_order_and_from_any_place_on(tmp_path: Path) -> None:
    folder = a_folder(tmp_path, ["a", "b"], [], ["c"], ["d", "e"])
    assert errors_in(folder) == ["a", "b", "c", "d", "e"]
    places = [place for piece in read_all(folder) for _, place in piece.entries]
    assert [errors_in(folder, place) for place in places] == [list("bcde"), list("cde"), list("de"), ["e"], []]
    assert places == sorted(places)


def test_a_segment_that_was_deleted_is_passed_over(tmp_path: Path) -> None:
    folder = a_folder(tmp_path, ["a"], ["b"], ["c"])
    segment_path(folder, 2).unlink()
    assert errors_in(folder, Position(2, 77)) == ["c"]


def test_nothing_behind_the_limit_is_read_though_it_is_there(tmp_path: Path) -> None:
    folder = a_folder(tmp_path, ["a", "b"], ["c", "d"])
    [*_, third, _] = [place for piece in read_all(folder) for _, place in piece.entries]
    found, position = [], START
    while (piece := read(folder, position, limit=third, ends={1: 0})).after != position:
        found += [entry.record().error for entry, _ in piece.entries]
        position = piece.after
    assert (found, position) == (["c"], third)


@given(length=st.integers(1, 700_000))
def test_an_entry_of_any_length_is_read_in_one_piece(tmp_path_factory: object, length: int) -> None:
    folder = a_folder(Path(tmp_path_factory.mktemp("long")), ["a", "x" * length, "b"])  # type: ignore[attr-defined]
    assert [len(error) for error in errors_in(folder)] == [1, length, 1]


def test_a_cursor_that_cannot_be_read_means_the_start(tmp_path: Path) -> None:
    folder = a_folder(tmp_path, ["a"])
    assert load_cursor(folder) == Cursor()
    save_cursor(folder, Cursor(shipped=Position(3, 4), unsettled=Position(1, 2)))
    assert load_cursor(folder) == Cursor(shipped=Position(3, 4), unsettled=Position(1, 2))
    for garbage in (b"", b"\0\0\0", b'{"shipped":[1]}', b'{"shipped":"x"}'):
        (folder / "cursor").write_bytes(garbage)
        assert load_cursor(folder) == Cursor()


def test_a_folder_can_be_held_once(tmp_path: Path) -> None:
    folder = a_folder(tmp_path, ["a"])
    with held(folder) as mine, held(folder) as theirs:
        assert (mine, theirs) == (True, False)
    with a_journal(tmp_path) as journal, held(journal.folder) as mine:
        assert not mine
    with held(tmp_path / "gone") as mine:
        assert not mine


def test_what_waits_is_counted_behind_the_cursor_and_not_in_folders_that_are_done(tmp_path: Path) -> None:
    assert waiting(tmp_path / "nothing") == (0, None)
    folder, done = a_folder(tmp_path, ["a", "b"], ["c"]), a_folder(tmp_path, ["d"])
    mark_done(done)
    save_cursor(folder, Cursor(shipped=Position(2, 0)))
    assert waiting(tmp_path) == (1, NOW)


def test_only_shipped_segments_that_are_old_enough_are_dropped(tmp_path: Path) -> None:
    old, young = a_folder(tmp_path, ["a"], ["b"], age=3601), a_folder(tmp_path, ["c"], age=3599)
    living, waiting_for_recovery = (
        a_folder(tmp_path, ["d"], ["e"], ["f"], age=9999),
        a_folder(tmp_path, ["g"], age=9999),
    )
    mark_done(old)
    mark_done(young)
    assert drop_shipped(tmp_path, {living: 3}, now=NOW, **GENEROUS) == 4  # type: ignore[arg-type]
    assert not old.exists()
    assert [segment_numbers(folder) for folder in (young, living, waiting_for_recovery)] == [[1], [3], [1]]


def test_the_oldest_go_first_when_there_is_too_much_or_too_little_space_is_left(tmp_path: Path) -> None:
    folders = [a_folder(tmp_path, ["a"], age=age) for age in (300, 200, 100)]
    for folder in folders:
        mark_done(folder)
    limits = GENEROUS | {"keep_bytes": 2 * segment_path(folders[0], 1).stat().st_blocks * 512}
    assert drop_shipped(tmp_path, {}, now=NOW, **limits) == 1  # type: ignore[arg-type]
    assert [folder.exists() for folder in folders] == [False, True, True]
    assert drop_shipped(tmp_path, {}, now=NOW, **(GENEROUS | {"free_bytes": 2**60})) == 2  # type: ignore[arg-type]
    assert journal_folders(tmp_path) == []


def test_a_folder_that_was_never_finished_goes_after_an_hour(tmp_path: Path) -> None:
    fresh, stale = tmp_path / ".fresh", tmp_path / ".stale"
    for folder, age in ((fresh, 3599), (stale, 3601)):
        folder.mkdir()
        os.utime(folder, (NOW - age, NOW - age))
    drop_shipped(tmp_path, {}, now=NOW, **GENEROUS)  # type: ignore[arg-type]
    assert (fresh.exists(), stale.exists()) == (True, False)


def test_a_folder_that_is_not_there_has_no_segments(tmp_path: Path) -> None:
    assert segment_numbers(tmp_path / "gone") == []
    assert waiting(tmp_path / "gone") == (0, None)
