"""The error table of DESIGN section 3, row by row in every dialect: status, `retry-after`, `x-should-retry`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from accounts.credentials import encrypt
from accounts.models import Account
from apikeys.authentication import new_secret
from apikeys.limit_text import parse_limit
from apikeys.models import ApiKey, Binding, Limit
from tests.harness import Installation, Process, Server
from tests.matrix_cases import SCRIPT, USUAL

pytestmark = pytest.mark.e2e

ENV = {"RELAY_FIRST_BYTE_TIMEOUT": "0.8", "RELAY_MAX_BODY_MB": "1"}
MANY = 10**6  # seconds: some wait, however long


class Told(NamedTuple):
    """What the client gets; `wait` is the longest `retry-after`, 0 = none."""

    status: int
    wait: int = 0
    should_retry: str = ""


@dataclass(frozen=True)
class Case:
    """One row of the table, and how to come by it."""

    name: str
    told: Told
    script: str = ""  # of the account
    key: dict[str, Any] = field(default_factory=dict)  # its columns
    limit: str = ""
    secret: str | None = None  # instead of the key's own
    body: bytes = b""  # instead of the dialect's own
    model: str = ""
    url: str = ""  # of the account
    calls: int = 1  # the last one is looked at
    spent: dict[str, int] = field(default_factory=dict)  # status by dialect


GONE = Told(401, should_retry="false")
CASES = (
    Case("no key", GONE, secret=""),
    Case("unknown key", GONE, secret="rk_none_none"),
    Case("disabled key", GONE, key={"active": False}),
    Case("expired key", GONE, key={"expires_at": "2020-01-01T00:00:00Z"}),
    Case("provider not permitted", Told(403, 0, "false"), key={"families": ["none"]}),
    Case("model not permitted", Told(403, 0, "false"), key={"model_patterns": ["other-*"]}),
    Case("no account can ever serve the model", Told(404), model="nobody-has-this"),
    Case("malformed body", Told(400), body=b'{"messages": ['),
    Case("unbounded call on a strict budget", Told(400), limit="cost 5 per day strict", model="of-no-price"),
    Case("body too large", Told(413), body=b'{"x": "' + b"x" * 2**20 + b'"}'),
    Case("rate limit", Told(429, 60), limit="requests 0 per minute"),
    Case("rate limit for long", Told(429, MANY, "false"), limit="requests 0 per month"),
    Case("rate limit for ever", Told(429, 0, "false"), limit="requests 0 per total"),
    Case("concurrency limit", Told(429, 5), limit="concurrency 0"),
    Case(
        "budget spent",
        Told(402, MANY, "false"),
        limit="cost 0 per month",
        spent={"openai_chat": 429, "openai_responses": 429},
    ),
    Case("no account can take it", Told(503, 1800, "false"), script="error=401", calls=2),
    Case("upstream 429 until a time", Told(429, 40), script="error=429~retry_after=40"),
    Case("the same, known before it is asked", Told(429, 40), script="error=429~retry_after=40", calls=2),
    Case("upstream 429", Told(429, 60), script="error=429"),  # the simulator names the reset in other headers
    Case("upstream 503", Told(503, 5), script="error=503"),
    Case("upstream 529", Told(529, 5), script="error=529"),
    Case("upstream 529 for long", Told(529, 1800, "false"), script="error=529~retry_after=4000"),
    Case("the caller's fault", Told(400), script="error=400"),
    Case("our credential is rejected", Told(502, 0, "false"), script="error=401"),
    Case("upstream 500", Told(502), script="error=500"),
    Case("nobody is there", Told(502), url="http://127.0.0.1:9"),
    Case("nothing comes in time", Told(504), script="hang=before"),
)


@pytest.fixture(scope="module")
def relay(processes: list[Process], data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(kind="uvicorn", folder=data_dir, data=tmp_path_factory.mktemp("errors"), env=ENV)
    processes.append(started)
    yield started
    processes.remove(started)
    started.stop()


def key_for(case: Case, dialect: str, installation: Installation) -> str:
    """A key bound to an account of its own, which serves what the dialect's usual request asks for."""
    row = USUAL[dialect]
    kind = {"anthropic": "claude_console", "gemini": "gemini"}.get(dialect, "openai")
    script = f"~{case.script}" if case.script else ""
    account = Account.objects.create(
        kind=kind,
        name=f"{case.name} {dialect}",
        base_url=case.url or installation.simulator.url,
        model_map={name: name for name in (model_of(dialect), "of-no-price")},
        credential=encrypt({name: value.replace(SCRIPT, script) for name, value in row.credential.items()}),
        **row.account,
    )
    public_id, secret, digest = new_secret()
    key = ApiKey.objects.create(name=account.name, public_id=public_id, digest=digest, **case.key)
    Binding.objects.create(key=key, account=account)
    if case.limit:
        Limit.objects.create(key=key, **parse_limit(case.limit).columns())
    return secret


def model_of(dialect: str) -> str:
    row = USUAL[dialect]
    return str(row.body.get("model") or row.path.rpartition("/")[2].partition(":")[0])


def ask(case: Case, dialect: str, relay: Server, secret: str) -> httpx.Response:
    row = USUAL[dialect]
    usual, model = model_of(dialect), case.model or model_of(dialect)
    credential = f"Bearer {secret}" if row.key_header == "authorization" else secret
    headers = {"content-type": "application/json", **row.headers} | ({row.key_header: credential} if secret else {})
    body = case.body or json.dumps(row.body).replace(usual, model).encode()
    return httpx.post(f"{relay.url}{row.path.replace(usual, model)}", content=body, headers=headers, timeout=20)


def seen(answer: httpx.Response, case: Case) -> Told:
    """The answer as the table has it; a wait within the allowed one counts as that."""
    wait = int(answer.headers.get("retry-after", 0))
    allowed = case.told.wait if 0 < wait <= case.told.wait else wait
    return Told(answer.status_code, allowed, answer.headers.get("x-should-retry", ""))


@pytest.mark.parametrize("dialect", list(USUAL))
def test_the_table_holds(dialect: str, relay: Server, installation: Installation) -> None:
    secrets = {case.name: key_for(case, dialect, installation) for case in CASES}
    installation.published()
    if 60 - time.time() % 60 < 5:
        time.sleep(6)  # a minute that turns between two calls would be another minute's limit
    wrong: list[str] = []
    answers: dict[str, httpx.Response] = {}
    for case in CASES:
        secret = secrets[case.name] if case.secret is None else case.secret
        answers[case.name] = [ask(case, dialect, relay, secret) for _ in range(case.calls)][-1]
        told = case.told._replace(status=case.spent.get(dialect, case.told.status))
        if (found := seen(answers[case.name], case)) != told:
            wrong.append(f"{case.name}: {found}, not {told}: {answers[case.name].text[:200]}")
    assert not wrong, "\n".join(wrong)
    for name, answer in answers.items():
        assert answer.headers["x-request-id"] and answer.headers["content-type"].startswith("application/json"), name
        assert answer.json()["error"]["message"]
        assert secrets[name].split("_")[2] not in answer.text
    assert answers["unknown key"].json()["error"]["message"] == answers["disabled key"].json()["error"]["message"]
