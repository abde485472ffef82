"""The vendors' own command line clients at a spent budget: each stops after one request, and says why.

They are run for real where they are installed, on the PATH or in the folder that CLIENTS_BIN names:

    npm install --prefix DIR @anthropic-ai/claude-code @openai/codex @google/gemini-cli
    CLIENTS_BIN=DIR/node_modules/.bin pytest tests/test_clis.py

All that they could ask of anybody but Baton goes to a proxy that is not there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.harness import Installation, Server, inherited_env
from tests.test_limits_relay import call

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.parametrize("server", ["uvicorn"], indirect=True)]

NOWHERE = "http://127.0.0.1:9"  # the discard port
QUIET = {
    "HTTPS_PROXY": NOWHERE,
    "https_proxy": NOWHERE,
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "NO_COLOR": "1",
    "CI": "1",
}


def program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("CLIENTS_BIN", ""), os.environ["PATH"])))
    if found is None:
        pytest.skip(f"the client {name!r} is not installed: it is looked for on the PATH and in CLIENTS_BIN")
    return found


def run(command: list[str], *, home: Path, env: Mapping[str, str]) -> str:
    """What the client printed, in whatever stream; it must end by itself."""
    ended = subprocess.run(
        command,
        cwd=home,
        env={**inherited_env(), "HOME": str(home), **QUIET, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    print(ended.stdout)
    assert ended.returncode != 0
    return ended.stdout


def claude(server: Server, key: str, home: Path) -> str:
    env = {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_AUTH_TOKEN": key}
    return run([program("claude"), "-p", "Say hello", "--model", "claude-sonnet-5-5"], home=home, env=env)


def codex(server: Server, key: str, home: Path) -> str:
    settings = {"name": "Baton", "base_url": f"{server.url}/v1", "env_key": "BATON_KEY", "wire_api": "responses"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (home / "config.toml").write_text("\n".join(('model_provider = "baton"', "[model_providers.baton]", *lines)))
    command = [program("codex"), "exec", "--skip-git-repo-check", "--model", "gpt-5.4", "Say hello"]
    return run(command, home=home, env={"CODEX_HOME": str(home), "BATON_KEY": key})


def gemini(server: Server, key: str, home: Path) -> str:
    settings = home / ".gemini" / "settings.json"
    settings.parent.mkdir()
    chosen = {
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"enableAutoUpdate": False},
    }
    settings.write_text(json.dumps(chosen))
    env = {"GOOGLE_GEMINI_BASE_URL": server.url, "GEMINI_API_KEY": key, "GEMINI_CLI_TRUST_WORKSPACE": "true"}
    return run([program("gemini"), "-p", "Say hello", "-m", "gemini-2.5-flash"], home=home, env=env)


@pytest.mark.parametrize(
    ("client", "reads_our_words"), [(claude, True), (codex, False), (gemini, True)], ids=["claude", "codex", "gemini"]
)
def test_it_stops_after_one_request_and_says_which_budget_is_spent_until_when(
    server: Server,
    installation: Installation,
    tmp_path: Path,
    client: Callable[[Server, str, Path], str],
    reads_our_words: bool,
) -> None:
    program(client.__name__)
    for kind, provider in (("claude_console", "anthropic"), ("openai", "openai"), ("gemini", "google")):
        installation.account(kind=kind, provider=provider)
    key = installation.key(limits=["cost 0.000001 per day in Europe/Berlin"])
    assert call(server, key).status_code == 200
    printed = client(server, key, tmp_path)
    records = installation.records(key=key, count=2)
    assert [record.error for record in records[1:]] == ["budget_spent"]
    if reads_our_words:
        assert "The budget of $0.000001 per day of this API key is spent" in printed
        assert "It resets at 2" in printed and "Europe/Berlin" in printed
