"""A real Chromium in a thread of its own: Playwright's event loop must not run where tests use the database."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from django.conf import settings
from django.test import Client

from tests.admin_cases import make_user
from tests.harness import Server

T = TypeVar("T")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HERE = Path(__file__).parent


class Browse(Protocol):
    """Runs a function with a page that is signed in as an administrator; returns what it returns."""

    def __call__(self, look: Callable[[Any], T], *, theme: str = "light", width: int = 1280) -> T: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)


def chromium_path() -> str:
    """Where Chromium is; skips the test, saying how to get it, where there is none."""
    found = os.environ.get("BATON_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("Chromium is not installed: apt-get install chromium, or name it in BATON_CHROMIUM")
    return found


@pytest.fixture(scope="session")
def chromium() -> Iterator[Callable[[Callable[[Any], T]], T]]:
    """Run functions with the browser, in its thread."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="chromium") as thread:
        playwright = thread.submit(lambda: sync_playwright().start()).result()
        browser = thread.submit(lambda: playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))).result()
        yield lambda use: thread.submit(use, browser).result()
        thread.submit(browser.close).result()
        thread.submit(playwright.stop).result()


@pytest.fixture
def baton(shared_servers: Callable[[str], Server], transactional_db: None) -> Server:
    """Baton as production runs it."""
    return shared_servers("uvicorn")


@pytest.fixture
def browse(chromium: Callable[[Callable[[Any], Any]], Any], baton: Server) -> Browse:
    client = Client()
    client.force_login(make_user("root", superuser=True))
    cookie = {"name": settings.SESSION_COOKIE_NAME, "value": client.session.session_key, "url": baton.url}

    def run(look: Callable[[Any], T], *, theme: str = "light", width: int = 1280) -> T:
        def use(browser: Any) -> T:
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=theme, base_url=f"{baton.url}/admin/"
            )
            context.grant_permissions(["clipboard-read", "clipboard-write"])
            context.add_cookies([cookie])
            try:
                return look(context.new_page())
            finally:
                context.close()

        found: T = chromium(use)
        return found

    return run
