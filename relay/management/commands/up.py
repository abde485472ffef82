"""Start all of Baton on this machine: what `make run` ends in."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from relay import demo_month, first_start
from relay.first_start import Made
from relay.supervisor import Program, Supervisor

SIMULATOR_PORT = 8009
DEMO_MODEL = "claude-sonnet-5-5"
SIMULATOR, MONTH = "simulator", "demo month"
MONTH_AFTER_SECONDS = 4.0  # the first call comes first
STOP_SECONDS = 10


class Command(BaseCommand):
    help = "Start everything under one supervisor: web server, Celery worker with beat, simulator. Ctrl-C ends it."
    requires_system_checks: list[str] = []  # noqa: RUF012 - checked once the secret is there

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--no-demo", action="store_true", help="No demo account, no demo key, no simulator.")

    def handle(self, *, no_demo: bool, **options: Any) -> None:
        host, port = bind_address(settings.RELAY_BIND)
        ensure_secret()
        self.check()
        with only_one_here():
            require_free(host, port)
            first_start.make_folders(settings.RELAY_DATA_DIR)
            call_command("migrate", verbosity=0, interactive=False)
            simulator_port = free_port(SIMULATOR_PORT)
            made = first_start.make_rows(demo=not no_demo, simulator_url=f"http://127.0.0.1:{simulator_port}")
            first_start.load_prices()
            programs = [web(host, port), worker()]
            if not no_demo and place_demo(simulator_port):
                programs.append(simulator(simulator_port))
                if made.key:
                    demo_month.want()
                if demo_month.wanted():
                    programs.insert(0, month())
            connections.close_all()
            self.supervise(programs, made)

    def supervise(self, programs: list[Program], made: Made) -> None:
        """Run the programs; says where everything is once the web server answers, or why it never did."""
        told = False

        async def announce() -> None:
            nonlocal told
            await until_it_answers(local_url())
            self.say(announcement(made, programs))
            told = True

        try:
            asyncio.run(Supervisor(programs, say=self.say).run(announce))
        finally:
            if not told:
                # The password and the key were saved: they must not be lost because the start was not seen through.
                self.say(announcement(made, programs))

    def say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()


def ensure_secret() -> None:
    """Start over with a secret of this installation's own where it has none: settings have been read by now."""
    if settings.RELAY_SECRET_KEYS != [settings.DEFAULT_SECRET]:
        return
    older = settings.DEFAULT_SECRET if first_start.credentials_exist() else ""
    first_start.write_secret(settings.RELAY_DATA_DIR, older=older)
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very command again


@contextmanager
def only_one_here() -> Iterator[None]:
    """Hold the data folder's lock; raises `CommandError` where another start of this command holds it."""
    with (settings.RELAY_DATA_DIR / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"Baton is running already on {settings.RELAY_DATA_DIR}.") from None
        yield


def bind_address(text: str) -> tuple[str, int]:
    """Host and port of RELAY_BIND."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise CommandError(f"RELAY_BIND={text}: write it like 127.0.0.1:8000.")
    return host, port


def require_free(host: str, port: int) -> None:
    try:
        with listening(host, port):
            pass
    except OSError as error:
        raise CommandError(
            f"Can't listen on {host}:{port} ({error.strerror}). Stop what uses it, or choose another address: "
            f"RELAY_BIND={host}:{port + 1} make run"
        ) from None


def free_port(wanted: int) -> int:
    """The wanted port of this machine, or another one if it is taken."""
    for port in (wanted, 0):
        try:
            with listening("127.0.0.1", port) as found:
                chosen: int = found.getsockname()[1]
                return chosen
        except OSError:
            continue
    raise CommandError("This machine has no free port.")


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)
        yield probe


def place_demo(port: int) -> bool:
    """Point the demo's account at the simulator of this start; returns whether there is such an account."""
    account = first_start.demo_account()
    if account is None:
        return False
    url = f"http://127.0.0.1:{port}"
    if account.base_url != url:
        account.base_url = url
        account.save(update_fields=["base_url"])
    return True


