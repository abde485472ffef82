"""Every page of the admin, for whoever may see it."""

from __future__ import annotations

from collections.abc import Iterator
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
