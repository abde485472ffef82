"""Every upstream with every fault, whole and streamed: status, native body, record, and what the account does next."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.test.utils import override_settings

from accounts.credentials import encrypt
from accounts.models import Account
from apikeys.authentication import new_secret
from apikeys.models import ApiKey, Binding
from relay.internal import ask
from relay.providers import PROVIDERS
from tests.harness import Installation, Process, Server
from tests.matrix_cases import FAULTS, OWN, SCRIPT, SERVICE_ACCOUNT, Row, rows

SHORT = {"RELAY_FIRST_BYTE_TIMEOUT": "0.8", "RELAY_IDLE_TIMEOUT": "0.8"}
# Of each dialect: a field of every whole answer, what only a stream's good end has, and where the counts of a stream
# come from that was cut: OpenAI's report usage at their end only.
DIALECTS = {
    "anthropic": ("content", b'"type":"message_stop"', "partial"),
    "openai_chat": ("choices", b"data: [DONE]", "estimated"),
    "openai_responses": ("output", b'"type":"response.completed"', "estimated"),
    "gemini": ("candidates", b'"finishReason"', "partial"),
}
# Here the upstream names a wait, and the client hears of it.
BUSY = frozenset({429, 503, 529})


@dataclass(frozen=True)
class Said:
    """What the client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@pytest.fixture(scope="module")
