"""`python -m bench.outage --seconds 60`: the database is away in each way there is, under load; all is booked once.

Starts a PostgreSQL of its own (as user postgres where we are root; the full disk needs root, for a small tmpfs).
Ends with 1 where a call is refused, lost, booked twice or quarantined.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from bench.scenario import SCENARIOS, request_body
from bench.world import BenchError, World, fetch, wait_until, world
from tests.services import free_port, postgres_program

CLIENTS, PAUSE = 6, 0.05
MOST_WAIT = 60


class Cluster:
    """A PostgreSQL server in a folder."""

    def __init__(self, folder: Path) -> None:
        self.user = "postgres" if os.geteuid() == 0 else None
        self.data, self.port = folder / "data", free_port()
        if self.user:
            shutil.chown(folder, self.user)
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", str(self.data))
        self.start()
        self.sql("CREATE ROLE baton LOGIN", "CREATE DATABASE baton OWNER baton")
        self.url = f"postgres://baton@127.0.0.1:{self.port}/baton"

    def _run(self, program: str, *arguments: str) -> None:
        command = [postgres_program(program), *arguments]
        done = subprocess.run(command, user=self.user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if done.returncode:
            raise BenchError(f"{program} ended with {done.returncode}")

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.data} -c wal_recycle=off -c max_wal_size=48MB"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.data / "log"), "-o", options, "start")

    def stop(self, mode: str) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def runs(self) -> bool:
        try:
            self.sql("SELECT 1")
        except psycopg.Error:
            return False
        return True

    def sql(self, *statements: str) -> None:
        """Act as the administrator, from another database."""
        with psycopg.connect(f"postgres://postgres@127.0.0.1:{self.port}/postgres", autocommit=True) as link:
            for statement in statements:
                link.execute(statement)


KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'baton'"
READ_ONLY = "ALTER DATABASE baton SET default_transaction_read_only = on", KILL
WRITABLE = "ALTER DATABASE baton RESET default_transaction_read_only", KILL


@contextmanager
def stopped(cluster: Cluster, mode: str) -> Iterator[None]:
    cluster.stop(mode)
    try:
        yield
    finally:
        cluster.start()


@contextmanager
def told(cluster: Cluster, there: tuple[str, ...], back: tuple[str, ...]) -> Iterator[None]:
    cluster.sql(*there)
    try:
        yield
    finally:
        cluster.sql(*back)


@contextmanager
def full(cluster: Cluster) -> Iterator[None]:
    """Nothing more fits on the database's disk; it may stop over that, and is started again where it did."""
    ballast = cluster.data.parent / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 65536):
                pass
        except OSError:
            pass
    try:
        yield
    finally:
        ballast.unlink()
        if not cluster.runs():
            (cluster.data / "postmaster.pid").unlink(missing_ok=True)
            cluster.start()


def ways(cluster: Cluster, *, small_disk: bool) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {
        "stopped": lambda: stopped(cluster, "fast"),
        "crashed": lambda: stopped(cluster, "immediate"),
        "failed over, read-only": lambda: told(cluster, READ_ONLY, WRITABLE),
        "out of connections": lambda: told(
            cluster, ("ALTER ROLE baton CONNECTION LIMIT 0", KILL), ("ALTER ROLE baton CONNECTION LIMIT -1",)
        ),
    }
    if small_disk:
        found["disk full"] = lambda: full(cluster)
    return found


@dataclass
class Seen:
    """What clients saw, and what `/readyz` said."""

    ids: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    slowest: float = 0.0


def client(place: World, seen: Seen, until: threading.Event) -> None:
    address, headers = urlsplit(place.relay_url).netloc, {"x-api-key": place.keys[0], "anthropic-version": "2023-06-01"}
    body = request_body(SCENARIOS["json"])
    while not until.is_set():
        start, link = time.monotonic(), http.client.HTTPConnection(address, timeout=30)
        try:
            link.request("POST", "/v1/messages", body, headers)
            response = link.getresponse()
            response.read()
            call_id = response.headers["x-request-id"]
            if response.status == 200:
                seen.ids.append(call_id)
            else:
                seen.refused.append(f"{response.status} {call_id}")
        except (OSError, http.client.HTTPException) as error:
            seen.refused.append(repr(error))
        finally:
            link.close()
        seen.slowest = max(seen.slowest, time.monotonic() - start)
        time.sleep(PAUSE)


def outage(place: World, name: str, away: Callable[[], Any], *, seconds: float) -> list[str]:
    """One outage under load; prints a line and returns the ids of the calls that were answered."""
    seen, until, most = Seen(), threading.Event(), {"records_waiting": 0, "oldest_record_seconds": 0.0}
    threads = [threading.Thread(target=client, args=(place, seen, until)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    with away():
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            standing = fetch(f"{place.relay_url}/readyz")
            most = {figure: max(most[figure], standing.get(figure, 0)) for figure in most}
            time.sleep(0.5)
    back = time.monotonic()
    wait_until(
        lambda: fetch(f"{place.relay_url}/readyz")["oldest_record_seconds"] < 2, seconds=MOST_WAIT, what="shipped"
    )
    caught_up = time.monotonic() - back
    until.set()
    for thread in threads:
        thread.join()
    place.wait_idle()
    waiting, oldest = most["records_waiting"], most["oldest_record_seconds"]
    print(
        f"{name:<24} {len(seen.ids):6} answered {len(seen.refused):3} refused; slowest {seen.slowest:4.1f} s; "
        f"waited: {waiting:5} records, {oldest:4.0f} s; shipped {caught_up:4.1f} s after",
        flush=True,
    )
    if seen.refused:
        raise BenchError(f"refused while the database was {name}: {seen.refused[:3]}")
    return seen.ids


def check(place: World, ids: list[str]) -> None:
    """Every answer is booked once, nothing else is, nothing lies in quarantine."""
    path = place.folder / "ids.json"
    path.write_text(json.dumps(ids))
    code = (
        "import json, pathlib; from relay.models import Quarantine, UsageRecord as R;"
        f"ids = set(json.loads(pathlib.Path({str(path)!r}).read_text()));"
        "found = {str(pk) for pk in R.objects.values_list('pk', flat=True)};"
        "print(json.dumps([len(ids), len(found), len(ids & found), Quarantine.objects.count()]))"
    )
    answered, booked, both, quarantined = json.loads(place.manage("shell", "--no-imports", "-c", code))
    place.manage("rollup")
    ok = json.loads(place.manage("reconcile", "--json"))["ok"]
    print(
        f"answered {answered}, booked {booked}, of those answered {both}, quarantined {quarantined}, reconciled: {ok}"
    )
    if not (answered == booked == both and not quarantined and ok):
        raise BenchError("records and answers differ")


@contextmanager
def disk(*, small: bool) -> Iterator[Path]:
    """A folder for the database; `small` = a tmpfs of 200 MB."""
    with tempfile.TemporaryDirectory(prefix="baton-outage-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if small:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "baton-outage", name], check=True)
        try:
            yield folder
        finally:
            if small:
                subprocess.run(["umount", "-l", name], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.outage", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    small = os.geteuid() == 0
    try:
        with disk(small=small) as folder:
            cluster = Cluster(folder)
            try:
                with world(relay=True, limits=0, database_url=cluster.url) as place:
                    ids = []
                    for name, away in ways(cluster, small_disk=small).items():
                        ids += outage(place, name, away, seconds=options.seconds)
                    check(place, ids)
            finally:
                cluster.stop("immediate")
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
