"""relay/response.py: answers whose headers stay bytes, for the slim entry and for Django's own handler."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from asgiref.sync import async_to_sync

from relay.response import RelayedResponse, RelayedStream
from relay.slim import head

HEADERS = ((b"content-type", b"application/json"), (b"x-request-id", b"1"), (b"warning", b"a"), (b"warning", b"\xe4"))
KEPT = (b"connection", b"keep-alive")
SCOPE = {"http_version": "1.1", "headers": []}


async def chunks() -> AsyncGenerator[bytes]:
    yield b"a"
    yield b"b"


def test_headers_go_out_as_they_came_with_the_length() -> None:
    assert head(RelayedResponse(200, HEADERS, b"{}"), SCOPE) == [*HEADERS, (b"content-length", b"2")]


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_has_no_length(status: int) -> None:
    response = RelayedResponse(status, HEADERS, b"{}")
    assert (head(response, SCOPE), response.content) == (list(HEADERS), b"")


def test_django_reads_and_changes_them_as_its_own() -> None:
    response = RelayedResponse(529, HEADERS, b"{}")
    response["Allow"] = "GET"
    assert (response.status_code, response["Content-Type"], response["warning"]) == (529, "application/json", "a, \xe4")
    assert (response.content, response.getvalue(), response.reason_phrase) == (b"{}", b"{}", "Unknown Status Code")
    assert head(response, SCOPE)[-2:] == [(b"content-length", b"2"), (b"allow", b"GET")]
    assert not response.cookies


def test_a_stream_is_read_once_and_its_end_is_told_however_it_comes() -> None:
    ended: list[str] = []
    response = RelayedStream(200, HEADERS, chunks(), on_close=lambda: ended.append("end"))

    async def read() -> list[bytes]:
        return [chunk async for chunk in response]

    assert async_to_sync(read)() == [b"a", b"b"]
    assert (response.streaming, response.is_async, head(response, SCOPE)) == (True, True, list(HEADERS))
    response.close()
    assert ended == ["end"]


def test_a_connection_that_the_client_closes_is_not_promised_to_stay() -> None:
    response = RelayedResponse(200, (*HEADERS, KEPT), b"")
    closing = {"http_version": "1.1", "headers": [(b"connection", b"close")]}
    assert KEPT in head(response, SCOPE)
    assert KEPT not in head(response, closing) and KEPT not in head(response, {**SCOPE, "http_version": "1.0"})


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")  # Django's own, where it reads it
def test_a_stream_whose_content_was_replaced_is_read_all_the_same() -> None:
    response = RelayedStream(200, HEADERS, chunks(), on_close=lambda: None)
    response.streaming_content = []  # as Django's test client does for HEAD

    async def read() -> list[bytes]:
        return [chunk async for chunk in response]

    assert async_to_sync(read)() == []
