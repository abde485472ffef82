"""A relayed answer as Django's response: its headers stay the bytes that they are.

Django checks, decodes and encodes each header by itself, a seventh of a call's function calls; the slim entry does not.
Django's mapping is made when somebody asks for it, as its own handler and test client do, and counts from then on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import cached_property
from http.cookies import SimpleCookie
from typing import Any

from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase, ResponseHeaders

BODILESS = frozenset({204, 304})  # RFC 9110, 8.6 and 15.4.5: no body, and of a 204 no length either
RawHeaders = Sequence[tuple[bytes, bytes]]


class _Relayed(HttpResponseBase):
    """What both kinds share. `HttpResponseBase.__init__` is not called: it would make the mapping."""

    def _begin(self, status: int, headers: RawHeaders) -> None:
        self.status_code = status
        self.closed = False
        self._raw = headers
        self._resource_closers: list[Callable[[], object]] = []
        self._handler_class = self._reason_phrase = self._charset = None

    @cached_property
    def headers(self) -> ResponseHeaders:  # type: ignore[override]
        mapping = ResponseHeaders({})
        for name, value in self._raw:
            key, text = name.decode("latin1"), value.decode("latin1")
            mapping[key] = f"{mapping[key]}, {text}" if key in mapping else text
        return mapping

    @cached_property
    def cookies(self) -> SimpleCookie:  # type: ignore[override]
        return SimpleCookie()

    @property
    def raw_headers(self) -> RawHeaders | None:
        """The headers as they came, names in lower case; None where the mapping has taken their place."""
        return None if "headers" in self.__dict__ else self._raw


class RelayedResponse(_Relayed, HttpResponse):
    """A whole answer."""

    def __init__(self, status: int, headers: RawHeaders, body: bytes) -> None:
        if status in BODILESS:
            self._begin(status, headers)
            self._container = [b""]
            return
        self._begin(status, (*headers, (b"content-length", b"%d" % len(body))))
        self._container = [body]


class RelayedStream(_Relayed, StreamingHttpResponse):
    """An answer in chunks; `on_close` is called when the response ends, however it does."""

    def __init__(
        self, status: int, headers: RawHeaders, chunks: AsyncGenerator[bytes], *, on_close: Callable[[], object]
    ) -> None:
        self._begin(status, headers)
        self.streaming_content: Any = chunks
        self._resource_closers.append(on_close)

    def __aiter__(self) -> AsyncIterator[bytes]:
        # Django's test client puts a list in its place for HEAD.
        return self._iterator if self.is_async else super().__aiter__()  # type: ignore[attr-defined]
