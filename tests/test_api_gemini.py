"""Gemini through Baton: google-genai as it is configured by default, Gemini CLI's own request, and what breaks."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from tests.canned import canned
from tests.harness import Installation, Server, wait_for
from tests.providers.case import fixture

MODEL = "gemini-3.1-pro-preview"
EMBEDDING = "gemini-embedding-001"
ASKED = {"contents": [{"role": "user", "parts": [{"text": "Say hello."}]}]}
RECORDED = json.loads((Path(__file__).parent / "fixtures/gemini/gemini_cli_request.json").read_text())
ONE_SERVER = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
PREFIXES = ("/v1", "/v1beta", "/v1alpha", "/gemini/v1", "/gemini/v1beta", "/gemini/v1alpha")


def gemini(installation: Installation, **fields: Any) -> Any:
    return installation.account(kind="gemini", **fields)


def client_of(server: Server, key: str, **options: Any) -> genai.Client:
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=server.url, **options))


def post(
    server: Server, path: str, body: object, *, key: str = "", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    sent = {"content-type": "application/json", **({"x-goog-api-key": key} if key else {}), **(headers or {})}
    connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), sent)
    response = connection.getresponse()
    try:
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def stream_path(model: str = MODEL, *, query: str = "?alt=sse", prefix: str = "/v1beta") -> str:
    return f"{prefix}/models/{model}:streamGenerateContent{query}"


# -- the SDK -------------------------------------------------------------------------------------------


def test_the_sdk_generates_streams_counts_and_embeds(server: Server, installation: Installation) -> None:
    account = gemini(installation)
    key = installation.key()
    with client_of(server, key) as client:
        answer = client.models.generate_content(model=MODEL, contents="Hi there")
        streamed = [chunk.text for chunk in client.models.generate_content_stream(model=MODEL, contents="Hi there")]
        counted = client.models.count_tokens(model=MODEL, contents="Hi there")
        vectors = client.models.embed_content(model=EMBEDDING, contents=["one", "two"])
    assert answer.text == "".join(text or "" for text in streamed) == "You said: Hi there"
    assert (counted.total_tokens, len(vectors.embeddings or ())) == (2, 2)
    records = installation.records(key=key, count=4)
    assert [record.endpoint for record in records] == [
        "generate_content",
        "stream_generate_content",
        "count_tokens",
        "batch_embed_contents",
    ]
    assert {(record.status, record.dialect, record.provider, record.account_name) for record in records} == {
        ("ok", "gemini", "google", account.name)
    }
    assert [record.usage_source for record in records] == ["provider", "provider", "none", "provider"]
    assert [record.stream for record in records] == [False, True, False, False]
    assert [bool(record.cost_nanos) for record in records] == [True, True, False, True]
    assert not any(record.unpriced for record in records)
    assert (records[0].input_tokens, records[0].output_tokens) == (records[1].input_tokens, 5) == (2, 5)
    assert records[3].input_tokens == 2 and records[3].requested_model == EMBEDDING


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
def test_the_sdk_works_asynchronously(server: Server, installation: Installation) -> None:
    gemini(installation)
    key = installation.key()

    async def ask() -> tuple[str | None, str]:
        async with client_of(server, key).aio as client:
            answer = await client.models.generate_content(model=MODEL, contents="Hi")
            stream = await client.models.generate_content_stream(model=MODEL, contents="Hi")
            return answer.text, "".join([chunk.text or "" async for chunk in stream])

    assert asyncio.run(ask()) == ("You said: Hi", "You said: Hi")
    assert {record.status for record in installation.records(key=key, count=2)} == {"ok"}


def test_the_sdk_lists_models_in_google_s_shape(server: Server, installation: Installation) -> None:
    gemini(installation)
    with client_of(server, installation.key()) as client:
        assert [model.name for model in client.models.list(config={"page_size": 2})] == [
            "models/gemini-2.5-flash",
            "models/gemini-3.1-pro-preview",
            "models/gemini-3.8-flash",
            "models/gemini-embedding-001",
        ]
        assert client.models.get(model=MODEL).input_token_limit == 1_048_576
        with pytest.raises(errors.ClientError) as caught:
            client.models.get(model="gemini-0")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


@ONE_SERVER
def test_a_list_holds_the_models_of_the_map(server: Server, installation: Installation) -> None:
    gemini(installation, model_map={"fast": MODEL})
    key = installation.key()
    with client_of(server, key, api_version="v1beta") as client:
        assert [model.name for model in client.models.list()] == ["models/fast"]
        assert client.models.generate_content(model="fast", contents="Hi").model_version == MODEL
    (record,) = installation.records(key=key)
    assert (record.requested_model, record.upstream_model) == ("fast", MODEL)


def test_tools_thoughts_caches_and_searches_are_priced(server: Server, installation: Installation) -> None:
    gemini(installation)
    key = installation.key()
    script = "in=1000,cache_read=500,audio_in=300,tool_use=200,thinking=40,out=60,searches=2"
    with client_of(server, key, headers={"x-sim": script}) as client:
        answer = client.models.generate_content(model="gemini-2.5-flash", contents="Hi")
    assert answer.usage_metadata and answer.usage_metadata.total_token_count == 1000 + 500 + 300 + 200 + 40 + 60
    (record,) = installation.records(key=key)
    assert (record.input_tokens, record.cache_read_input_tokens) == (1500, 500)
    assert (record.output_tokens, record.reasoning_tokens, record.flags) == (100, 40, [])
    assert {line["meter"]: line["quantity"] for line in record.lines} == {
        "input_tokens": 1200,
        "audio_input_tokens": 300,
        "cache_read_input_tokens": 500,
        "output_tokens": 100,
        "web_searches": 1,  # before Gemini 3 a grounded prompt is billed once
    }
    assert record.cost_nanos == 1200 * 300 + 300 * 1000 + 500 * 30 + 100 * 2500 + 35_000_000


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        ("400", 400, "INVALID_ARGUMENT"),
        ("key", 502, "UNAVAILABLE"),
        ("nomodel", 404, "NOT_FOUND"),
        ("quota_day", 429, "RESOURCE_EXHAUSTED"),
        ("503", 503, "UNAVAILABLE"),
    ],
)
@ONE_SERVER
def test_the_sdk_raises_its_own_classes(
    server: Server, installation: Installation, *, fault: str, code: int, status: str
) -> None:
    gemini(installation)
    with client_of(server, installation.key()) as client, pytest.raises(errors.APIError) as caught:
        client.models.generate_content(model=f"{MODEL}~error={fault}", contents="Hi")
    assert (caught.value.code, caught.value.status) == (code, status)
    assert isinstance(caught.value, errors.ClientError if code < 500 else errors.ServerError)


# -- paths, credentials, refusals ----------------------------------------------------------------------


@ONE_SERVER
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_leads_to_its_version_upstream(server: Server, installation: Installation, prefix: str) -> None:
    gemini(installation)
    status, _, body = post(server, f"{prefix}/models/{MODEL}:generateContent", ASKED, key=installation.key())
    assert (status, json.loads(body)["modelVersion"]) == (200, MODEL)
    (request,) = installation.simulator.requests()
    assert request["target"] == f"/{prefix.rpartition('/')[2]}/models/{MODEL}:generateContent"


@pytest.mark.parametrize("form", ["x-goog-api-key", "x-api-key", "api-key", "authorization", "query"])
@ONE_SERVER
def test_the_key_goes_by_every_header_and_never_upstream(server: Server, installation: Installation, form: str) -> None:
    gemini(installation, credential={"api_key": "AIza-ours"})
    key = installation.key()
    headers = {} if form == "query" else {form: f"Bearer {key}" if form == "authorization" else key}
    query = f"?key={key}&alt=sse" if form == "query" else "?alt=sse"
    status, _, _ = post(server, stream_path(query=query), ASKED, headers=headers)
    assert status == 200
    (request,) = installation.simulator.requests()
    sent = {name.lower(): value for name, value in request["headers"]}
    assert sent["x-goog-api-key"] == "AIza-ours" and key not in json.dumps(request["headers"]) + request["target"]
    assert "key=" not in request["target"] and "authorization" not in sent


def test_gemini_cli_s_recorded_request_is_answered(server: Server, installation: Installation) -> None:
    gemini(installation)
    key = installation.key()
    headers = {
        name: value
        for name, value in RECORDED["headers"].items()
        if name not in {"host", "content-length", "x-goog-api-key", "connection"}
    }
    status, answered, body = post(server, RECORDED["target"], RECORDED["body"], key=key, headers=headers)
    events = [json.loads(event.removeprefix(b"data: ")) for event in body.split(b"\n\n") if event.strip()]
    assert (status, answered["content-type"]) == (200, "text/event-stream")
    assert events[-1]["candidates"][0]["finishReason"] == "STOP"
    assert "functionCall" in events[-2]["candidates"][0]["content"]["parts"][0]
    (request,) = installation.simulator.requests()
    assert json.loads(request["body"]) == RECORDED["body"]
    (record,) = installation.records(key=key)
    assert (record.status, record.stream, record.user_agent) == ("ok", True, headers["user-agent"])
    assert record.reasoning_tokens == 8


@ONE_SERVER
def test_answers_lose_what_is_our_account_s(server: Server, installation: Installation) -> None:
    gemini(installation)
    key = installation.key()
    _, headers, _ = post(server, f"/v1beta/models/{MODEL}:generateContent", ASKED, key=key)
    (record,) = installation.records(key=key)
    assert headers["x-request-id"] == str(record.id)
    assert not {"set-cookie", "alt-svc", "server"} & headers.keys()


@ONE_SERVER
def test_what_would_hide_counts_is_left_out_and_named(server: Server, installation: Installation) -> None:
    gemini(installation)
    key = installation.key()
    path = f"/v1beta/models/{MODEL}:generateContent?$fields=candidates"
    _, headers, _ = post(server, path, ASKED, key=key, headers={"x-goog-fieldmask": "candidates"})
    assert headers["x-relay-dropped"] == "$fields,x-goog-fieldmask"
    (record,) = installation.records(key=key)
    assert record.usage_source == "provider"


@ONE_SERVER
@pytest.mark.parametrize(
    "path",
    [
        f"/v1beta/models/{MODEL}:predict",
        f"/v1/models/{MODEL}:batchGenerateContent",
        "/v1beta/cachedContents",
        "/v1/interactions",
        "/v1beta1/projects/p/locations/l/publishers/google/models/m:generateContent",
    ],
)
def test_what_is_not_served_is_a_native_404(server: Server, installation: Installation, path: str) -> None:
    gemini(installation)
    status, _, body = post(server, path, ASKED, key=installation.key())
    error = json.loads(body)["error"]
    assert (status, error["code"], error["status"]) == (404, 404, "NOT_FOUND")
    assert "not served" in error["message"]


@ONE_SERVER
def test_refusals_are_google_s(server: Server, installation: Installation) -> None:
    gemini(installation, model_map={MODEL: MODEL})
    path = f"/v1beta/models/{MODEL}:generateContent"
    cases = [
        (401, "UNAUTHENTICATED", path, "no-key"),
        (403, "PERMISSION_DENIED", path, installation.key(families=["claude"])),
        (403, "PERMISSION_DENIED", path, installation.key(model_patterns=["gemini-2*"])),
        (404, "NOT_FOUND", "/v1beta/models/other:generateContent", installation.key()),
        (402, "FAILED_PRECONDITION", path, installation.key(limits=["cost 0 per day"])),
        (429, "RESOURCE_EXHAUSTED", path, installation.key(limits=["requests 0 per minute"])),
    ]
    for status, name, where, key in cases:
        got, headers, body = post(server, where, ASKED, key=key)
        error = json.loads(body)["error"]
        assert (got, error["code"], error["status"]) == (status, status, name)
        assert status not in {402, 429} or int(headers["retry-after"]) > 0


@ONE_SERVER
def test_counting_is_free_where_the_budget_is_spent(server: Server, installation: Installation) -> None:
    gemini(installation)
    key = installation.key(limits=["cost 0 per day"])
    with client_of(server, key) as client:
        assert client.models.count_tokens(model=MODEL, contents="Hi there").total_tokens == 2
    (record,) = installation.records(key=key)
    assert (record.endpoint, record.status, record.cost_nanos) == ("count_tokens", "ok", 0)


@ONE_SERVER
def test_a_strict_budget_wants_a_bound_and_names_it(server: Server, installation: Installation) -> None:
    gemini(installation)
    key = installation.key(limits=["cost 1 per day strict"])
    path = f"/v1beta/models/{MODEL}:generateContent"
    status, _, body = post(server, path, ASKED, key=key)
    assert (status, "generationConfig.maxOutputTokens" in json.loads(body)["error"]["message"]) == (400, True)
    bounded = {**ASKED, "generation_config": {"max_output_tokens": 50}}
    assert post(server, path, bounded, key=key)[0] == 200
    status, _, body = post(server, path, {**bounded, "tools": [{"googleSearch": {}}]}, key=key)
    assert (status, "tools" in json.loads(body)["error"]["message"]) == (400, True)


# -- streams -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize(
    ("name", "query", "kind"),
    [
        ("text.sse", "?alt=sse", "text/event-stream"),
        ("text.json", "", "application/json"),
        ("tight.json", "?alt=json", "application/json"),
        ("counts_after_the_end.sse", "?alt=sse", "text/event-stream"),
        ("two_candidates.sse", "?alt=sse", "text/event-stream"),
        ("stop_in_every_event.sse", "?alt=sse", "text/event-stream"),
    ],
)
@ONE_SERVER
def test_bytes_reach_the_client_as_they_came(
    server: Server, installation: Installation, *, name: str, query: str, kind: str, size: int
) -> None:
    stream = fixture(f"gemini/{name}")
    with canned(pieces_of(stream, kind=kind, size=size)) as upstream:
        gemini(installation, base_url=upstream.url)
        key = installation.key()
        body = {**ASKED, "generationConfig": {"candidateCount": 2 if name.startswith("two") else 1}}
        status, headers, answer = post(server, stream_path(query=query), body, key=key)
    assert (status, answer, headers["content-type"]) == (200, stream, kind)
    assert headers["cache-control"] == "no-cache" and headers["x-accel-buffering"] == "no"
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("ok", "provider")
    assert record.output_tokens == {"counts": 3, "two_ca": 8, "stop_i": 3}.get(name[:6], 10)


def pieces_of(stream: bytes, *, kind: str, size: int) -> list[bytes]:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    step = size or len(stream)
    chunks = [stream[start : start + step] for start in range(0, len(stream), step)]
    return [head, *(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks), b"0\r\n\r\n"]


def test_an_array_streams_element_by_element(server: Server, installation: Installation) -> None:
    gemini(installation)
    key = installation.key()
    path = stream_path(f"{MODEL}~chunks=3~pause=1@2", query="")
    with sent(server, path, key) as connection:
        early = read_until(connection, b'"totalTokenCount"')
        assert b"]\n" not in early and b"finishReason" not in early
        rest = read_until(connection, b"0\r\n\r\n")
    assert rest.endswith(b"]\n\r\n0\r\n\r\n") and rest.count(b"finishReason") == 1
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source, record.stream) == ("ok", "provider", True)


@contextmanager
def sent(server: Server, path: str, key: str) -> Iterator[socket.socket]:
    """A request on a socket of its own; the socket is closed at the end."""
    body = json.dumps(ASKED).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-goog-api-key: {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.encode() + body)
        yield connection


def last_event(body: bytes) -> Any:
    return json.loads(body.strip().split(b"\n\n")[-1].removeprefix(b"data: "))


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


@pytest.mark.parametrize("query", ["?alt=sse", ""])
def test_silence_is_filled_with_newlines_between_the_pieces(
    installation: Installation, start_server: Any, query: str
) -> None:
    server = start_server(RELAY_KEEP_ALIVE_AFTER="0.2")
    gemini(installation)
    key = installation.key()
    status, _, body = post(server, stream_path(f"{MODEL}~chunks=2~pause=0.9@1", query=query), ASKED, key=key)
    whole = body.decode()
    assert status == 200 and "\n\n\n" in whole.replace("\r", "")
    if query:
        texts = [json.loads(line.removeprefix("data: ")) for line in whole.splitlines() if line]
    else:
        texts = json.loads(whole)
    assert [len(item["candidates"]) for item in texts] == [1, 1, 1]


@pytest.mark.parametrize(("query", "kind"), [("?alt=sse", "text/event-stream"), ("", "application/json")])
@ONE_SERVER
def test_a_late_failure_of_a_stream_that_was_begun_is_told_in_its_framing(
    installation: Installation, start_server: Any, server: Server, *, query: str, kind: str
) -> None:
    mine = start_server(RELAY_COMMIT_AFTER="0.2", RELAY_KEEP_ALIVE_AFTER="0.2", RELAY_FIRST_BYTE_TIMEOUT="3")
    gemini(installation)
    key = installation.key()
    status, headers, body = post(mine, stream_path(f"{MODEL}~hang=before", query=query), ASKED, key=key)
    assert (status, headers["content-type"]) == (200, kind)
    assert body.startswith(b"\n")
    said = json.loads(body)[0] if not query else json.loads(body.strip().split(b"\n\n")[0])
    assert (said["error"]["code"], said["error"]["status"]) == (504, "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("query", ["?alt=sse", ""])
@pytest.mark.parametrize("fault", ["fail=503@3", "reset=3", "cut=3", "eof=3"])
@ONE_SERVER
def test_a_stream_cut_upstream_never_looks_whole(
    server: Server, installation: Installation, *, fault: str, query: str
) -> None:
    gemini(installation)
    key = installation.key()
    path = stream_path(f"{MODEL}~chunks=9~size=40~delay=0.01~{fault}", query=query)
    status, _, body = post(server, path, ASKED, key=key)
    assert (status, b"finishReason" in body) == (200, False)
    last = last_event(body) if query else json.loads(body)[-1]
    assert last["error"]["code"] in {502, 503}
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("upstream_error", "partial")
    assert record.input_tokens and record.output_tokens == 30 and record.cost_nanos


@ONE_SERVER
def test_the_sdk_raises_where_a_stream_breaks(server: Server, installation: Installation) -> None:
    gemini(installation)
    with client_of(server, installation.key()) as client:
        stream = client.models.generate_content_stream(model=f"{MODEL}~chunks=5~cut=2", contents="Hi")
        assert next(stream).text and next(stream).text
        with pytest.raises(errors.ServerError) as caught:
            list(stream)
    assert caught.value.code == 502


@ONE_SERVER
@pytest.mark.parametrize("query", ["?alt=sse", ""])
def test_an_error_as_first_piece_is_an_honest_status(server: Server, installation: Installation, query: str) -> None:
    gemini(installation)
    status, _, body = post(server, stream_path(f"{MODEL}~fail=400", query=query), ASKED, key=installation.key())
    assert (status, json.loads(body)["error"]["status"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize("query", ["?alt=sse", ""])
def test_a_client_that_leaves_stops_the_upstream_and_is_booked(
    server: Server, installation: Installation, query: str
) -> None:
    gemini(installation)
    key = installation.key()
    with sent(server, stream_path(f"{MODEL}~chunks=500~delay=0.02~size=40", query=query), key) as connection:
        read_until(connection, b'"candidates"')
    wait_for(lambda: installation.simulator.open() == 0, seconds=1, what="upstream closed")
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("client_disconnected", "partial")
    assert record.input_tokens and 0 < record.output_tokens < 5000 and record.cost_nanos


@ONE_SERVER
@pytest.mark.parametrize(("query", "end"), [("?alt=sse", b'"STOP"'), ("", b"\n]\n")])
def test_a_client_that_closes_after_the_end_is_ok(
    server: Server, installation: Installation, query: str, end: bytes
) -> None:
    gemini(installation)
    key = installation.key()
    with sent(server, stream_path(query=query), key) as connection:
        read_until(connection, end)
    (record,) = installation.records(key=key)
    assert record.status == "ok"


# -- the matrix of arrays; that of whole answers and events is tests/test_matrix.py -----------------------

# fault -> status and Google's name for the client, the record's status, what rests of the account
MATRIX: dict[str, tuple[int, str, str, str]] = {
    "": (200, "", "ok", ""),
    "error=400": (400, "INVALID_ARGUMENT", "upstream_error", ""),
    "error=401": (502, "UNAVAILABLE", "upstream_error", "credential"),
    "error=403": (502, "UNAVAILABLE", "upstream_error", "credential"),
    "error=404": (404, "NOT_FOUND", "upstream_error", ""),
    "error=nomodel": (404, "NOT_FOUND", "upstream_error", ""),
    "error=429~retry_after=7": (429, "RESOURCE_EXHAUSTED", "upstream_error", "429"),
    "error=500": (502, "UNAVAILABLE", "upstream_error", ""),
    "error=503": (503, "UNAVAILABLE", "upstream_error", ""),
    "error=529": (529, "UNAVAILABLE", "upstream_error", ""),
    "error=key": (502, "UNAVAILABLE", "upstream_error", "credential"),
    "reset=before": (502, "UNAVAILABLE", "upstream_error", ""),
    "reset=first": (502, "UNAVAILABLE", "upstream_error", ""),
    "reset=2": (502, "UNAVAILABLE", "upstream_error", ""),
    "hang=before": (504, "DEADLINE_EXCEEDED", "upstream_error", ""),
    "hang=2": (504, "DEADLINE_EXCEEDED", "upstream_error", ""),
}


@pytest.fixture(scope="module")
def impatient(request: pytest.FixtureRequest) -> Iterator[list[Server]]:
    """A server that waits a second for its upstreams, started by the first test that asks."""
    kept: list[Server] = []
    yield kept
    for server in kept:
        server.stop()


@pytest.fixture
def quick(impatient: list[Server], installation: Installation, processes: Any, data_dir: Path) -> Server:
    if not impatient:
        env = {"RELAY_FIRST_BYTE_TIMEOUT": "1", "RELAY_IDLE_TIMEOUT": "1"}
        impatient.append(Server(kind="uvicorn", folder=data_dir, data=data_dir / "impatient-gemini", env=env))
        processes.append(impatient[0])
    return impatient[0]


@pytest.mark.parametrize("fault", MATRIX)
def test_the_matrix_of_arrays(quick: Server, installation: Installation, fault: str) -> None:
    status, name, ended, rest = MATRIX[fault]
    account = gemini(installation)
    key = installation.key()
    path = stream_path(f"{MODEL}{'~' + fault if fault else ''}~chunks=4", query="")
    got, _, body = post(quick, path, ASKED, key=key)
    begun = fault in {"reset=2", "hang=2"}
    assert got == (200 if begun else status)
    if begun:
        last = json.loads(body)[-1]
        assert (last["error"]["code"], last["error"]["status"]) == (status, name)
    elif name:
        assert json.loads(body)["error"]["status"] == name
    (record,) = installation.records(key=key)
    assert (record.status, record.http_status) == (ended, 200 if begun else status)
    assert bool(record.cost_nanos) == (begun or ended == "ok")
    assert record.usage_source == ("provider" if ended == "ok" else "partial" if begun else "none")
    assert [attempt["account"] for attempt in record.attempts][:1] == [account.name]
    again, _, _ = post(quick, path, ASKED, key=key)
    assert again == 503 if rest == "credential" else again == got, "what rests"
    if rest == "429":
        assert len(installation.simulator.requests()) == 1  # it is not asked again before its time


# -- accounts ------------------------------------------------------------------------------------------


@ONE_SERVER
@pytest.mark.parametrize("query", ["?alt=sse", ""])
def test_failover_before_the_first_content(server: Server, installation: Installation, query: str) -> None:
    sick = gemini(installation, priority=1, credential={"api_key": "AIza~error=503"})
    well = gemini(installation, priority=2)
    key = installation.key()
    status, _, body = post(server, stream_path(query=query), ASKED, key=key)
    assert (status, b"STOP" in body) == (200, True)
    (record,) = installation.records(key=key)
    assert [(attempt["account"], attempt["status"]) for attempt in record.attempts] == [
        (sick.name, 503),
        (well.name, 200),
    ]


@ONE_SERVER
def test_a_conversation_stays_on_its_account(server: Server, installation: Installation) -> None:
    for _ in range(3):
        gemini(installation)
    key = installation.key()
    for turn in range(4):
        body = {**ASKED, "systemInstruction": {"parts": [{"text": "Be brief."}]}, "generationConfig": {"seed": turn}}
        assert post(server, f"/v1beta/models/{MODEL}:generateContent", body, key=key)[0] == 200
    assert len({record.account_name for record in installation.records(key=key, count=4)}) == 1


@ONE_SERVER
def test_an_upstream_that_can_t_be_reached_is_502(server: Server, installation: Installation) -> None:
    gemini(installation, base_url="http://127.0.0.1:1")
    started = time.monotonic()
    status, _, body = post(server, f"/v1beta/models/{MODEL}:generateContent", ASKED, key=installation.key())
    assert (status, json.loads(body)["error"]["code"]) == (502, 502)
    assert time.monotonic() - started < 20
