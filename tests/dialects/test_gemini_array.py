"""Gemini's framings, cut anywhere: whole pieces go on, bytes stay as they came."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.dialects.gemini_array import ElementFramer, GeminiFramer, elements
from relay.errors import UpstreamFailed
from tests.providers.case import fixture, ways_to_cut

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
objects = st.lists(st.dictionaries(st.text(max_size=6), values, min_size=1, max_size=3), min_size=1, max_size=5)


def blocks(stream: bytes, size: int) -> list[bytes]:
    framer = GeminiFramer()
    cut = [framer.feed(stream[start : start + size]) for start in range(0, len(stream), size)]
    return [block for block in (*cut, framer.flush()) if block]


@given(objects, st.integers(min_value=1, max_value=50), st.booleans())
def test_an_array_is_cut_behind_whole_elements(listed: list[dict[str, object]], size: int, pretty: bool) -> None:
    stream = json.dumps(listed, indent=2 if pretty else None, ensure_ascii=False).encode("utf-8", "surrogatepass")
    read: list[object] = []
    for block in blocks(stream, size):
        read += json.loads(elements(block)[0].decode("utf-8", "surrogatepass"))
    assert b"".join(blocks(stream, size)) == stream
    assert read == listed


@pytest.mark.parametrize("name", ["text.json", "tight.json", "text.sse", "lf.sse", "cut.json", "error_first.json"])
def test_bytes_stay_as_they_came(name: str) -> None:
    for how, chunks in ways_to_cut(fixture(f"gemini/{name}")):
        framer = GeminiFramer()
        assert b"".join([*map(framer.feed, chunks), framer.flush()]) == b"".join(chunks), how


def test_the_closing_bracket_is_a_piece_of_its_own() -> None:
    framer = ElementFramer(array=True)
    assert [framer.feed(part) for part in (b"[", b'{"a":"]}"', b"}", b"\n,", b"{}", b"\n", b"]", b"\n")] == [
        b"",
        b"",
        b'[{"a":"]}"}',
        b"",
        b"\n,{}",
        b"",
        b"\n]",
        b"",
    ]
    assert framer.flush() == b"\n"


def test_a_backslash_at_the_end_of_a_chunk_keeps_its_quote() -> None:
    framer = ElementFramer(array=True)
    assert [framer.feed(part) for part in (b'[{"a":"\\', b'"}', b'"}', b"]")] == [b"", b"", b'[{"a":"\\"}"}', b"]"]


def test_one_object_alone_is_a_piece() -> None:
    framer = GeminiFramer()
    assert (framer.feed(b' {"error":'), framer.feed(b'{"code":503}}'), framer.flush()) == (
        b"",
        b' {"error":{"code":503}}',
        b"",
    )


def test_an_element_without_end_is_refused() -> None:
    framer = ElementFramer(array=True)
    framer.feed(b'[{"a":"')
    with pytest.raises(UpstreamFailed):
        framer.feed(b"x" * (64 * 1024 * 1024))
