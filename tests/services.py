"""`make test-services`: the same suite on PostgreSQL and Redis, given, found on this machine, or started for it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

POSTGRES = "postgres://postgres@127.0.0.1:5432/baton"
REDIS = "redis://127.0.0.1:6379/0"


class Missing(Exception):
    """A service is neither given nor found, and can't be started here."""


def answers(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=2):
            return True
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(url: str, child: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if answers(url):
            return
        if child.poll() is not None:
            break
        time.sleep(0.1)
    raise Missing(f"{child.args!r} did not start.")


@contextmanager
def running(command: list[str], url: str, *, user: str | None = None) -> Iterator[str]:
    """Run a server until the suite has ended."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user)
    try:
        wait_until(url, child)
        yield url
    finally:
        child.send_signal(signal.SIGINT)  # PostgreSQL's fast end: it does not wait for its clients
        child.wait(30)


def postgres_program(name: str) -> str:
    """The newest program of that name, also where Debian keeps it."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    program = shutil.which(name) or (str(found[-1]) if found else "")
    if not program:
        raise Missing("PostgreSQL is missing: set DATABASE_URL, or install it (Debian: postgresql).")
    return program


@contextmanager
def postgres() -> Iterator[str]:
    initdb, server = postgres_program("initdb"), postgres_program("postgres")
    # PostgreSQL does not run as root.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, user)
        data, port = f"{folder}/data", free_port()
        made = [initdb, "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", data]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, user=user)
        command = [server, "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", folder]
        with running(command, f"postgres://postgres@127.0.0.1:{port}/baton", user=user) as url:
            yield url


@contextmanager
def redis() -> Iterator[str]:
    server = shutil.which("redis-server")
    if server is None:
        raise Missing("Redis is missing: set REDIS_URL, or install it (Debian: redis-server).")
    port = free_port()
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running(command, f"redis://127.0.0.1:{port}/0") as url:
        yield url


def main(arguments: list[str]) -> int:
    with ExitStack() as stack:
        try:
            database = os.environ.get("DATABASE_URL") or (
                POSTGRES if answers(POSTGRES) else stack.enter_context(postgres())
            )
            store = os.environ.get("REDIS_URL") or (REDIS if answers(REDIS) else stack.enter_context(redis()))
        except Missing as error:
            print(error, file=sys.stderr)
            return 1
        print(f"On {urlsplit(database).hostname}:{urlsplit(database).port} and {store}", flush=True)
        env = {**os.environ, "DATABASE_URL": database, "REDIS_URL": store}
        return subprocess.run([sys.executable, "-m", "pytest", *arguments], env=env).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
