"""Request bodies as fields that keep their bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.dialects.body import canonical, fields, join, repeats, with_field
from relay.errors import InvalidRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PAIRS = st.lists(st.tuples(st.text(), JSON), max_size=5)


def dumped(pairs: list[tuple[str, object]], *, comma: str, colon: str, ascii_only: bool) -> bytes:
    parts = [
        json.dumps(name, ensure_ascii=ascii_only) + colon + json.dumps(value, ensure_ascii=ascii_only)
        for name, value in pairs
    ]
    return ("{" + comma.join(parts) + "}").encode("utf-8", "surrogatepass")


def test_it_changes_one_field_and_keeps_every_other_byte() -> None:
    body = b'{"model":"gpt-5","temperature":1.00,"input":"caf\\u00e9 \xe2\x80\xa8 x"}'

    assert with_field(body, "model", "gpt-6") == body.replace(b"gpt-5", b"gpt-6")


def test_it_returns_the_same_bytes_when_nothing_changes() -> None:
    body = b'{ "model" : "gpt-5",\r\n\t"n": 12 }'

    assert with_field(body, "model", "gpt-5") is body


def test_it_adds_a_missing_field() -> None:
    assert with_field(b'{"a": 1}', "model", "m") == b'{"a":1,"model":"m"}'


@pytest.mark.parametrize(
    "body, want",
    [
        (b'{"model":"a","model":"b"}', b'{"model":"b"}'),
        (b'{"model":"b", "mod\\u0065l":"b"}', b'{"model":"b"}'),
        (b'{"n":12,"n":1}', b'{"n":1}'),
        (b'{"a":{"x":1},"b":2,"a":{"x":1}}', b'{"a":{"x":1},"b":2}'),
    ],
)
def test_it_keeps_the_last_of_a_field_that_stands_twice(body: bytes, want: bytes) -> None:
    assert repeats(body, fields(body))
    assert canonical(body) == want


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"a":', b'"text"', b"{'a': 1}"])
def test_it_refuses_what_is_no_json_object(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        fields(body)


@given(PAIRS, st.sampled_from([",", ", ", " ,\n"]), st.sampled_from([":", ": ", " :\t"]), st.booleans())
def test_it_sees_every_repeated_field_and_no_other(
    pairs: list[tuple[str, object]], comma: str, colon: str, ascii_only: bool
) -> None:
    body = dumped(pairs, comma=comma, colon=colon, ascii_only=ascii_only)
    found = fields(body)

    assert repeats(body, found) == (len(dict(pairs)) != len(pairs))
    assert json.loads(join(found)) == dict(pairs)


@pytest.mark.parametrize(
    "body",
    [
        b'{"' + b'\\"' * 2_000_000 + b'": 1, "model": "m"}',
        b'{"' + b"\\\\" * 2_000_000 + b'": 1, "model": "m"}',
        b"{" + b" " * 4_000_000 + b'"model": "m"}',
        b'{"model": "m"' + b', "model": "m"' * 300_000 + b"}",
    ],
    ids=["escaped quotes", "backslashes", "spaces", "one field"],
)
def test_a_large_odd_body_does_not_stop_everybody(body: bytes) -> None:
    """Read in the square of its length, each of these took many minutes: the suite's own time limit ends that."""
    assert repeats(body, fields(body)) is (body.count(b'"model"') > 1)


def test_it_refuses_more_fields_than_any_vendor_knows() -> None:
    with pytest.raises(InvalidRequest, match="more than 1000 fields"):
        fields(b"{" + b",".join(b'"%d":1' % number for number in range(1001)) + b"}")
