"""Reachable from other machines: only with a secret of one's own and without DEBUG."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from relay_site.checks import bound_hosts, dangers, is_loopback
from relay_site.settings import env_choice, env_number, env_whole, hosts_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("host", ["", "localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "baton.example", "localhost.example"])
def test_reachable_from_elsewhere(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "bind_host, own", [("127.0.0.1", []), ("0.0.0.0", ["0.0.0.0"]), ("2001:db8::1", ["[2001:db8::1]"])]
)
def test_the_admin_answers_to_this_machine_and_to_where_it_listens(bind_host: str, own: list[str]) -> None:
    assert hosts_of(bind_host) == ["localhost", "127.0.0.1", "[::1]", *own]


@pytest.mark.parametrize(
    "hosts, secrets, debug, count",
    [
        (["127.0.0.1"], ["default"], True, 0),
        (["0.0.0.0"], ["mine"], False, 0),
        (["0.0.0.0"], ["default"], False, 1),
        (["0.0.0.0"], ["mine", "default"], False, 1),
        (["0.0.0.0"], ["mine"], True, 1),
        (["127.0.0.1", "::"], ["default"], True, 2),
    ],
)
def test_what_is_refused(hosts: list[str], secrets: list[str], debug: bool, count: int) -> None:
    assert len(dangers(hosts, secrets=secrets, default_secret="default", debug=debug)) == count


@pytest.mark.parametrize(
    "command, host",
    [
        ("uvicorn app --host 0.0.0.0 --port 1", "0.0.0.0"),
        ("uvicorn --host=10.0.0.1", "10.0.0.1"),
        ("daphne -b 10.0.0.1 app", "10.0.0.1"),
        ("daphne -b0.0.0.0 app", "0.0.0.0"),
        ("daphne -b=0.0.0.0 app", "0.0.0.0"),
        ("daphne --bin 0.0.0.0 app", "0.0.0.0"),
        ("daphne -e tcp:port=1:interface=0.0.0.0 app", "0.0.0.0"),
        ("daphne -etcp:1:interface=127.0.0.1 app", "127.0.0.1"),
        (r"daphne --endpoint=tcp:port=1:interface=\:\:1 app", "::1"),
        ("daphne -e tcp:1:10.0.0.1 app", "10.0.0.1"),
        ("daphne -e tcp:port=1 app", "0.0.0.0"),
        ("daphne -e unix:/run/baton.sock app", ""),
        ("manage.py runserver 0.0.0.0:8000", "0.0.0.0"),
        ("manage.py runserver --noreload [::]:8000", "::"),
    ],
)
def test_the_servers_own_command_line_counts(command: str, host: str) -> None:
    assert bound_hosts("[::1]:8000", command.split(), {}) == ["::1", host]


@pytest.mark.parametrize("command", ["manage.py runserver 8000", "manage.py show 0.0.0.0:8000", "uvicorn a:b --port 1"])
def test_other_words_are_no_addresses(command: str) -> None:
    assert bound_hosts("127.0.0.1:8000", command.split(), {}) == ["127.0.0.1"]


def test_the_variable_of_uvicorn_counts() -> None:
    assert bound_hosts("127.0.0.1:8000", ["uvicorn"], {"UVICORN_HOST": "0.0.0.0"}) == ["127.0.0.1", "0.0.0.0"]


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("RELAY_CONNECT_TIMEOUT", "-1", "must be a number from 0.001 to 1,000,000,000"),
        ("RELAY_CONNECT_TIMEOUT", "abc", "must be a number"),
        ("RELAY_IDLE_TIMEOUT", "nan", "must be a number"),
    ],
)
def test_a_wrong_number_is_refused_by_the_variables_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ImproperlyConfigured, match=re.escape(f"{name}={value}: {said}")):
        env_number(name, 10, least=0.001)


def test_a_half_and_an_unknown_word_are_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_MAX_ATTEMPTS", "1.5")
    with pytest.raises(ImproperlyConfigured, match=r"RELAY_MAX_ATTEMPTS=1\.5: must be a whole number"):
        env_whole("RELAY_MAX_ATTEMPTS", 4)
    monkeypatch.setenv("RELAY_LIMITS_FAIL", "bla")
    with pytest.raises(ImproperlyConfigured, match="RELAY_LIMITS_FAIL=bla: must be closed or open"):
        env_choice("RELAY_LIMITS_FAIL", ("closed", "open"))


@pytest.mark.parametrize(
    "command",
    [
        ["manage.py", "check"],
        ["-m", "uvicorn", "relay_site.asgi:application", "--host", "0.0.0.0", "--port", "0"],
        ["-m", "daphne", "-b", "0.0.0.0", "-p", "0", "relay_site.asgi:application"],
        ["-m", "daphne", "-e", "tcp:port=0:interface=0.0.0.0", "relay_site.asgi:application"],
        ["manage.py", "runserver", "--noreload", "0.0.0.0:0"],
    ],
)
def test_nothing_starts_in_the_open_with_the_default_secret(command: list[str], tmp_path: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    bind = "0.0.0.0:8000" if command[-1] == "check" else "127.0.0.1:8000"
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**inherited, "RELAY_DATA_DIR": str(tmp_path), "RELAY_BIND": bind},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode != 0
    assert "Listening on 0.0.0.0 needs a secret of your own" in ended.stderr
