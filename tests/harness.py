"""Real server processes for end-to-end tests: how they are started, watched, talked to and stopped."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from django.conf import settings
from django.db import connection
from django.test.utils import override_settings

from accounts.credentials import encrypt, encrypt_text
from accounts.models import Account, AccountGroup
from apikeys.authentication import new_secret
from apikeys.limit_text import parse_limit
from apikeys.models import ApiKey, Binding, Limit
from relay.internal import ask
from relay.models import UsageRecord
from relay.state.snapshot import table_versions

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 40
STOP_SECONDS = 20
UVICORN_FLAGS = (
    *("--http", "relay_site.protocol:GatheringProtocol"),
    *("--no-access-log", "--no-proxy-headers", "--no-server-header", "--timeout-graceful-shutdown"),
)
SERVERS: Mapping[str, Callable[[int, str], list[str]]] = {
    "uvicorn": lambda port, seconds: [
        *("uvicorn", "relay_site.asgi:application", "--host", "127.0.0.1", "--port", str(port)),
        *(*UVICORN_FLAGS, seconds),
    ],
    "collecting": lambda port, seconds: [
        *("uvicorn", "tests.collecting:application", "--host", "127.0.0.1", "--port", str(port)),
        *(*UVICORN_FLAGS, seconds),
    ],
    "daphne": lambda port, seconds: [
        "daphne",
        "-v",
        "0",
        "-b",
        "127.0.0.1",
        "-p",
        str(port),
        "relay_site.asgi:application",
    ],
}
T = TypeVar("T")


def wait_for(question: Callable[[], T], *, seconds: float, what: str) -> T:
    """Ask until the answer is truthy and return it; fails the test, saying `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s (last answer: {answer!r})")
        time.sleep(0.01)


def free_port() -> int:
    """Return a port that nobody listens on, below the range that the kernel hands to outgoing connections."""
    while True:
        port = random.randint(15000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def database_url() -> str:
    """Return the address of the database that this test session uses, for a process of its own."""
    given = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{given['NAME']}"
    user = quote(str(given["USER"]), safe="") + (f":{quote(given['PASSWORD'], safe='')}" if given["PASSWORD"] else "")
    return f"postgres://{user}@{given['HOST']}:{given['PORT'] or 5432}/{quote(str(given['NAME']), safe='')}"


def installation_env(data: Path) -> dict[str, str]:
    """What a process needs to work on this test session's database, state and secrets."""
    return {
        "DATABASE_URL": database_url(),
        "REDIS_URL": settings.REDIS_URL,
        "RELAY_DATA_DIR": str(data),
        "RELAY_SECRET_KEYS": ",".join(settings.RELAY_SECRET_KEYS),
    }


def inherited_env() -> dict[str, str]:
    """This process's environment without what would configure another Baton."""
    ours = ("RELAY_", "PYTEST_", "DATABASE_", "REDIS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


class Process:
    """One child process with its output in a file."""

    def __init__(self, command: Sequence[str], *, name: str, folder: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.output = folder / f"{name}-{secrets.token_hex(3)}.log"
        with self.output.open("wb") as output:
            self.child = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env={**inherited_env(), "PYTHONUNBUFFERED": "1", **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.child.pid

    def log(self) -> str:
        """Return what the process has printed so far."""
        return self.output.read_text(errors="replace")

    def wait_until(self, ready: Callable[[], T], *, seconds: float = START_SECONDS) -> T:
        """Wait until `ready` answers; fails with the log if the process ends first."""

        def ask() -> T | None:
            answer = ready()
            if not answer and self.child.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.child.returncode} at start:\n{self.log()}")
            return answer

        try:
            return wait_for(ask, seconds=seconds, what=f"{self.name} ready")  # type: ignore[return-value]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def stop(self, *, seconds: float = STOP_SECONDS) -> int:
        """Send SIGTERM, wait, and return the exit status; kills and fails if that takes longer than `seconds`."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {seconds} s:\n{self.log()}") from None

    def kill(self) -> None:
        """End the process and all it started at once, as a crash would."""
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()


class Server(Process):
    """Baton itself, under uvicorn or daphne, on the test session's database."""

    def __init__(self, *, kind: str, folder: Path, data: Path, env: Mapping[str, str]) -> None:
        self.kind = kind
        self.data = data
        (data / "static").mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(
            SERVERS[kind](self.port, env.get("RELAY_SHUTDOWN_SECONDS", "10")),
            name=kind,
            folder=folder,
            env={
                **installation_env(data),
                "RELAY_BIND": f"127.0.0.1:{self.port}",
                "RELAY_SNAPSHOT_POLL": "0.05",
                "RELAY_LEDGER_INTERVAL": "0.05",
                **env,
            },
        )
        self.wait_until(self.answers)

    def answers(self) -> bool:
        """Whether it serves requests; any answer will do."""
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url, method="HEAD"), timeout=5):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False

    def wait_idle(self, *, seconds: float = 15) -> None:
        """Wait until no call is in flight and every record has reached the database; a dead server is idle."""

        def idle() -> bool:
            if self.child.poll() is not None:
                return True
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as response:
                standing = json.loads(response.read())
            return not (standing["calls_in_flight"] or standing["records_waiting"])

        wait_for(idle, seconds=seconds, what=f"{self.name} idle")

    def wait_for_versions(self, wanted: Mapping[str, int], *, seconds: float = 15) -> None:
        """Wait until it holds these versions of the tables, or later ones; a dead server need not."""

        def current() -> bool:
            if self.child.poll() is not None:
                return True
            with override_settings(RELAY_INTERNAL_URL=self.url):
                held: dict[str, int] = ask("versions")["versions"]
            return all(held.get(table, version) >= version for table, version in wanted.items())

        wait_for(current, seconds=seconds, what=f"{self.name} current")

    def stop(self, *, seconds: float = STOP_SECONDS) -> int:
        """Stop it the ordinary way; fails unless it ended the way a server ends on SIGTERM."""
        running = self.child.poll() is None
        status = super().stop(seconds=seconds)
        # uvicorn raises the signal again once it has shut down; daphne ends with 0.
        if running and status not in (0, -signal.SIGTERM):
            raise AssertionError(f"{self.name} ended with {status}:\n{self.log()}")
        return status


class Simulator(Process):
    """The upstream of the tests."""

    def __init__(self, *, folder: Path) -> None:
        super().__init__(["relay.simulator", "--port", "0"], name="simulator", folder=folder, env={})
        self.url = self.wait_until(self._address)

    def _address(self) -> str:
        _, found, rest = self.log().partition("listening on ")
        return rest.split()[0] if found and "\n" in rest else ""

    def requests(self) -> list[dict[str, Any]]:
        """Return the requests that it has received since the last `forget`, oldest first (docs/simulator.md).

        Headers are a list of pairs; `body` is bytes.
        """
        received: list[dict[str, Any]] = self._control("GET", "requests")
        return [{**request, "body": base64.b64decode(request["body"])} for request in received]

    def forget(self) -> None:
        """Empty the list of received requests and the count of injected faults."""
        self._control("DELETE", "requests")

    def open(self) -> int:
        """Return how many requests it is answering now."""
        return int(self._control("GET", "open")["open"])

    def service_account(self, *, script: str = "", token_script: str = "") -> str:
        """Return the JSON of a service account that it knows; scripts as docs/simulator.md says."""
        asked = urlencode({"script": script, "token_script": token_script})
        return json.dumps(self._control("GET", f"service_account?{asked}"))

    def _control(self, method: str, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}/_sim/{path}", method=method)
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.loads(response.read())


def manage(*arguments: str, data: Path, server: Server | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command as a script would, on this test session's database; `server` answers for the relay."""
    relay = {"RELAY_INTERNAL_URL": server.url} if server else {}
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={**inherited_env(), **installation_env(server.data if server else data), **relay},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )


@dataclass
class Installation:
    """The rows that an end-to-end test needs, on the simulator, and the records that its calls leave."""

    simulator: Simulator
    servers: Callable[[], Sequence[Server]]
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def account(self, *, kind: str = "claude_console", **fields: Any) -> Account:
        """Make an account on the simulator (unless `base_url` says otherwise) and return the row.

        `credential` is a mapping in plain text, `proxy` a URL, `groups` a list of names; the rest are columns.
        """
        credential = fields.pop("credential", {"api_key": f"upstream-{secrets.randbelow(10**16)}"})
        groups = fields.pop("groups", [])
        if "proxy" in fields:
            fields["proxy"] = encrypt_text(fields["proxy"])
        row = Account.objects.create(
            kind=kind,
            **{"name": f"{kind}-{next(self._numbers)}", "base_url": self.simulator.url, **fields},
            credential=encrypt(credential),
        )
        row.groups.set([AccountGroup.objects.get_or_create(name=name)[0] for name in groups])
        self.published()
        return row

    def key(self, **fields: Any) -> str:
        """Make an API key and return its secret.

        `limits` is a list of texts such as "requests 5 per minute", `bind` one of accounts or groups, the rest columns.
        """
        limits, bound = fields.pop("limits", []), fields.pop("bind", [])
        public_id, secret, digest = new_secret()
        row = ApiKey.objects.create(
            **{"name": f"key-{next(self._numbers)}", **fields}, public_id=public_id, digest=digest
        )
        for text in limits:
            Limit.objects.create(key=row, **parse_limit(text).columns())
        for target in bound:
            Binding.objects.create(key=row, **{"group" if hasattr(target, "accounts") else "account": target})
        self.published()
        return secret

    def key_row(self, secret: str) -> ApiKey:
        """Return the row of a key by its secret."""
        return ApiKey.objects.get(public_id=secret.split("_")[1])

    def published(self) -> None:
        """Wait until every running server has taken over what was changed in the database just now."""
        wanted = table_versions()
        for server in self.servers():
            server.wait_for_versions(wanted)

    def records(self, *, key: str = "", count: int = 1, seconds: float = 3) -> list[Any]:
        """Wait until at least `count` UsageRecords (of this key) are in the database; return all, oldest first."""
        rows = UsageRecord.objects.order_by("id")
        if key:
            rows = rows.filter(key_id=self.key_row(key).pk)

        def enough() -> list[Any]:
            found = list(rows.all())
            return found if len(found) >= count else []

        return wait_for(enough, seconds=seconds, what=f"{count} usage records")
