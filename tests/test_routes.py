"""Every relay route asks for a key: one that is added later without that fails here."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator, Sequence

import pytest
from django.urls import URLPattern, URLResolver, get_resolver
from ninja.operation import PathView

from tests.harness import Installation, Server

# Liveness for load balancers, metrics without names, the API's own description, and signed questions.
OPEN = {"healthz", "readyz", "metrics", "ask", "openapi-json", "openapi-view", "api-root"}


def routes(patterns: Sequence[URLPattern | URLResolver], prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from routes(pattern.url_patterns, route)
        else:
            yield route, pattern


def methods_of(pattern: URLPattern) -> set[str]:
    """The methods that a ninja view takes."""
    closure = getattr(pattern.callback, "__closure__", None) or ()
    views = [cell.cell_contents for cell in closure if isinstance(cell.cell_contents, PathView)]
    return {method for view in views for operation in view.operations for method in operation.methods}


CLOSED = sorted(
    (method, re.sub(r"<[^>]+>", "x", route))
    for route, pattern in routes(get_resolver("relay.urls").url_patterns)
    if pattern.name and pattern.name not in OPEN
    for method in methods_of(pattern)
)


def ask(server: Server, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        body = b"{}" if method == "POST" else None
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_the_walk_finds_the_routes() -> None:
    wanted = {("POST", "v1/messages"), ("POST", "claude/v1/messages/count_tokens"), ("GET", "api/v1/usage")}
    assert wanted <= set(CLOSED)


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
@pytest.mark.parametrize(("method", "route"), CLOSED)
def test_a_route_without_a_key_is_401(server: Server, installation: Installation, method: str, route: str) -> None:
    status, body = ask(server, method, f"/{route}", {})
    assert status == 401
    assert json.loads(body)["error"]


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
@pytest.mark.parametrize(
    ("method", "route"), [item for item in CLOSED if "key-info" not in item[1] and "usage" not in item[1]]
)
def test_a_route_refuses_a_key_without_any_family(
    server: Server, installation: Installation, method: str, route: str
) -> None:
    key = installation.key(families=["nothing"])
    status, body = ask(server, method, f"/{route}", {"x-api-key": key})
    assert status == 403
    assert json.loads(body)["error"]
