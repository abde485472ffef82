"""Lines of the journal: what goes in comes out, and nothing else does."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from relay.call import Attempt, Line, Record, new_call_id
from relay.entries import Kind, clean, encode_end, encode_open, encode_progress, encode_recovered, scan
from relay.state.base import Hold

ANY_TEXT = st.text(alphabet=st.characters(codec=None), max_size=40)
COUNT = st.none() | st.integers(0, 2**53)
RECORDS = st.builds(
    Record,
    id=st.builds(new_call_id, st.floats(0, 4e9)),
    created_at=st.floats(0, 4e9),
    key_name=ANY_TEXT,
    requested_model=ANY_TEXT,
    provider_usage=ANY_TEXT,
    input_tokens=COUNT,
    output_tokens=COUNT,
    lines=st.lists(st.builds(Line, meter=ANY_TEXT, quantity=st.integers(0, 2**53), model=ANY_TEXT, rate=COUNT)),
    attempts=st.lists(
        st.builds(Attempt, account=ANY_TEXT, status=st.none(), error=ANY_TEXT, duration_ms=st.integers(0, 9))
    ),
    tags=st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3),
)
HOLDS = st.lists(st.builds(Hold, counter=ANY_TEXT, metric=st.just("cost"), amount=COUNT.filter(bool), cap=st.just(9)))


def cleaned(record: Record) -> Record:
    copy = Record(**{name: clean(getattr(record, name)) for name in record.__struct_fields__})
    copy.lines = [
        Line(**{name: clean(getattr(line, name)) for name in line.__struct_fields__}) for line in record.lines
    ]
    copy.attempts = [
        Attempt(**{name: clean(getattr(attempt, name)) for name in attempt.__struct_fields__})
        for attempt in record.attempts
    ]
    return copy


@given(record=RECORDS, holds=HOLDS)
@example(record=Record(id=new_call_id(), created_at=1.0, user_agent="a\x00b\ud800c", tags={"\x00": "\udfff"}), holds=[])
def test_a_record_of_any_text_comes_back_without_what_databases_refuse(record: Record, holds: list[Hold]) -> None:
    lines = [
        encode_open(record, holds, at=1.5),
        encode_progress(record, at=2.5),
        encode_end(record, at=3.5),
        encode_recovered(record, holds, at=4.5),
    ]
    found = scan(b"".join(lines), whole=True)
    assert (found.used, found.torn) == (sum(map(len, lines)), 0)
    assert [entry.kind for entry, _ in found.entries] == [Kind.OPEN, Kind.PROGRESS, Kind.END, Kind.RECOVERED]
    assert [entry.at for entry, _ in found.entries] == [1.5, 2.5, 3.5, 4.5]
    assert {entry.call_id for entry, _ in found.entries} == {record.id}
    assert all(entry.record() == cleaned(record) for entry, _ in found.entries)
    assert [hold.amount for hold in found.entries[0][0].opening().holds] == [hold.amount for hold in holds]


def lines_of(count: int) -> list[bytes]:
    return [encode_end(Record(id=new_call_id(), created_at=1.0, error=f"e{n}"), at=n) for n in range(count)]


def names(data: bytes, *, whole: bool = True) -> list[str]:
    return [entry.record().error for entry, _ in scan(data, whole=whole).entries]


def test_a_line_cut_at_any_byte_is_no_entry_and_all_before_it_are() -> None:
    lines = lines_of(3)
    data = b"".join(lines)
    start = len(lines[0]) + len(lines[1])
    for cut in range(start, len(data)):
        found = scan(data[:cut], whole=True)
        assert [entry.record().error for entry, _ in found.entries] == ["e0", "e1"]
        assert found.torn == cut - start


@given(st.binary(max_size=200))
@example(b"1 e 1764547200123 00000002 00000000 x {}\n")
@example(b"\n1 e")
@example(b"\x00\x00\x00")
def test_garbage_behind_and_between_lines_is_skipped_and_weighed(garbage: bytes) -> None:
    lines = lines_of(3)
    found = scan(b"".join([*lines[:2], garbage, b"\n", lines[2], garbage]), whole=True)
    assert [entry.record().error for entry, _ in found.entries] == ["e0", "e1", "e2"]
    assert found.torn >= len(garbage.strip(b"\0"))


def line_ends(data: bytes | bytearray) -> set[int]:
    lengths = [len(line) for line in lines_of(3)]
    assert sum(lengths) == len(data)
    return {sum(lengths[: n + 1]) - 1 for n in range(3)}


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_one_flipped_bit_costs_one_line_and_is_never_read(position: int, bit: int) -> None:
    lines = lines_of(3)
    data = bytearray(b"".join(lines))
    data[position % len(data)] ^= 1 << bit
    found = names(bytes(data))
    assert set(found) <= {"e0", "e1", "e2"}
    assert len(found) == (2 if position % len(data) not in line_ends(data) else 3)


@given(st.lists(st.integers(0, 2000), max_size=6))
def test_a_segment_read_in_pieces_gives_the_same_entries(cuts: list[int]) -> None:
    data = b"".join(lines_of(5)) + b"\0" * 50
    found: list[str] = []
    offset = 0
    for cut in [*sorted(cuts), len(data)]:
        piece = scan(data[offset : max(offset, cut)], whole=cut >= len(data))
        found += [entry.record().error for entry, _ in piece.entries]
        offset += piece.used
    assert found == ["e0", "e1", "e2", "e3", "e4"]
    assert offset == len(data)
