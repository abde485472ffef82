"""Prices in the admin: rows are never edited, every change is a version."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from relay.call import Usage
from relay.models import Price
from relay.prices import load_prices
from tests.admin_cases import errors_of, form_values, make_user

pytestmark = pytest.mark.django_db
LIST, ADD = "admin:relay_price_changelist", "admin:relay_price_add"
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(make_user("root", superuser=True))
    return client


@pytest.fixture
def price() -> Price:
    fields: dict[str, Any] = {"provider": "acme", "model": "acme-model-1", "meter": "input_tokens", "source": "admin"}
    return Price.objects.create(**fields, rate=3 * 10**9, valid_from=START)


def save(staff: Client, url: str, **changes: Any) -> Any:
    return staff.post(url, {**form_values(staff.get(url)), **changes})


def change_url(price: Price) -> str:
    return reverse("admin:relay_price_change", args=[price.pk])


def rate_now() -> int | None:
    found = load_prices().find("acme", "acme-model-1")
    rate = found.rate("input_tokens", usage=Usage(), whole_input=0, at=timezone.now().timestamp()) if found else None
    return rate.rate if rate else None


def test_saving_a_change_ends_what_held_and_adds_a_version(staff: Client, price: Price) -> None:
    answer = save(staff, change_url(price), rate="2.5")
    assert answer.status_code == 302, errors_of(answer)
    old, new = Price.objects.filter(provider="acme").order_by("valid_from")
    assert (old.pk, old.rate, old.valid_from) == (price.pk, 3 * 10**9, START)
    assert old.valid_to == new.valid_from
    assert (new.rate, new.valid_to, new.approved_by, new.source) == (2_500_000_000, None, "root", "admin")
    assert rate_now() == 2_500_000_000
    versions = staff.get(answer.url).context["cl"].result_list
    assert [row.pk for row in versions] == [new.pk, old.pk]


def test_a_change_can_begin_later(staff: Client, price: Price) -> None:
    later = timezone.now() + timedelta(days=3)
    save(staff, change_url(price), rate="9", valid_from_0=f"{later:%Y-%m-%d}", valid_from_1="00:00:00")
    assert rate_now() == 3 * 10**9
    in_force = staff.get(reverse(LIST), {"q": "acme-model-1"}).context["cl"].result_list
    assert [row.pk for row in in_force] == [price.pk]
    future = staff.get(reverse(LIST), {"q": "acme-model-1", "validity": "future"}).context["cl"].result_list
    assert [row.rate for row in future] == [9 * 10**9]


def test_a_price_is_added_to_the_nano_dollar(staff: Client) -> None:
    given = {
        "provider": "acme",
        "model": "acme-model-1",
        "meter": "input_tokens",
        "above_tokens": "0",
        "rate": "0.000000001",
    }
    answer = save(staff, reverse(ADD), **given)
    assert answer.status_code == 302, errors_of(answer)
    assert rate_now() == 1


def test_what_a_price_is_for_can_not_be_changed(staff: Client, price: Price) -> None:
    save(staff, change_url(price), model="acme-model-2", rate="4")
    assert set(Price.objects.filter(provider="acme").values_list("model", flat=True)) == {"acme-model-1"}


@pytest.mark.parametrize(
    "rate,word", [("", "required"), ("-1", "greater"), ("0.0000000001", "9 decimal"), ("x", "number")]
)
def test_what_is_no_rate_is_refused(staff: Client, price: Price, rate: str, word: str) -> None:
    assert word in str(errors_of(save(staff, change_url(price), rate=rate)))
    assert Price.objects.filter(provider="acme").count() == 1


@pytest.mark.parametrize("above", ["-1", "2147483648", "9" * 30])
def test_what_no_column_holds_is_refused_at_its_field(staff: Client, above: str) -> None:
    given = {"provider": "acme", "model": "m", "meter": "input_tokens", "rate": "1", "above_tokens": above}
    assert "than or equal to" in str(errors_of(save(staff, reverse(ADD), **given))["above_tokens"])


def test_a_price_is_never_deleted(staff: Client, price: Price) -> None:
    assert staff.post(reverse("admin:relay_price_delete", args=[price.pk]), {"post": "yes"}).status_code == 403


def test_the_form_shows_the_rate_in_dollars_and_the_versions(staff: Client, price: Price) -> None:
    page = staff.get(change_url(price))
    assert form_values(page)["rate"] == "3.00"
    assert "Versions of this rate" in page.text


def test_an_export_has_exact_dollars_and_an_import_adds_versions(staff: Client, price: Price) -> None:
    exported = staff.post(
        reverse("admin:relay_price_export") + "?q=acme-model-1", {"format": "0", "resource": "", **every_field(staff)}
    )
    assert exported.status_code == 200
    text = exported.content.decode()
    assert "usd_per_million" in text and "3.000000000" in text
    file = "provider,model,meter,tier,above_tokens,usd_per_million\nacme,acme-model-1,input_tokens,,0,4.25\n"
    first = staff.post(
        reverse("admin:relay_price_import"),
        {"format": "0", "import_file": SimpleUploadedFile("prices.csv", file.encode())},
    )
    assert first.status_code == 200
    confirm = first.context["confirm_form"].initial
    assert rate_now() == 3 * 10**9  # a look first
    done = staff.post(reverse("admin:relay_price_process_import"), confirm)
    assert done.status_code == 302
    new = Price.objects.filter(provider="acme").order_by("valid_from").last()
    assert new is not None
    assert (Decimal(new.rate), new.source, new.approved_by) == (Decimal(4_250_000_000), "import", "root")
    assert rate_now() == 4_250_000_000


def every_field(staff: Client) -> dict[str, str]:
    form = staff.get(reverse("admin:relay_price_export")).context["form"]
    return {name: "on" for name in form.fields if name.startswith("priceresource_")}


def test_exported_text_is_no_formula(staff: Client, price: Price) -> None:
    Price.objects.filter(pk=price.pk).update(source="=1+1")
    answer = staff.post(
        reverse("admin:relay_price_export") + "?q=acme-model-1", {"format": "0", "resource": "", **every_field(staff)}
    )
    assert b",=1+1" not in answer.content
