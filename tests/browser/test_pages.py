"""Every page in light and dark, on a desk and on a phone: no console error, no scrolling sideways, charts drawn."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest
from django.utils import timezone

from accounts.models import Account
from apikeys.models import ApiKey, Team
from relay import demo
from relay.models import Price, UsageRecord
from relay.rollup import roll_up
from tests.admin_cases import make_everything
from tests.browser.conftest import Browse

EMPTY = (
    "",
    "?by=day",
    "reports/usage/",
    "live/",
    "relay/usagerecord/",
    "relay/usagecorrection/",
    "relay/price/",
    "relay/price/add/",
    "relay/price/import/",
    "relay/price/export/",
    "relay/billingperiod/",
    "relay/billingperiod/add/",
    "relay/quarantine/",
    "accounts/account/",
    "accounts/account/add/",
    "accounts/accountgroup/",
    "accounts/accountevent/",
    "apikeys/apikey/",
    "apikeys/apikey/add/",
    "apikeys/team/",
    "apikeys/team/add/",
    "auth/user/",
    "auth/user/add/",
    "auth/group/",
    "django_celery_beat/periodictask/",
    "auditlog/logentry/",
    "password_change/",
)


def filled() -> tuple[str, ...]:
    """The same pages with rows, and the rows' own."""
    key = ApiKey.objects.exclude(limits=None).first()
    record = UsageRecord.objects.filter(status="ok").first()
    account, team, price = Account.objects.first(), Team.objects.first(), Price.objects.first()
    assert key and record and account and team and price
    return (
        *EMPTY,
        "reports/usage/?day=30d&by=team&by=model&show=tokens",
        "reports/usage/?day=30d&by=tag&tag=project&show=calls",
        f"relay/usagerecord/{record.pk}/change/",
        f"relay/price/{price.pk}/change/",
        f"accounts/account/{account.pk}/change/",
        f"accounts/account/{account.pk}/delete/",
        f"accounts/account/{account.pk}/history/",
        f"apikeys/apikey/{key.pk}/change/",
        f"apikeys/apikey/{key.pk}/rotate/",
        f"apikeys/team/{team.pk}/change/",
    )


def faults(page: Any, paths: tuple[str, ...], *, theme: str, width: int) -> list[str]:
    """What is wrong with any of the pages, in words."""
    found: list[str] = []
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: said.append(f"script: {error}"))
    page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
    page.on("request", lambda request: said.append(f"outside: {request.url}") if is_outside(request.url) else None)
    for path in paths:
        said.clear()
        answer = page.goto(path)
        page.wait_for_load_state("load")
        page.wait_for_function("window.Alpine !== undefined")
        page.wait_for_timeout(100)
        needed = page.evaluate("document.documentElement.scrollWidth")
        dark = page.evaluate("document.documentElement.classList.contains('dark')")
        found += [f"{path}: status {answer.status}"] * (answer.status != 200)
        found += [f"{path}: needs {needed} px"] * (needed > width)
        found += [f"{path}: not {theme}"] * (dark is not (theme == "dark"))
        found += [f"{path}: {text}" for text in said]
    return found


def is_outside(url: str) -> bool:
    return urlsplit(url).hostname not in {"127.0.0.1", "localhost", None}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_with_data(browse: Browse, theme: str, width: int) -> None:
    make_everything(timezone.now())
    demo.seed(days=2, per_day=40, now=timezone.now())
    paths = filled()
    assert browse(lambda page: faults(page, paths, theme=theme, width=width), theme=theme, width=width) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("theme,width", [("light", 390), ("dark", 1280)])
def test_pages_without_data(browse: Browse, theme: str, width: int) -> None:
    assert browse(lambda page: faults(page, EMPTY, theme=theme, width=width), theme=theme, width=width) == []


CHARTS = ("", "?by=day", "reports/usage/?day=7d&by=model")


def drawn(page: Any) -> dict[str, tuple[int, int, int]]:
    """Of each page: its charts, those that say they are empty, and bars or curves that can be seen."""
    seen = {}
    for path in CHARTS:
        page.goto(path)
        shapes = page.locator(".b-plot svg rect[class^=b-fill], .b-plot svg polyline")
        visible = [box for box in (shape.bounding_box() for shape in shapes.all()) if box and box["width"] > 0]
        seen[path] = (page.locator(".b-plot").count(), page.locator(".b-plot-empty").count(), len(visible))
    return seen


def test_charts_are_drawn_where_there_is_data_and_say_so_where_there_is_none(browse: Browse) -> None:
    assert browse(drawn) == {"": (5, 5, 0), "?by=day": (5, 5, 0), "reports/usage/?day=7d&by=model": (1, 1, 0)}
    demo.seed(days=2, per_day=60, now=timezone.now())
    roll_up()
    for path, (charts, empty, shapes) in browse(drawn).items():
        assert (charts, empty) == ((1, 0) if path.startswith("reports") else (5, 0)), path
        assert shapes > 5, path
