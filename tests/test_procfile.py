"""The production processes start from the Procfile as it stands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.harness import ROOT, free_port, inherited_env, installation_env, wait_for

LINES = dict(re.findall(r"^([a-z]+): (.+)$", (ROOT / "Procfile").read_text(), flags=re.MULTILINE))


def environment(data: Path, **more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**inherited_env(), **installation_env(data), "PATH": path, **more}


def test_it_names_the_processes_of_the_deployment_page() -> None:
    assert list(LINES) == ["relay", "ops", "worker", "beat"]


def test_no_server_believes_forwarded_addresses_by_itself() -> None:
    assert [name for name, line in LINES.items() if " --proxy-headers" in line] == []
    assert "--no-proxy-headers" in LINES["relay"]  # uvicorn's default believes this machine


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["relay", "ops"])
def test_web_processes_listen_where_they_are_told(name: str, tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            ["sh", "-c", f"exec {LINES[name]}"],
            cwd=ROOT,
            env=environment(tmp_path, PORT=str(port)),
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def status() -> int:
        assert child.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/admin/login/?key=canary", timeout=10) as answer:
                return int(answer.status)
        except ConnectionError:
            return 0
        except OSError as error:
            if "refused" in str(error):
                return 0
            raise

    try:
        assert wait_for(status, seconds=60, what=f"{name} answering") == 200
    finally:
        child.terminate()
    assert child.wait(30) in (0, -signal.SIGTERM)
    # Neither writes an access log: queries carry keys.
    assert "canary" not in log.read_text()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["worker", "beat"])
def test_celery_knows_the_application_and_the_options(name: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        ["sh", "-c", f"exec {LINES[name]} --help"],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert name in ended.stdout
