"""Vertex AI through Baton: the official SDKs and the recorded requests of both clients, tokens, prices, failover."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from django.test.utils import override_settings
from google.genai import errors, types

from accounts.models import Account, AccountToken
from relay.internal import ask as ask_relay
from relay.models import Price
from tests.canned import canned, json_of
from tests.harness import Installation, Server, manage, wait_for
from tests.providers.case import fixture
from tests.test_api_gemini import RECORDED as GEMINI_CLI
from tests.test_api_gemini import client_of as google_of
from tests.test_api_gemini import post as post_google
from tests.test_api_messages import ASKED, PATHS, client_of, create, leave_after, post

CLAUDE_CODE = json.loads(fixture("anthropic/claude_code_request.json"))
CLAUDE = "claude-sonnet-5-5"
GEMINI = "gemini-3.1-pro-preview"
ONE = pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
PLACE = "/projects/sim-project/locations/us-east5/publishers"


def vertex(installation: Installation, *, script: str = "", token_script: str = "", **fields: Any) -> Account:
    known = installation.simulator.service_account(script=script, token_script=token_script)
    given = {"settings": {"location": "us-east5"}, "credential": {"service_account": known}, **fields}
    return installation.account(kind="vertex", **given)


def asked(installation: Installation, path: str) -> list[dict[str, Any]]:
    """The upstream requests at a path that ends so."""
    return [request for request in installation.simulator.requests() if request["path"].endswith(path)]


# -- Claude --------------------------------------------------------------------------------------------


def test_the_sdk_streams_claude(server: Server, installation: Installation) -> None:
    account, key = vertex(installation), installation.key()
    with client_of(server, key) as client, client.messages.stream(**{**ASKED, "model": CLAUDE}) as stream:  # type: ignore[arg-type]
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert (kinds[0], kinds[-1], message.model) == ("message_start", "message_stop", CLAUDE)
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source, record.provider) == ("ok", "provider", "google")
    assert (record.account_name, record.upstream_model, record.unpriced) == (account.name, CLAUDE, False)
    assert record.output_tokens == message.usage.output_tokens and record.upstream_request_id.startswith("req_vrtx")
    (request,) = asked(installation, "RawPredict")
    assert request["target"] == f"/v1{PLACE}/anthropic/models/{CLAUDE}:streamRawPredict"
    assert json.loads(request["body"])["anthropic_version"] in {"vertex-2023-10-16", "2026-10-21"}


def test_the_sdk_gets_whole_answers_and_counts(server: Server, installation: Installation) -> None:
    vertex(installation)
    key = installation.key()
    with client_of(server, key) as client:
        message = client.messages.create(**{**ASKED, "model": "claude-haiku-4-5-20251001"})  # type: ignore[call-overload]
        counted = client.messages.count_tokens(model=CLAUDE, messages=[{"role": "user", "content": "Hi"}])
    assert (message.model, counted.input_tokens) == ("claude-haiku-4-5-20251001", 1)
    whole, count = installation.records(key=key, count=2)
    assert (whole.upstream_model, whole.response_model) == ("claude-haiku-4-5@20251001", "claude-haiku-4-5-20251001")
    assert (whole.cost_nanos > 0, count.endpoint, count.cost_nanos) == (True, "count_tokens", 0)


@ONE
def test_an_async_client_streams_claude(server: Server, installation: Installation) -> None:
    vertex(installation)
    key = installation.key()

    async def ask() -> str:
        async with (
            AsyncAnthropic(base_url=server.url, api_key=key, max_retries=0) as client,
            client.messages.stream(**{**ASKED, "model": CLAUDE}) as stream,  # type: ignore[arg-type]
        ):
            return "".join([text async for text in stream.text_stream])

    assert asyncio.run(ask()) == "You said: Say hello."


def test_claude_code_s_recorded_request_is_answered_and_the_dropped_is_named(
    server: Server, installation: Installation
) -> None:
    vertex(installation)
    key = installation.key()
    sent = {n: value for n, value in CLAUDE_CODE["headers"].items() if n.startswith(("anthropic", "x-", "user"))}
    body = json.dumps(CLAUDE_CODE["body"]).encode()
    status, headers, answer = post(server, CLAUDE_CODE["target"], body, {**sent, "x-api-key": key})
    assert (status, b"message_stop" in answer) == (200, True)
    (request,) = asked(installation, ":streamRawPredict")
    got = json.loads(request["body"])
    assert got["anthropic_version"] == "vertex-2023-10-16" and got["system"] == CLAUDE_CODE["body"]["system"]
    assert {"claude-code-20250219", "thinking.display", "messages[].output_config"} <= set(
        headers["x-relay-dropped"].split(",")
    )
    (record,) = installation.records(key=key)
    assert (record.status, record.session) == ("ok", CLAUDE_CODE["headers"]["x-claude-code-session-id"])


@ONE
def test_a_beta_that_vertex_does_not_expect_costs_no_call(server: Server, installation: Installation) -> None:
    vertex(installation, script="reject=effort-2025-11-24")
    key = installation.key()
    body = json.dumps({**ASKED, "model": CLAUDE, "output_config": {"effort": "low"}}).encode()
    beta = {"x-api-key": key, "anthropic-beta": "effort-2025-11-24,context-1m-2025-08-07"}
    status, headers, _ = post(server, PATHS[0], body, beta)
    assert (status, headers["x-relay-dropped"]) == (200, "effort-2025-11-24")
    first, second = asked(installation, ":rawPredict")
    betas = [dict(request["headers"])["anthropic-beta"] for request in (first, second)]
    assert betas == ["effort-2025-11-24,context-1m-2025-08-07", "context-1m-2025-08-07"]
    (record,) = installation.records(key=key)
    assert record.status == "ok"


@ONE
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("400", 400, "invalid_request_error"),
        ("401", 502, "api_error"),
        ("403", 502, "api_error"),
        ("404", 404, "not_found_error"),
        ("429", 429, "rate_limit_error"),
        ("500", 502, "api_error"),
        ("503", 503, "overloaded_error"),
        ("529", 529, "overloaded_error"),
    ],
)
def test_errors_of_google_and_of_claude_come_as_anthropic_s(
    server: Server, installation: Installation, *, fault: str, status: int, kind: str, stream: bool
) -> None:
    vertex(installation, script=f"error={fault}")
    key = installation.key()
    body = json.dumps({**ASKED, "model": CLAUDE, "stream": stream}).encode()
    got, _, answer = post(server, PATHS[0], body, {"x-api-key": key})
    said = json.loads(answer)
    assert (got, said["type"], said["error"]["type"]) == (status, "error", kind)
    (record,) = installation.records(key=key)
    assert (record.status, record.http_status, record.cost_nanos) == ("upstream_error", status, 0)


@ONE
def test_the_name_of_our_project_stays_ours(server: Server, installation: Installation) -> None:
    vertex(installation, script="error=404~message=Publisher Model `projects/sim-project/x` was not found")
    with pytest.raises(anthropic.NotFoundError) as caught:
        create(server, installation.key(), model=CLAUDE)
    assert "sim-project" not in caught.value.message and "Publisher Model" in caught.value.message


@ONE
@pytest.mark.parametrize("fault", ["fail=500@3", "reset=3", "cut=3", "eof=3"])
def test_a_cut_stream_never_looks_whole(server: Server, installation: Installation, fault: str) -> None:
    vertex(installation, script=f"chunks=9~size=40~delay=0.01~{fault}")
    key = installation.key()
    body = json.dumps({**ASKED, "model": CLAUDE, "stream": True}).encode()
    status, _, answer = post(server, PATHS[0], body, {"x-api-key": key})
    assert (status, b"message_stop" in answer) == (200, False)
    assert answer.rstrip().split(b"\n\n")[-1].startswith(b"event: error\n")
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source) == ("upstream_error", "partial")
    assert record.cost_nanos


@ONE
def test_a_client_that_leaves_is_booked(server: Server, installation: Installation) -> None:
    key = installation.key()
    vertex(installation, script="chunks=500~delay=0.02~size=40")
    leave_after(server, key, {**ASKED, "model": CLAUDE, "stream": True}, b"content_block_delta")
    wait_for(lambda: installation.simulator.open() == 0, seconds=1, what="upstream closed")
    (record,) = installation.records(key=key)
    assert (record.status, record.usage_source, record.cost_nanos > 0) == ("client_disconnected", "partial", True)


# -- Gemini --------------------------------------------------------------------------------------------


def test_the_google_sdk_generates_streams_counts_and_embeds(server: Server, installation: Installation) -> None:
    vertex(installation)
    key = installation.key()
    config = types.EmbedContentConfig(task_type="RETRIEVAL_QUERY", output_dimensionality=4)
    with google_of(server, key) as client:
        answer = client.models.generate_content(model=GEMINI, contents="Hi there")
        streamed = [chunk.text for chunk in client.models.generate_content_stream(model=GEMINI, contents="Hi there")]
        counted = client.models.count_tokens(model=GEMINI, contents="Hi there")
        vectors = client.models.embed_content(model="gemini-embedding-001", contents=["one", "two"], config=config)
    assert answer.text == "".join(text or "" for text in streamed) == "You said: Hi there"
    assert counted.total_tokens == 2
    assert [len(vector.values or ()) for vector in vectors.embeddings or ()] == [4, 4]
    records = installation.records(key=key, count=4)
    assert {(record.status, record.provider, record.unpriced) for record in records} == {("ok", "google", False)}
    verbs = [
        request["path"].rpartition(":")[2] for request in asked(installation, "") if "publishers" in request["path"]
    ]
    assert verbs == ["generateContent", "streamGenerateContent", "countTokens", "batchEmbedContents"]


def test_gemini_cli_s_recorded_request_is_answered(server: Server, installation: Installation) -> None:
    vertex(installation)
    key = installation.key()
    own = {"host", "content-length", "x-goog-api-key", "connection"}
    headers = {name: value for name, value in GEMINI_CLI["headers"].items() if name not in own}
    status, answered, body = post_google(server, GEMINI_CLI["target"], GEMINI_CLI["body"], key=key, headers=headers)
    events = [json.loads(event.removeprefix(b"data: ")) for event in body.split(b"\n\n") if event.strip()]
    assert (status, answered["content-type"], events[-1]["candidates"][0]["finishReason"]) == (
        200,
        "text/event-stream",
        "STOP",
    )
    (request,) = asked(installation, ":streamGenerateContent")
    assert request["target"] == f"/v1beta1{PLACE}/google/models/{GEMINI}:streamGenerateContent?alt=sse"
    assert json.loads(request["body"]) == GEMINI_CLI["body"]
    assert key not in json.dumps(request["headers"])
    (record,) = installation.records(key=key)
    assert (record.status, record.stream) == ("ok", True)


@ONE
def test_a_stream_without_alt_is_an_array(server: Server, installation: Installation) -> None:
    vertex(installation)
    body = {"contents": [{"role": "user", "parts": [{"text": "Say hello."}]}]}
    path = f"/v1/models/{GEMINI}:streamGenerateContent"
    status, headers, answer = post_google(server, path, body, key=installation.key())
    chunks = json.loads(answer)
    assert (status, headers["content-type"].partition(";")[0]) == (200, "application/json")
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"


@ONE
def test_a_rejection_is_google_s_own(server: Server, installation: Installation) -> None:
    vertex(installation, script="error=400")
    with google_of(server, installation.key()) as client, pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model=GEMINI, contents="Hi")
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")


# -- both ----------------------------------------------------------------------------------------------


@ONE
def test_a_key_for_one_family_has_no_other(server: Server, installation: Installation) -> None:
    vertex(installation)
    key = installation.key(families=["gemini"])
    with pytest.raises(anthropic.PermissionDeniedError):
        create(server, key, model=CLAUDE)
    with google_of(server, key) as client:
        assert client.models.generate_content(model=GEMINI, contents="Hi").text == "You said: Hi"


@ONE
@pytest.mark.parametrize("location", ["global", "us-east5"])
def test_claude_costs_a_tenth_more_outside_the_global_location(
    server: Server, installation: Installation, location: str
) -> None:
    vertex(installation, settings={"location": location})
    key = installation.key()
    create(server, key, model=f"{CLAUDE}~in=1000~out=100")
    (record,) = installation.records(key=key)
    plain = 1000 * rate("input_tokens") + 100 * rate("output_tokens")
    factor = 10 if location == "global" else 11
    assert record.cost_nanos * 10 * 1_000_000 == plain * factor


def rate(meter: str) -> int:
    price = Price.objects.filter(provider="google", model=CLAUDE, meter=meter, tier="").latest("valid_from")
    return int(price.rate)


@ONE
def test_calls_go_on_at_another_account(server: Server, installation: Installation) -> None:
    vertex(installation, name="sick", priority=1, script="error=429")
    vertex(installation, name="well", priority=2)
    key = installation.key()
    create(server, key, model=CLAUDE)
    (record,) = installation.records(key=key)
    assert [(attempt["account"], attempt["status"]) for attempt in record.attempts] == [("sick", 429), ("well", 200)]


@ONE
def test_a_model_map_leads_to_vertex_s_names(server: Server, installation: Installation) -> None:
    vertex(installation, model_map={"house-model": "claude-haiku-4-5@20251001"})
    key = installation.key()
    create(server, key, model="house-model")
    (record,) = installation.records(key=key)
    assert (record.requested_model, record.upstream_model) == ("house-model", "claude-haiku-4-5@20251001")
    assert record.response_model == "claude-haiku-4-5-20251001" and not record.unpriced


# -- access tokens -------------------------------------------------------------------------------------


@ONE
def test_one_token_serves_all_calls_and_is_stored_encrypted(server: Server, installation: Installation) -> None:
    account = vertex(installation)
    key = installation.key()
    callers = [threading.Thread(target=create, args=(server, key), kwargs={"model": CLAUDE}) for _ in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert {record.status for record in installation.records(key=key, count=5)} == {"ok"}
    assert len(asked(installation, "/token")) == 1
    row = AccountToken.objects.get(account=account)
    assert row.version == 1 and b"ya29" not in bytes(row.secret)


@ONE
def test_a_token_is_renewed_ahead_of_its_end(server: Server, installation: Installation) -> None:
    account = vertex(installation, token_script="expires=2")
    key = installation.key()

    def renewed() -> bool:
        create(server, key, model=CLAUDE)
        return len(asked(installation, "/token")) >= 3

    wait_for(renewed, seconds=12, what="a third token")
    row = AccountToken.objects.get(account=account)
    assert row.due_at is not None and row.expires_at is not None and row.due_at < row.expires_at
    assert {record.status for record in installation.records(key=key, count=3)} == {"ok"}


@ONE
def test_a_service_account_that_google_refuses_rests(server: Server, installation: Installation) -> None:
    vertex(installation, credential={"service_account": other_key(installation)})
    key = installation.key()
    for _ in range(2):
        with pytest.raises(anthropic.InternalServerError):
            create(server, key, model=CLAUDE)
    assert len(asked(installation, "/token")) == 1
    record = installation.records(key=key, count=2)[0]
    assert (record.status, record.error) == ("upstream_error", "credential")


def other_key(installation: Installation) -> str:
    """A service account that the token server does not know."""
    known = json.loads(installation.simulator.service_account())
    return json.dumps({**known, "client_email": "bad@sim-project.iam.gserviceaccount.com"})


@ONE
def test_a_token_server_that_fails_is_no_fault_of_the_credential(server: Server, installation: Installation) -> None:
    vertex(installation, name="sick", priority=1, token_script="error=503")
    vertex(installation, name="well", priority=2)
    key = installation.key()
    create(server, key, model=CLAUDE)
    (record,) = installation.records(key=key)
    assert [(attempt["account"], attempt["error"]) for attempt in record.attempts] == [
        ("sick", "token_server"),
        ("well", ""),
    ]


def test_waiting_for_a_token_is_not_the_silence_of_the_account_before(
    start_server: Any, installation: Installation
) -> None:
    server = start_server(RELAY_FIRST_BYTE_TIMEOUT="0.6")
    vertex(installation, name="sick", priority=1, script="error=500")
    vertex(installation, name="well", priority=2, token_script="first=1")
    key = installation.key()
    create(server, key, model=CLAUDE)
    (record,) = installation.records(key=key)
    assert [(attempt["account"], attempt["error"]) for attempt in record.attempts] == [("sick", "500"), ("well", "")]


@ONE
def test_an_assertion_follows_no_redirect(server: Server, installation: Installation) -> None:
    with canned(json_of(b"{}", status=b"307 T", headers=b"location: http://127.0.0.1:1/\r\n")) as token_server:
        known = json.loads(installation.simulator.service_account())
        known["token_uri"] = f"{token_server.url}/token"
        vertex(installation, credential={"service_account": json.dumps(known)})
        with pytest.raises(anthropic.InternalServerError):
            create(server, installation.key(), model=CLAUDE)
    assert len(token_server.requests) == 1


# -- commands and the admin ----------------------------------------------------------------------------


@ONE
def test_create_account_takes_the_json_and_the_test_connection_answers(
    server: Server, installation: Installation
) -> None:
    known = installation.simulator.service_account()
    made = manage(
        *("create_account", "vertex", "cloud", "--base-url", installation.simulator.url),
        *("--credential", f"service_account={known}", "--set", "location=global", "project=sim-project"),
        *("--model-map", json.dumps({CLAUDE: CLAUDE}), "--json"),
        data=server.data,
    )
    assert made.returncode == 0, made.stderr
    account = json.loads(made.stdout)
    assert account["kind"] == "vertex"
    installation.published()
    with override_settings(RELAY_INTERNAL_URL=server.url):
        tried = ask_relay("test_connection", account_id=account["id"])
    assert (tried["ok"], tried["model"]) == (True, CLAUDE)


@ONE
def test_create_account_says_what_is_wrong_with_the_json(server: Server, installation: Installation) -> None:
    refused = manage(
        *("create_account", "vertex", "cloud", "--credential", 'service_account={"type":"authorized_user"}'),
        *("--set", "location=global", "project=sim-project"),
        data=server.data,
    )
    assert refused.returncode != 0
    assert "only keys of service accounts are taken" in refused.stderr
    assert not Account.objects.filter(name="cloud").exists()