def web(host: str, port: int) -> Program:
    command = python(
        *("uvicorn", "relay_site.asgi:application", "--host", host, "--port", str(port)),
        *("--http", "relay_site.protocol:GatheringProtocol", "--no-proxy-headers"),
        *("--no-access-log", "--no-server-header", "--log-level", "warning"),
        *("--timeout-graceful-shutdown", str(STOP_SECONDS)),
    )
    drain = float(os.environ.get("RELAY_SHUTDOWN_SECONDS") or STOP_SECONDS)
    env = {"RELAY_SHUTDOWN_SECONDS": f"{drain:g}"}
    return Program("web", command, env=env, stop_seconds=STOP_SECONDS + drain + 10)


def worker() -> Program:
    command = python(
        *("celery", "--quiet", "--app", "relay_site.celery", "worker", "--beat", "--pool", "solo"),
        *("--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"),
    )
    # It runs as whoever started it, knowingly; the long warning about root would stand before the address.
    env = {"PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges"}
    return Program("worker", command, env=env, stop_seconds=STOP_SECONDS)


def simulator(port: int) -> Program:
    return Program(SIMULATOR, python("relay.simulator", "--port", str(port)), stop_seconds=3)


def month() -> Program:
    """Fills the pages once everything else has started, and only at the first start."""
    return Program(
        MONTH,
        python("manage", "seed_demo", "--first-start"),
        stop_seconds=5,
        once=True,
        after_seconds=MONTH_AFTER_SECONDS,
    )


def python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def local_url() -> str:
    """Where this machine reaches the web server."""
    host, port = bind_address(settings.RELAY_BIND)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def until_it_answers(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                await client.head(f"{url}/", timeout=5)
            except httpx.HTTPError:
                await asyncio.sleep(0.1)
            else:
                return


def announcement(made: Made, programs: Sequence[Program]) -> str:
    """Where everything is, and what is shown only this once."""
    url = local_url()
    names = {program.name for program in programs}
    demo = SIMULATOR in names
    lines = ["", f"Baton is at {url}", f"Admin      {url}/admin/"]
    if made.password:
        lines += [f"User       {first_start.ADMIN}", f"Password   {made.password}   (shown only now)"]
    if demo and made.key:
        lines += ["", "A first call, to the demo account on the simulator (the key is shown only now):", ""]
        lines += [curl(url, made.key)]
    elif demo:
        lines += [
            "",
            "The demo's key was shown at the first start. Another: .venv/bin/python manage.py create_key NAME",
        ]
    if MONTH in names:
        lines += [
            "",
            "The admin's pages fill with a made-up month within a minute; it is marked as demo, and no key's bill.",
        ]
        lines += ["Without it: .venv/bin/python manage.py seed_demo --remove"]
    return "\n".join([*lines, *hints(), "", "Ctrl-C ends everything.", ""])


def hints() -> list[str]:
    """What else a person has to say at an address that is not the usual one."""
    lines = []
    if settings.RELAY_BIND != settings.DEFAULT_BIND:
        lines += ["", f"Commands in another shell ask the relay there too: export RELAY_BIND={settings.RELAY_BIND}"]
    if not settings.LOOPBACK:
        lines += ["", "Admin from other machines: set ALLOWED_HOSTS to the names that they use for this one,"]
        lines += ["and SECURE_COOKIES=0 where there is no https in front."]
    return lines


def curl(url: str, key: str) -> str:
    """A call that can be pasted into a shell, and streams."""
    body = (
        f'{{"model": "{DEMO_MODEL}", "max_tokens": 300, "stream": true, '
        '"messages": [{"role": "user", "content": "Tell me why the bill is right."}]}'
    )
    return (
        f"curl -N {url}/v1/messages \\\n"
        f"  -H 'x-api-key: {key}' \\\n"
        "  -H 'anthropic-version: 2023-06-01' -H 'content-type: application/json' \\\n"
        f"  -d '{body}'"
    )
