"""relay/sse.py: a byte stream is cut at blank lines and nowhere else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.sse import SseFramer, events

ENDS = ("\n", "\r\n", "\r")
TEXT = st.characters(codec="utf-8", exclude_characters="\r\n")


def feed(framer: SseFramer, chunks: list[bytes]) -> list[bytes]:
    return [block for chunk in chunks if (block := framer.feed(chunk))]


@pytest.mark.parametrize("end", ENDS, ids=["lf", "crlf", "cr"])
def test_an_event_is_handed_on_when_its_blank_line_is_there(end: str) -> None:
    stream = f"event: a{end}data: 1{end}{end}data: 2{end}{end}".encode()
    framer = SseFramer()
    blocks = feed(framer, [bytes([byte]) for byte in stream])
    assert b"".join(blocks) + framer.flush() == stream
    assert [data for block in blocks for _, _, data in events(block)][:1] == [b"1"]


def test_half_an_event_waits() -> None:
    framer = SseFramer()
    assert framer.feed(b'data: {"a"') == b""
    assert framer.feed(b": 1}\n\ndata: x") == b'data: {"a": 1}\n\n'
    assert framer.flush() == b"data: x"


def test_an_event_of_megabytes_in_a_thousand_pieces_costs_what_its_bytes_cost() -> None:
    framer, piece = SseFramer(), b"x" * 8192
    start = time.process_time()
    for _ in range(1024):
        assert framer.feed(piece) == b""
    assert len(framer.feed(b"\n\ndata: 1")) == 8 * 2**20 + 2
    assert framer.flush() == b"data: 1"
    assert time.process_time() - start < 1  # 0.01 s; 10 s when each piece was added to all before it


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_unicode_line_separators_are_text(separator: str) -> None:
    block = f'data: {{"text": "a{separator}b"}}\n\n'.encode()
    assert SseFramer().feed(block) == block
    assert list(events(block)) == [(0, b"", f'{{"text": "a{separator}b"}}'.encode())]


def test_data_lines_of_one_event_are_joined_and_comments_are_not_events() -> None:
    block = b": ping\n\nevent: x\ndata: a\ndata: b\n\n"
    assert list(events(block)) == [(8, b"x", b"a\nb")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_before_the_first_line_is_no_part_of_it(end: bytes) -> None:
    block = b"\xef\xbb\xbfdata: a" + end + end
    assert SseFramer().feed(block) == block
    assert list(events(block + b"data: b" + end + end)) == [(0, b"", b"a"), (len(block), b"", b"b")]


@given(
    st.lists(st.tuples(st.text(TEXT, max_size=20), st.sampled_from(ENDS))),
    st.lists(st.integers(1, 7)),
)
def test_any_stream_in_any_pieces_comes_out_byte_for_byte(lines: list[tuple[str, str]], sizes: list[int]) -> None:
    stream = "".join(f"data: {text}{end}{end}" for text, end in lines).encode()
    framer, position, out = SseFramer(), 0, []
    for size in [*sizes, len(stream)]:
        out.append(framer.feed(stream[position : position + size]))
        position += size
    assert b"".join(out) + framer.flush() == stream
    assert [data for _, _, data in events(stream)] == [text.encode() for text, _ in lines]


@given(st.lists(st.sampled_from(["data: a", "data:b", "data", "event: x", ": c", "id: 1", "\n", "\n\n", "x"])))
def test_events_are_the_same_with_any_line_end(parts: list[str]) -> None:
    block = "".join(part + "\n" for part in parts)
    plain = [(name, data) for _, name, data in events(block.encode())]
    assert [(name, data) for _, name, data in events(block.replace("\n", "\r\n").encode())] == plain
    assert [(name, data) for _, name, data in events(block.replace("\n", "\r").encode())] == plain
