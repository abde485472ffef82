"""Every page of the admin, for whoever may see it."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib import admin
from django.test import Client, override_settings
from django.urls import reverse
from django.utils import timezone

from tests.admin_cases import make_everything, make_user

pytestmark = pytest.mark.django_db
# A port where nobody answers: pages must stand without a relay.
NO_RELAY = override_settings(RELAY_INTERNAL_URL="http://127.0.0.1:9")


@pytest.fixture
def staff(client: Client) -> Iterator[Client]:
    client.force_login(make_user("root", superuser=True))
    with NO_RELAY:
        yield client


def pages() -> list[tuple[str, str]]:
    """Model label and kind of page, for every registered model."""
    labels = sorted(model._meta.label_lower for model in admin.site._registry)
    return [(label, page) for label in labels for page in ("changelist", "add", "change")]


def address(label: str, page: str) -> str | None:
    """The page's address; of a change page that of the model's first row, None if it has none."""
    name = f"admin:{label.replace('.', '_')}_{page}"
    if page != "change":
        return reverse(name)
    model: Any = next(model for model in admin.site._registry if model._meta.label_lower == label)
    row = model._default_manager.order_by("pk").first()
    return reverse(name, args=[row.pk]) if row else None


def test_every_page_stands_with_data(staff: Client) -> None:
    make_everything(timezone.now())
    found = {}
    for label, page in pages():
        url = address(label, page)
        status = staff.get(url).status_code if url else 200
        if status not in {200, 403}:
            found[label, page] = status
    assert found == {}


def test_every_list_stands_without_data(staff: Client) -> None:
    found = {
        label: staff.get(reverse(f"admin:{label.replace('.', '_')}_changelist")).status_code for label, _ in pages()
    }
    assert {label: status for label, status in found.items() if status != 200} == {}


@pytest.mark.parametrize("query", ["", "?by=day", "?by=hour", "?by=nonsense"])
@pytest.mark.parametrize("filled", [True, False])
def test_the_dashboard_stands(staff: Client, query: str, filled: bool) -> None:
    if filled:
        make_everything(timezone.now())
    page = staff.get(reverse("admin:index") + query)
    assert page.status_code == 200
    assert ("First steps" in page.text) is not filled


class Scripts(HTMLParser):
    """Finds what a policy without 'unsafe-inline' for scripts would stop."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        runs = given.get("type", "text/javascript") in {"text/javascript", "module", ""}
        if tag == "script" and "src" not in given and runs:
            self.found.append(str(attrs))
        self.found += [name for name in given if name.startswith("on")]
        self.found += [value for value in given.values() if value and value.lower().startswith("javascript:")]


def test_no_page_has_a_script_in_it_so_the_policy_forbids_them(staff: Client) -> None:
    make_everything(timezone.now())
    urls = [url for label, page in pages() if (url := address(label, page))]
    urls += [reverse("admin:index"), reverse("admin:usage_report"), reverse("admin:relay_price_import")]
    found = {}
    for url in urls:
        page = staff.get(url)
        scripts = Scripts()
        scripts.feed(page.text)
        if scripts.found and page.status_code == 200:
            found[url] = scripts.found
        policy = dict(part.strip().partition(" ")[::2] for part in page["content-security-policy"].split(";"))
        assert policy["script-src"] == "'self' 'unsafe-eval'"
        assert policy["default-src"] == "'self'"
    assert found == {}


@pytest.mark.parametrize("path", ["baton/baton.css", "baton/baton.js", "unfold/css/styles.css", "baton/favicon.svg"])
def test_static_files_are_served_without_debug(client: Client, path: str) -> None:
    answer = client.get(f"/static/{path}")
    assert (answer.status_code, answer.streaming, len(answer.content) > 100) == (200, False, True)
    assert "access-control-allow-origin" not in answer
    again = client.get(f"/static/{path}", headers={"if-none-match": answer["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head(f"/static/{path}").content == b""
    assert client.get("/static/../relay_site/settings.py").status_code == 404


def test_signing_in_leads_to_the_dashboard(client: Client) -> None:
    make_user("ada", superuser=True)
    answer = client.post(reverse("admin:login"), {"username": "ada", "password": "a long enough password"})
    assert (answer.status_code, answer.headers["location"]) == (302, reverse("admin:index"))
