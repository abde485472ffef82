"""HTTP where it is odd: paths, methods, upgrades, framing; the same on both servers unless a test says otherwise."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from axes.models import AccessAttempt

from tests.canned import canned, json_of
from tests.harness import Installation, Server
from tests.raw_http import UPGRADE, answers, ask, converse, request_bytes

MODEL = "claude-sonnet-5-5"
VERSION = ("anthropic-version", "2023-06-01")
CLOSE = ("connection", "close")
MESSAGE = b'{"id":"msg_1","type":"message","model":"claude-sonnet-5-5","usage":{"input_tokens":1,"output_tokens":1}}'


def asked(**changes: object) -> bytes:
    body = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], **changes}
    return json.dumps(body).encode()


@pytest.mark.parametrize("path", ["/healthz/", "/healthz/x", "/metrics/%00", "/v1/a%0Ab", "/v1/%e2%80%a8", "/v1/%00"])
def test_a_path_that_nobody_serves_is_404_not_500(server: Server, path: str) -> None:
    answer = ask(server, "GET", path, VERSION)
    assert (answer.status, answer["content-type"]) == (404, "application/json")
    error = json.loads(answer.body)
    assert error["error"]["type"] == "not_found_error"
    assert answer["x-request-id"] == error["request_id"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_is_405_in_the_native_shape(server: Server, method: str) -> None:
    answer = ask(server, method, "/v1/messages", VERSION)
    assert (answer.status, answer["allow"], answer["content-type"]) == (405, "POST", "application/json")
    error = json.loads(answer.body)
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert answer["x-request-id"] == error["request_id"]
    assert json.loads(ask(server, method, "/openai/v1/embeddings").body)["error"]["param"] is None


@pytest.mark.parametrize("kind", ["uvicorn", "daphne"])
@pytest.mark.parametrize(
    "trusted, forwarded, status, address",
    [
        ("", "10.9.0.7", 403, "127.0.0.1"),
        ("10.0.0.1, 127.0.0.1", "203.0.113.9, 10.9.0.7, 10.0.0.1", 404, "10.9.0.7"),
        ("127.0.0.0/8", "10.9.0.7, 203.0.113.9", 403, "203.0.113.9"),
    ],
)
def test_only_a_trusted_proxy_is_believed_where_a_client_is(
    start_server: Any, installation: Installation, kind: str, trusted: str, forwarded: str, status: int, address: str
) -> None:
    """By a key's addresses, and by the address that a failed sign-in counts for."""
    server = start_server(kind, RELAY_TRUSTED_PROXIES=trusted)
    behind = ("x-forwarded-for", forwarded)
    key = ("x-api-key", installation.key(ip_allow=["10.9.0.0/16"]))
    assert ask(server, "GET", "/v1/models/none", VERSION, key, behind).status == status
    with httpx.Client(base_url=server.url, headers=[behind]) as client:
        client.get("/admin/login/")
        form = {"username": "x", "password": "y", "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        client.post("/admin/login/", data=form)
    assert AccessAttempt.objects.get().ip_address == address


@pytest.mark.parametrize("path", ["/v1/messages", "/api/v1/messages/count_tokens", "/claude/v1/messages"])
def test_a_wrong_method_on_anthropics_path_needs_no_header_to_be_told_so(server: Server, path: str) -> None:
    answer = ask(server, "GET", path)
    assert (answer.status, json.loads(answer.body)["type"]) == (405, "error")
    assert "param" in json.loads(ask(server, "GET", "/v1/embeddings").body)["error"]


def test_the_server_wide_options_request_is_no_500(server: Server) -> None:
    assert ask(server, "OPTIONS", "*").status in {400, 404}


def test_a_trailing_slash_is_another_path(server: Server, installation: Installation) -> None:
    answer = ask(server, "POST", "/v1/messages/", VERSION, ("x-api-key", installation.key()), body=asked())
    assert answer.status == 404
    assert "POST /v1/messages/ is not served" in json.loads(answer.body)["error"]["message"]


def test_a_percent_encoded_path_is_the_same_path(server: Server, installation: Installation) -> None:
    installation.account()
    key = installation.key()
    assert ask(server, "POST", "/v1%2F%6dessages", ("x-api-key", key), VERSION, body=asked()).status == 200
    (request,) = installation.simulator.requests()
    assert request["target"] == "/v1/messages"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/responses/resp_1"])
def test_more_query_fields_than_django_reads_are_400(server: Server, installation: Installation, path: str) -> None:
    query = "&".join(["a=1"] * 1100)
    answer = ask(server, "GET", f"{path}?{query}", VERSION, ("x-api-key", installation.key()))
    assert answer.status in {400, 404}
    assert json.loads(answer.body)["error"]["type"] in {"invalid_request_error", "not_found_error"}


@pytest.mark.parametrize("path", ["/v1/messages", "/healthz", "/readyz", "/metrics", "/v1/models", "/nothing-here"])
@pytest.mark.parametrize("method", ["HEAD", "GET", "POST"])
def test_every_answer_of_the_relay_has_an_id_and_a_length(server: Server, method: str, path: str) -> None:
    answer = ask(server, method, path if path != "/nothing-here" else "/v1/nothing-here")
    assert len(answer["x-request-id"]) == 36
    assert answer.values("transfer-encoding") == []
    if method != "HEAD":
        assert int(answer["content-length"]) == len(answer.body)


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_an_unsigned_internal_question_is_not_read(server: Server) -> None:
    """Its 31 MB were kept before anybody looked at the signature."""
    with socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port), timeout=10) as client:
        client.sendall(b"POST /internal/ask HTTP/1.1\r\nhost: x\r\ncontent-length: 31000000\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("path", ["/v1/responses", "/openai/v1/responses", "/v1/messages", "/v1/realtime"])
def test_a_web_socket_upgrade_is_426(server: Server, path: str) -> None:
    answer = ask(server, "GET", path, *UPGRADE)
    assert answer.status == 426


def test_the_key_of_an_upgrade_is_not_logged(server: Server, installation: Installation) -> None:
    key = installation.key()
    assert ask(server, "GET", f"/v1/responses?key={key}", *UPGRADE).status == 426
    assert key not in server.log()


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_body_lost_to_an_upgrade_is_told(server: Server, installation: Installation) -> None:
    """uvicorn's parser skips the body of a request that offers h2c, as Java's own client does."""
    headers = (("connection", "Upgrade, HTTP2-Settings, close"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk"))
    answer = ask(server, "POST", "/v1/messages", VERSION, ("x-api-key", installation.key()), *headers, body=asked())
    assert answer.status == 400
    assert "h2c" in json.loads(answer.body)["error"]["message"]


def test_pipelined_requests_are_answered_in_order(server: Server, installation: Installation) -> None:
    installation.account()
    key = ("x-api-key", installation.key())
    received = converse(
        server,
        request_bytes("POST", "/v1/messages", key, VERSION, body=asked(model=f"{MODEL}~say=first~first=0.2"))
        + request_bytes("POST", "/v1/messages", key, VERSION, body=asked(model=f"{MODEL}~say=second", stream=True))
        + request_bytes("GET", "/v1/models", key, VERSION, CLOSE),
    )
    first, second, third = answers(received)
    assert [first.status, second.status, third.status] == [200, 200, 200]
    assert json.loads(first.body)["content"][0]["text"] == "first"
    assert b"second" in second.body and second.body.rstrip().endswith(b'"message_stop"}')
    assert json.loads(third.body)["data"]
    records = installation.records(key=key[1], count=2)
    assert [record.status for record in records] == ["ok", "ok"]


def test_expect_100_continue_is_obeyed(server: Server, installation: Installation) -> None:
    installation.account()
    expecting = (("x-api-key", installation.key()), VERSION, ("expect", "100-continue"), CLOSE)
    before, answer = answers(converse(server, request_bytes("POST", "/v1/messages", *expecting, body=asked())))
    assert (before.status, answer.status) == (100, 200)


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_body_that_will_be_refused_is_not_asked_for(server: Server) -> None:
    headers = (("x-api-key", "rk_no_body"), ("expect", "100-continue"), ("content-length", "1000"), CLOSE)
    (answer,) = answers(converse(server, request_bytes("POST", "/v1/messages", *headers)))
    assert answer.status == 401


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
@pytest.mark.parametrize("known, status", [(True, 413), (False, 401)])
def test_a_client_that_still_sends_on_a_connection_that_will_close_gets_its_refusal(
    server: Server, installation: Installation, known: bool, status: int
) -> None:
    key = installation.key() if known else "rk_nobody"
    big = asked(pad="x" * (40 * 2**20))
    request = request_bytes("POST", "/v1/messages", ("x-api-key", key), VERSION, CLOSE, body=big)
    (answer,) = answers(converse(server, request))
    assert (answer.status, json.loads(answer.body)["type"]) == (status, "error")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_wants_the_connection_closed_is_told_one_thing(
    server: Server, installation: Installation, version: str
) -> None:
    installation.account()
    headers = (("x-api-key", installation.key()), VERSION, CLOSE)
    received = converse(
        server, request_bytes("POST", "/v1/messages", *headers, body=asked(stream=True), version=version)
    )
    (answer,) = answers(received)
    assert answer.status == 200 and answer.body.rstrip().endswith(b'"message_stop"}')
    assert "keep-alive" not in answer.values("connection")


def test_an_http_1_0_client_gets_a_whole_answer(server: Server, installation: Installation) -> None:
    installation.account()
    headers = (("x-api-key", installation.key()), VERSION)
    (answer,) = answers(converse(server, request_bytes("POST", "/v1/messages", *headers, body=asked(), version="1.0")))
    assert answer.status == 200 and int(answer["content-length"]) == len(answer.body)
    assert json.loads(answer.body)["type"] == "message"


def test_headers_pass_as_they_came_also_twice(server: Server, installation: Installation) -> None:
    key = installation.key()
    up = (("anthropic-beta", "a-1"), ("anthropic-beta", "b-2"), ("x-utf8", "gr\u00c3\u00bc\u00c3\u009fe"))
    with canned(json_of(MESSAGE, headers=b"vary: a\r\nvary: b\r\nx-utf8: \xc3\xa9\r\n")) as upstream:
        installation.account(base_url=upstream.url)
        answer = ask(server, "POST", "/v1/messages", ("x-api-key", key), VERSION, *up, body=asked())
    lines = upstream.requests[0].decode("latin1").split("\r\n")
    assert [line for line in lines if line.lower().startswith(("anthropic-beta", "x-utf8"))] == [
        f"{name}: {value}" for name, value in up
    ]
    assert ", ".join(answer.values("vary")) == "a, b"
    assert answer["x-utf8"] == "\u00c3\u00a9"


@pytest.mark.parametrize("sent, status, booked", [(b"204 No Content", 204, "ok"), (b"101 x", 502, "upstream_error")])
def test_an_upstream_s_odd_status_is_told_and_booked_as_what_it_is(
    server: Server, installation: Installation, sent: bytes, status: int, booked: str
) -> None:
    key = installation.key()
    with canned([b"HTTP/1.1 %s\r\n\r\n" % sent]) as upstream:
        installation.account(base_url=upstream.url)
        answer = ask(server, "POST", "/v1/messages", ("x-api-key", key), VERSION, body=asked())
    assert answer.status == status
    assert answer.values("content-length") == ([] if status == 204 else [str(len(answer.body))])
    (record,) = installation.records(key=key)
    assert (record.status, record.http_status) == (booked, status)


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_very_long_header_passes(server: Server, installation: Installation) -> None:
    installation.account()
    long = ("x-long", "a" * 30_000)
    headers = (("x-api-key", installation.key()), VERSION, long)
    assert ask(server, "POST", "/v1/messages", *headers, body=asked()).status == 200


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
@pytest.mark.parametrize(
    "name", ["evil\r\nset-cookie: a=b", "a" * 9000, "computer-use-\u4e2d", "computer-use-\r\nx-evil: 1"]
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_beta_in_the_body_that_no_header_can_hold_harms_nobody(
    server: Server, installation: Installation, name: str, stream: bool
) -> None:
    known = installation.simulator.service_account()
    installation.account(kind="vertex", settings={"location": "us-east5"}, credential={"service_account": known})
    body, key = asked(anthropic_beta=[name], stream=stream), installation.key()
    answer = ask(server, "POST", "/v1/messages", ("x-api-key", key), VERSION, body=body)
    assert (answer.status, answer.values("set-cookie")) == (200, [])
    assert 0 < len(answer["x-relay-dropped"]) <= 1000
    (record,) = installation.records(key=key)
    assert (record.status, len(record.attempts)) == ("ok", 1)
