"""What people do in the admin, done in a real browser."""

from __future__ import annotations

import re
from typing import Any

from django.utils import timezone

from apikeys.authentication import digest_of
from apikeys.models import ApiKey, Team
from relay.models import UsageCorrection, UsageRecord
from tests.admin_cases import make_everything, make_record
from tests.browser.conftest import Browse
from tests.harness import Installation


def test_a_new_key_is_shown_once_and_copied(browse: Browse) -> None:
    def make(page: Any) -> tuple[str, str, str]:
        page.goto("apikeys/apikey/add/")
        page.fill("#id_name", "laptop")
        page.get_by_label("Claude").check()
        page.click("[name=_save]")
        shown = page.locator("#new-key").inner_text()
        page.get_by_role("button", name="Copy", exact=True).click()
        page.get_by_role("button", name="Copied").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        with page.expect_navigation():
            page.get_by_role("link", name="to the key's page").click()
        return shown, copied, page.content()

    shown, copied, later = browse(make)
    key = ApiKey.objects.get()
    assert shown == copied
    assert (bytes(key.digest), key.families) == (digest_of(shown), ["claude"])
    assert shown not in later and f"rk_{key.public_id}_..." in later


def test_the_account_form_follows_its_kind(browse: Browse) -> None:
    def shown(page: Any) -> dict[str, bool]:
        found = {}
        page.goto("accounts/account/add/")
        for kind in ("claude_official", "claude_console"):
            page.select_option("#id_kind", kind)
            page.wait_for_timeout(100)
            found[kind] = page.locator("#id_credential_refresh_token").is_visible()
        return found

    assert browse(shown) == {"claude_official": True, "claude_console": False}


def test_test_connection_makes_a_real_call_and_leads_to_its_record(browse: Browse, installation: Installation) -> None:
    account = installation.account(name="on the simulator")

    def press(page: Any) -> tuple[str, str]:
        page.goto(f"accounts/account/{account.pk}/change/")
        page.get_by_role("button", name="Test connection").click()
        said = page.get_by_text("on the simulator answered").inner_text()
        with page.expect_navigation():
            page.get_by_role("link", name="The call's record").click()
        return said, page.url

    said, url = browse(press)
    (record,) = installation.records()
    assert re.search(r"answered with .+ in [\d.]+ m?s", said)
    assert (str(record.pk) in url, record.origin, record.account_id) == (True, "operator", account.pk)


def test_filters_keep_the_time_and_totals_follow(browse: Browse) -> None:
    make_everything(timezone.now())
    team = Team.objects.get()
    make_record(timezone.now(), team_id=None, cost_nanos=10**12)

    def narrow(page: Any) -> tuple[str, str]:
        page.goto("relay/usagerecord/?day=30d")
        page.locator("a", has_text="Filters").first.click()
        page.select_option("[name=team]", str(team.pk))
        with page.expect_navigation():
            page.get_by_role("button", name="Apply Filters").click()
        return page.url, page.locator(".b-sums").inner_text()

    url, totals = browse(narrow)
    assert "day=30d" in url and f"team={team.pk}" in url
    assert str(UsageRecord.objects.filter(team_id=team.pk).count()) in totals
    assert "$1,000.00" not in totals


def test_the_links_of_a_key_lead_to_its_calls_and_to_no_others(browse: Browse) -> None:
    """A server takes `?key=` out of relay paths, where it is a secret; here it is which key one looks at."""
    one, other = (ApiKey.objects.create(name=name, public_id=name, digest=digest_of(name)) for name in ("one", "other"))
    make_record(timezone.now(), key_id=one.pk, key_name="one", cost_nanos=10**9)
    make_record(timezone.now(), key_id=other.pk, key_name="other")

    def follow(page: Any) -> tuple[str, str, str]:
        page.goto("")
        with page.expect_navigation():
            page.locator("section", has_text="Top keys").get_by_role("link", name="one").click()
        listed = page.locator("#result_list").inner_text()
        page.goto(f"reports/usage/?day=today&by=model&key={one.pk}")
        report = page.locator(".b-figures").inner_text()
        page.goto("explain/?key=one&model=claude-sonnet-5-5")
        return listed, report, page.locator("[name=key]").input_value()

    listed, report, explained = browse(follow)
    assert ("one" in listed, "other" in listed) == (True, False)
    assert "$1.00" in report and "$1.006" not in report
    assert explained == "one"


def test_a_record_is_corrected_with_a_reason(browse: Browse) -> None:
    record = make_record(timezone.now())

    def correct(page: Any) -> str:
        page.goto(f"relay/usagerecord/{record.pk}/change/")
        page.get_by_text("Correct the figures").click()
        page.fill("#id_output_tokens", "250")
        page.fill("#id_reason", "the provider's bill")
        page.click("[name=_save]")
        return str(page.get_by_text("The correction is booked").inner_text())

    assert "booked" in browse(correct)
    assert UsageCorrection.objects.get().output_tokens == 50


def test_the_sidebar_opens_on_a_phone(browse: Browse) -> None:
    def open_it(page: Any) -> tuple[bool, bool]:
        page.goto("")
        link = page.locator("#nav-sidebar-apps a", has_text="Usage records")
        before = link.is_visible() and link.bounding_box()["x"] >= 0
        page.locator("span", has_text="dock_to_right").locator("visible=true").first.click()
        page.wait_for_timeout(500)
        return before, link.is_visible() and link.bounding_box()["x"] >= 0

    assert browse(open_it, width=390) == (False, True)
