"""Take the pictures of docs/images: a fresh installation in a folder of its own, the demo month, a real Chromium."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from relay.simulator.run import simulator

USER, START_SECONDS = "ada", 60
BROWSER = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run")


@dataclass(frozen=True, slots=True)
class Picture:
    """One file; `path` is under /admin/, `follow` a link to click there first; `seconds` go by before it is taken."""

    name: str
    path: str
    theme: str = "light"
    width: int = 1280
    height: int = 1180
    follow: str = ""
    seconds: float = 0.3
    busy: bool = False  # with calls under way


PICTURES = (
    Picture("dashboard", "?by=day", height=1120),
    Picture("dashboard-dark", "?by=day", theme="dark", height=1120),
    Picture("dashboard-phone", "?by=day", width=390, height=1500),
    Picture("usage-report", "reports/usage/?day=30d&by=team&by=week", height=1180),
    Picture("usage-records", "relay/usagerecord/?day=7d", height=900),
    Picture(
        "usage-record", "relay/usagerecord/?day=30d&model=claude-opus-5-5", follow="#result_list th a", height=1080
    ),
    Picture("accounts", "accounts/account/", height=520),
    Picture("account", "accounts/account/", follow="#result_list a:has-text('Demo Anthropic B')", height=900),
    Picture("api-key", "apikeys/apikey/", follow="#result_list a:has-text('demo-search-api')", height=900),
    Picture("prices", "relay/price/?q=claude-opus-5-5", height=720),
    # Last: the calls that it shows stand in no other.
    Picture("live-calls", "live/", height=900, seconds=9, busy=True),
)
CALLS = (
    ("claude-sonnet-5-5", 40),
    ("claude-haiku-5-5", 15),
    ("claude-opus-5-5", 70),
    ("claude-haiku-5-5", 25),
    ("claude-sonnet-5-5", 90),
)


class Command(BaseCommand):
    help = "Write docs/images/*.png from a fresh installation with demo data; needs chromium and playwright."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--to", default=str(settings.BASE_DIR / "docs" / "images"), help="Folder of the pictures.")

    def handle(self, *, to: str, **options: Any) -> None:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        if not chromium:
            raise CommandError("Chromium is not installed: apt-get install chromium")
        try:
            from playwright.sync_api import sync_playwright
        except ImportError:
            raise CommandError("Playwright is not installed: pip install -r requirements-dev.txt") from None
        folder = Path(to)
        folder.mkdir(parents=True, exist_ok=True)
        with installation() as (address, password, key), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=list(BROWSER))
            for picture in PICTURES:
                with callers(f"{address}/v1/messages", key) if picture.busy else nullcontext():
                    size = take(browser, picture, address=f"{address}/admin/", password=password, folder=folder)
                self.stdout.write(f"{picture.name}.png {size // 1024} KB")
            browser.close()


@contextmanager
def installation() -> Iterator[tuple[str, str, str]]:
    """A Baton of its own, with a month of demo calls; yields its address, the administrator's password and a key."""
    password = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory(prefix="baton-pictures-") as data, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "DATABASE_"))}
        env = {
            **inherited,
            "RELAY_DATA_DIR": data,
            "RELAY_BIND": f"127.0.0.1:{port}",
            "DJANGO_SUPERUSER_PASSWORD": password,
            "LOG_LEVEL": "WARNING",
        }

        def manage(*arguments: str) -> str:
            command = [sys.executable, str(settings.BASE_DIR / "manage.py"), *arguments]
            done = subprocess.run(
                command, env=env, check=True, cwd=settings.BASE_DIR, stdout=subprocess.PIPE, text=True
            )
            return done.stdout

        manage("migrate", "--verbosity", "0")
        manage("createsuperuser", "--noinput", "--username", USER, "--email", "ada@example.org")
        manage("seed_demo", "--days", "30", "--per-day", "300")
        with simulator() as upstream:
            at = ("--base-url", upstream, "--credential", "api_key=sk-ant-sim")
            manage("create_account", "claude_console", "Simulator", *at)
            key = json.loads(manage("create_key", "build-agent", "--json"))["key"]
            server = ["-m", "uvicorn", "relay_site.asgi:application", "--port", str(port), "--no-access-log"]
            process = subprocess.Popen([sys.executable, *server], env=env, cwd=settings.BASE_DIR)
            try:
                wait_for(f"http://127.0.0.1:{port}/admin/login/")
                yield f"http://127.0.0.1:{port}", password, key
            finally:
                process.terminate()
                process.wait()


@contextmanager
def callers(url: str, key: str) -> Iterator[None]:
    """Somebody who calls all the time, so that the live page has something to show."""
    over = threading.Event()

    def call(model: str, chunks: int) -> None:
        headers = {"x-api-key": key, "anthropic-version": "2023-06-01", "x-sim": f"chunks={chunks},delay=0.1"}
        body = {"model": model, "max_tokens": 300, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
        with httpx.Client(trust_env=False, headers=headers, timeout=60) as client:
            while not over.is_set():
                client.post(url, json=body)

    threads = [threading.Thread(target=call, args=(model, chunks)) for model, chunks in CALLS]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def wait_for(url: str) -> None:
    """Wait until the server answers; raises `CommandError`."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - an address of our own
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise CommandError(f"The server did not answer within {START_SECONDS} s.")


def take(browser: Any, picture: Picture, *, address: str, password: str, folder: Path) -> int:
    """Take one picture; returns its size in bytes."""
    viewport = {"width": picture.width, "height": picture.height}
    context = browser.new_context(viewport=viewport, color_scheme=picture.theme, base_url=address)
    page = context.new_page()
    page.goto("login/")
    page.fill("#id_username", USER)
    page.fill("#id_password", password)
    page.click("[type=submit]")
    page.goto(picture.path)
    if picture.follow:
        page.locator(picture.follow).first.click()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(picture.seconds * 1000)
    path = folder / f"{picture.name}.png"
    page.screenshot(path=str(path))
    context.close()
    return path.stat().st_size
