"""`manage.py up`: one command from nothing to a first call, and an end that leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.harness import ROOT, free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
Start = Callable[..., "Up"]


class Up:
    """One `manage.py up`, on SQLite and memory, in a data folder of its own."""

    def __init__(self, data: Path, *arguments: str, port: int = 0, host: str = "127.0.0.1") -> None:
        self.data = data
        self.host = host
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = data.parent / f"{data.name}-{self.port}.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "up", *arguments],
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def env(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "DATABASE", "REDIS"))
        }
        return {**kept, "RELAY_DATA_DIR": str(self.data), "RELAY_BIND": f"{self.host}:{self.port}"}

    def text(self) -> str:
        return self.output.read_text()

    def wait_until_announced(self) -> str:
        def announced() -> bool:
            assert self.process.poll() is None, self.text()
            return "Ctrl-C ends everything." in self.text()

        wait_for(announced, seconds=90, what="the announcement")
        return self.text()

    def children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def manage(self, *arguments: str) -> str:
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.env, check=True, capture_output=True, text=True).stdout

    def ends(self, number: signal.Signals, *, within: float = 40) -> int:
        """Send a signal; returns the exit status once it has ended and none of its programs is left."""
        children = self.children()
        self.process.send_signal(number)
        status = self.process.wait(within)
        wait_for(lambda: not any(alive(child) for child in children), seconds=20, what=f"no orphan of {children}")
        return status


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def up() -> Iterator[Start]:
    running: list[Up] = []

    def start(data: Path, *arguments: str, **options: Any) -> Up:
        running.append(Up(data, *arguments, **options))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.ends(signal.SIGTERM)


def curl_of(text: str) -> list[str]:
    """The command of the announcement, as a shell reads it."""
    found = re.search(r"^curl -N .*?(?=\n\n)", text, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, text
    return shlex.split(found[0])


def password_of(text: str) -> str:
    found = re.search(r"^Password +(\S+)", text, flags=re.MULTILINE)
    return found[1] if found else ""


def sign_in(url: str, password: str) -> httpx.Response:
    with httpx.Client(base_url=url) as client:
        page = client.get("/admin/login/")
        form = {"username": "admin", "password": password, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        assert page.status_code == 200
        return client.post("/admin/login/?next=/admin/", data=form)


def test_from_nothing_to_a_first_call_and_back_with_the_data(up: Start, tmp_path: Path) -> None:
    first = up(tmp_path / "data")
    text = first.wait_until_announced()

    # What is pasted streams an answer, and leaves its record.
    answer = subprocess.run(curl_of(text), capture_output=True, text=True, timeout=30)
    assert answer.stdout.count("event: content_block_delta") > 3, answer
    assert answer.stdout.rstrip().endswith('data: {"type":"message_stop"}')
    wait_for(lambda: "demo" in first.manage("usage"), seconds=10, what="the record")
    assert " ok " in first.manage("usage")

    assert sign_in(first.url, password_of(text)).headers["location"] == "/admin/"
    assert stat.S_IMODE((tmp_path / "data/secret_keys").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    names = [" ".join(child.cmdline()) for child in first.children()]
    assert [part for part in ("uvicorn", "celery", "relay.simulator") if not any(part in name for name in names)] == []
    assert first.ends(signal.SIGINT) == 0

    second = up(tmp_path / "data", port=first.port)
    again = second.wait_until_announced()
    assert password_of(again) == ""
    assert "rk_" not in again
    assert "create_key" in again
    assert sign_in(second.url, password_of(text)).headers["location"] == "/admin/"
    assert subprocess.run(curl_of(text), capture_output=True, text=True, timeout=30).stdout.count("event:") > 3
    assert second.manage("usage").count(" demo ") >= 1


def test_the_first_start_fills_the_pages_and_mixes_with_nothing(up: Start, tmp_path: Path) -> None:
    """What other programs read right after the first call is that call alone, while the month is written and after."""

    def booked(origin: str) -> int:
        with closing(sqlite3.connect(tmp_path / "data/baton.sqlite3")) as database:
            found = database.execute("SELECT count(*) FROM relay_usagerecord WHERE origin = ?", [origin]).fetchone()
        return int(found[0])

    def listed() -> list[tuple[str, str]]:
        return [(record["key"], record["origin"]) for record in json.loads(started.manage("usage", "--json"))]

    started = up(tmp_path / "data")
    text = started.wait_until_announced()
    assert "made-up month" in text
    wait_for(lambda: booked("demo") > 100, seconds=90, what="a part of the month")
    subprocess.run(curl_of(text), capture_output=True, text=True, timeout=30)
    wait_for(lambda: booked("client") == 1, seconds=10, what="the record")
    assert listed() == [("demo", "client")]
    wait_for(lambda: "Wrote" in started.text(), seconds=200, what="the whole month")
    assert (listed(), booked("demo") > 3000) == ([("demo", "client")], True)
    assert json.loads(started.manage("reconcile", "--json"))["ok"]
    assert json.loads(started.manage("check_counters", "--json"))["ok"]
    assert not (tmp_path / "data/demo_month_wanted").exists()
    started.manage("seed_demo", "--remove")
    assert (booked("demo"), booked("client")) == (0, 1)


def test_without_the_demo_there_is_no_account_no_key_no_simulator_and_no_orphan(up: Start, tmp_path: Path) -> None:
    started = up(tmp_path / "data", "--no-demo")
    text = started.wait_until_announced()
    assert "curl" not in text
    assert password_of(text)
    assert not any("relay.simulator" in " ".join(child.cmdline()) for child in started.children())
    code = "from accounts.models import Account; from apikeys.models import ApiKey; print(Account.objects.count())"
    assert started.manage("shell", "-v", "0", "-c", f"{code}; print(ApiKey.objects.count())").split() == ["0", "0"]

    second = up(tmp_path / "data", "--no-demo")
    assert second.process.wait(60) == 1
    assert f"Baton is running already on {tmp_path / 'data'}" in second.text()

    # Killed, it still takes its programs along.
    assert started.ends(signal.SIGKILL) == -signal.SIGKILL


def test_listening_everywhere_the_announced_admin_answers(up: Start, tmp_path: Path) -> None:
    started = up(tmp_path / "data", "--no-demo", host="0.0.0.0")
    text = started.wait_until_announced()
    assert f"Admin      {started.url}/admin/\n" in text
    assert httpx.get(f"{started.url}/admin/login/").status_code == 200
    assert httpx.get(f"{started.url}/admin/login/", headers={"host": "elsewhere.example"}).status_code == 400
    assert f"export RELAY_BIND=0.0.0.0:{started.port}\n" in text
    assert "set ALLOWED_HOSTS" in text


def test_a_taken_port_is_named(up: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port: int = other.getsockname()[1]
        started = up(tmp_path / "data", port=port)
        assert started.process.wait(60) == 1
    assert f"Can't listen on 127.0.0.1:{port} (Address already in use)" in started.text()
    assert "Password" not in started.text()


def test_an_unreadable_address_is_refused(tmp_path: Path) -> None:
    env = {**os.environ, "RELAY_DATA_DIR": str(tmp_path), "RELAY_BIND": "localhost"}
    ended = subprocess.run([sys.executable, "manage.py", "up"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "RELAY_BIND=localhost: write it like 127.0.0.1:8000." in ended.stderr