def relay(processes: list[Process], data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with short timers for the whole matrix."""
    started = Server(kind="uvicorn", folder=data_dir, data=tmp_path_factory.mktemp("matrix"), env=SHORT)
    processes.append(started)
    yield started
    processes.remove(started)
    started.stop()


def error_in(dialect: str, said: Said) -> dict[str, Any]:
    """The error object of the answer's body, or of its stream's last event, checked for the vendor's shape."""
    text = said.body
    if said.status == 200:
        text = said.body.rstrip().rpartition(b"data:")[2]
    body: dict[str, Any] = json.loads(text)
    if dialect == "anthropic":
        assert body["type"] == "error"
    if dialect == "openai_responses" and said.status == 200:
        assert body["type"] in {"error", "response.failed"}
        return dict(body.get("response", body).get("error", body))
    error: dict[str, Any] = body["error"]
    fields = {"anthropic": {"type"}, "gemini": {"code", "status"}}.get(dialect, {"type", "param", "code"})
    assert {"message", *fields} <= set(error)
    return error


class Scene:
    """One row and fault, whole or streamed: an account that has the fault and stands alone, and one beside a well one.

    Its rows are in the database from the start; servers must take them over before it asks.
    """

    def __init__(self, installation: Installation, row: Row, *, fault: str, stream: bool) -> None:
        self.row, self.stream, self.well = row, stream, not FAULTS[fault].script
        self.told = row.told(fault, stream=stream)
        self._simulator, self._url = installation.simulator, installation.simulator.url
        self.alone = self._account("alone", script=FAULTS[fault].script)
        self.first = self._account("first", script=FAULTS[fault].script, priority=1)
        self.second = self._account("second", script="", priority=2)
        self._keys = self._key(self.alone), self._key(self.first, self.second)

    def _account(self, name: str, *, script: str, priority: int = 50) -> Account:
        row = self.row
        instead = f"~{script}" if script else ""
        credential = {field: value.replace(SCRIPT, instead) for field, value in row.credential.items()}
        if SERVICE_ACCOUNT in credential.values():
            credential = dict.fromkeys(credential, self._simulator.service_account(script=script))
        columns = {"base_url": self._url, "name": f"{name} {self.stream}", "priority": priority, **row.account}
        return Account.objects.create(kind=row.kind, **columns, credential=encrypt(credential))

    def _key(self, *accounts: Account) -> str:
        public_id, secret, digest = new_secret()
        key = ApiKey.objects.create(name=f"of {accounts[0].name}", public_id=public_id, digest=digest)
        for account in accounts:
            Binding.objects.create(key=key, account=account)
        return secret

    def ask_alone(self, relay: Server) -> Said:
        return self._ask(relay, self._keys[0])

    def ask_both(self, relay: Server) -> Said:
        return self._ask(relay, self._keys[1])

    def _ask(self, relay: Server, secret: str) -> Said:
        """The row's request, as a client sends it."""
        row = self.row
        path, body = row.path, dict(row.body)
        if self.stream and row.stream_path:
            path = row.stream_path
        elif self.stream:
            body["stream"] = True
        credential = f"Bearer {secret}" if row.key_header == "authorization" else secret
        headers = {"content-type": "application/json", row.key_header: credential, **row.headers}
        connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=20)
        try:
            connection.request("POST", path, json.dumps(body).encode(), headers)
            answer = connection.getresponse()
            return Said(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def check(self, said: Said, records: Mapping[str, Any], *, tried: list[Account]) -> None:
        """One answer and its record, after the accounts that were tried."""
        well = self.well or tried[-1] is self.second
        self._check_answer(said, well=well)
        record = records[said.headers["x-request-id"]]
        self._check_record(record, said, well=well)
        tries = [(account.name, self.told.seen) for account in tried]
        if well:
            tries[-1] = (tried[-1].name, 200)
        assert [(attempt["account"], attempt["status"]) for attempt in record.attempts] == tries

    def _check_answer(self, said: Said, *, well: bool) -> None:
        """The client's view: an honest status, and a body that its SDK reads as the vendor's."""
        field, end, _ = DIALECTS[self.row.dialect]
        assert said.status == (200 if well else self.told.status), said.body
        ended = end in said.body.replace(b'": ', b'":')
        if well and self.stream:
            assert ended and said.headers["content-type"].startswith("text/event-stream")
        elif well:
            assert json.loads(said.body)[field]
        else:
            assert not ended and error_in(self.row.dialect, said)["message"]
        assert ("retry-after" in said.headers) == (said.status in BUSY)

    def _check_record(self, record: Any, said: Said, *, well: bool) -> None:
        """Finance's view: the record says what the client saw, and costs what the vendor bills."""
        assert (record.status, record.http_status) == ("ok" if well else "upstream_error", said.status)
        begun = said.status == 200
        assert record.usage_source == ("provider" if well else DIALECTS[self.row.dialect][2] if begun else "none")
        assert (record.cost_nanos > 0, record.unpriced) == (begun, False)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("row", rows(), ids=[f"{row.kind}-{row.dialect}" for row in rows()])
def test_a_fault_is_told_booked_and_remembered(relay: Server, installation: Installation, row: Row, fault: str) -> None:
    scenes = [Scene(installation, row, fault=fault, stream=stream) for stream in (False, True)]
    installation.published()
    # All at once, because silence takes its time.
    with ThreadPoolExecutor(len(scenes) * 2) as clients:
        said = [(clients.submit(scene.ask_alone, relay), clients.submit(scene.ask_both, relay)) for scene in scenes]
    records = {str(record.id): record for record in installation.records(count=len(scenes) * 2)}
    resting = rests(relay)
    for scene, (alone, both) in zip(scenes, said, strict=True):
        scene.check(alone.result(), records, tried=[scene.alone])
        scene.check(both.result(), records, tried=[scene.first, scene.second][: 1 + scene.told.fails_over])
        told = (scene.told.rests_alone, scene.told.rests, "")
        assert tuple(resting.get(account.pk, "") for account in (scene.alone, scene.first, scene.second)) == told


def rests(relay: Server) -> dict[int, str]:
    """Which accounts rest, and after what."""
    with override_settings(RELAY_INTERNAL_URL=relay.url):
        return {rest["account_id"]: rest["cause"] for rest in ask("state")["rests"]}


def test_no_row_is_of_a_kind_that_is_gone() -> None:
    assert {row.kind for row in OWN} <= set(PROVIDERS)
    assert {row.kind for row in rows()} == set(PROVIDERS)
