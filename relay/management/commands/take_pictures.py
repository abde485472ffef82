"""Take the pictures of docs/images: a fresh installation in a folder of its own, the demo month, a real Chromium."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

USER, START_SECONDS = "ada", 60
BROWSER = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run")


@dataclass(frozen=True, slots=True)
class Picture:
    """One file; `path` is under /admin/, `follow` a link to click there first."""

    name: str
    path: str
    theme: str = "light"
    width: int = 1280
    height: int = 1180
    follow: str = ""


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
        with installation() as (address, password), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=list(BROWSER))
            for picture in PICTURES:
                size = take(browser, picture, address=address, password=password, folder=folder)
                self.stdout.write(f"{picture.name}.png {size // 1024} KB")
            browser.close()


@contextmanager
def installation() -> Iterator[tuple[str, str]]:
    """A Baton of its own, with a month of demo calls; yields its address and the administrator's password."""
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
        for arguments in (
            ("migrate", "--verbosity", "0"),
            ("createsuperuser", "--noinput", "--username", USER, "--email", "ada@example.org"),
            ("seed_demo", "--days", "30", "--per-day", "300"),
        ):
            command = [sys.executable, str(settings.BASE_DIR / "manage.py"), *arguments]
            subprocess.run(command, env=env, check=True, cwd=settings.BASE_DIR, stdout=subprocess.DEVNULL)
        server = ["-m", "uvicorn", "relay_site.asgi:application", "--port", str(port), "--no-access-log"]
        process = subprocess.Popen([sys.executable, *server], env=env, cwd=settings.BASE_DIR)
        try:
            wait_for(f"http://127.0.0.1:{port}/admin/login/")
            yield f"http://127.0.0.1:{port}/admin/", password
        finally:
            process.terminate()
            process.wait()


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
    page.wait_for_timeout(300)
    path = folder / f"{picture.name}.png"
    page.screenshot(path=str(path))
    context.close()
    return path.stat().st_size
