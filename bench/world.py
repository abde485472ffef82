"""The processes of a bench run: upstream, relay, load; their processor time and memory as the kernel counts them."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 60
UVICORN = (
    *("--http", "relay_site.protocol:GatheringProtocol"),
    *("--no-access-log", "--no-proxy-headers", "--no-server-header", "--log-level", "warning"),
)
LIMITS = {
    0: (),
    3: ("requests 100000000 per minute", "tokens 1000000000000 per day", "cost 1000000 per month strict"),
    10: (
        *("requests 100000000 per minute", "requests 100000000 per hour", "requests 100000000 per day"),
        *("tokens 1000000000000 per hour", "tokens 1000000000000 per day", "tokens 1000000000000 per month"),
        *("cost 1000000 per day", "cost 1000000 per month strict", "cost 1000000 per total", "concurrency 100000"),
    ),
}


class BenchError(Exception):
    """The bench can't go on; the message says why."""


@dataclass
class Child:
    """A process of the bench, and what the kernel says of it and its children."""

    name: str
    process: subprocess.Popen[str]

    def cpu(self) -> float:
        """Return the user and system seconds used so far, by the process and all its living descendants."""
        return sum(ticks_of(pid) for pid in family(self.process.pid)) / TICKS

    def pss(self) -> int:
        """Return the proportional set size in bytes."""
        total = 0
        for pid in family(self.process.pid):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+) kB", text, re.M)[1]) * 1024  # type: ignore[index]
        return total

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def family(pid: int) -> Iterator[int]:
    """Yield a process and its living descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def ticks_of(pid: int) -> int:
    """Return user + system clock ticks, those of its ended children too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])


@dataclass
class World:
    """Where the bench runs; `relay` is None while only the upstream is measured."""

    folder: Path
    env: dict[str, str]
    upstream: Child
    upstream_url: str
    relay: Child | None = None
    relay_url: str = ""
    keys: dict[int, str] = field(default_factory=dict)  # by number of limits
    before: tuple[int, int] = (0, 0)  # what a given database held already

    def manage(self, *arguments: str) -> str:
        """Run a management command and return what it printed."""
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise BenchError(f"manage.py {arguments[0]} failed:\n{done.stderr[-2000:]}")
        return done.stdout

    def booked(self) -> tuple[int, int]:
        """Return how many records this run has left, and the sum of their output tokens."""
        code = (
            "from django.db.models import Sum; from relay.models import UsageRecord as R;"
            "print(R.objects.count(), R.objects.aggregate(t=Sum('output_tokens'))['t'] or 0)"
        )
        count, tokens = self.manage("shell", "--no-imports", "-c", code).split()
        return int(count) - self.before[0], int(tokens) - self.before[1]

    def wait_idle(self) -> None:
        """Wait until the relay carries no call and all records are in the database."""

        def idle() -> bool:
            standing = fetch(f"{self.relay_url}/readyz")
            return not (standing["calls_in_flight"] or standing["records_waiting"])

        wait_until(idle, seconds=60, what="the relay is idle")


@contextmanager
def world(*, relay: bool, limits: int, database_url: str = "", redis_url: str = "") -> Iterator[World]:
    """Start everything on free ports with a fresh data folder; yields it, and clears all away."""
    folder = Path(tempfile.mkdtemp(prefix="baton-bench-"))
    port = free_port()
    env = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    env.update(
        RELAY_DATA_DIR=str(folder),
        RELAY_BIND=f"127.0.0.1:{port}",
        RELAY_SECRET_KEYS=secrets.token_hex(32),
        DATABASE_URL=database_url,
        REDIS_URL=redis_url,
        LOG_LEVEL="WARNING",
    )
    upstream = start("upstream", ["bench.upstream", "--port", "0"], env=env)
    place = World(folder, env, upstream, upstream_url=address_of(upstream))
    try:
        if relay:
            place.manage("migrate", "-v0")
            make_rows(place, limits)
            place.before = place.booked()
            start_relay(place, port)
        yield place
    finally:
        if place.relay:
            place.relay.stop()
        upstream.stop()
        shutil.rmtree(folder, ignore_errors=True)


def make_rows(place: World, limits: int) -> None:
    """One account on the bench's upstream, and one key."""
    name = f"bench-{secrets.token_hex(3)}"
    account = ["--base-url", place.upstream_url, "--credential", "api_key=sk-ant-bench", "--json"]
    place.manage("create_account", "claude_console", name, *account)
    options = [part for text in LIMITS[limits] for part in ("--limit", text)]
    place.keys[limits] = json.loads(place.manage("create_key", name, *options, "--bind", name, "--json"))["key"]


def start_relay(place: World, port: int) -> None:
    application = ["uvicorn", "relay_site.asgi:application", "--host", "127.0.0.1", "--port", str(port)]
    place.relay = start("relay", [*application, *UVICORN], env=place.env)
    place.relay_url = f"http://127.0.0.1:{port}"
    process = place.relay.process

    def ready() -> bool:
        if process.poll() is not None:
            raise BenchError(f"the relay ended with {process.returncode} at start")
        return bool(fetch(f"{place.relay_url}/readyz"))

    wait_until(ready, seconds=START_SECONDS, what="the relay is ready")


def start(name: str, module: list[str], *, env: Mapping[str, str]) -> Child:
    command = [sys.executable, "-m", *module]
    return Child(name, subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True))


def address_of(child: Child) -> str:
    assert child.process.stdout is not None
    return child.process.stdout.readline().strip().removeprefix("listening on ")


def fetch(url: str) -> Any:
    """Return a JSON document, {} where nobody serves it yet."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.loads(response.read())
    except (urllib.error.URLError, ConnectionError):
        return {}


def wait_until(question: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
