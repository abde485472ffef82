"""How the admin looks and what its sidebar holds: data for unfold, read by the settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy

# Teal, one step darker than usual, so that white on 600 and 500 on the dark ground both keep 4.5 : 1.
PRIMARY = {
    "50": "oklch(98.4% .014 180.72)",
    "100": "oklch(95.3% .051 180.801)",
    "200": "oklch(91% .096 180.426)",
    "300": "oklch(85.5% .138 181.071)",
    "400": "oklch(77.7% .152 181.912)",
    "500": "oklch(70.4% .14 182.503)",
    "600": "oklch(51.1% .096 186.391)",
    "700": "oklch(43.7% .078 188.216)",
    "800": "oklch(38.6% .063 188.416)",
    "900": "oklch(31% .05 189)",
    "950": "oklch(27.7% .046 192.524)",
}


def asset(path: str) -> Callable[[HttpRequest], str]:
    return lambda request: static(path)


def allowed(*permissions: str) -> Callable[[HttpRequest], bool]:
    return lambda request: all(request.user.has_perm(permission) for permission in permissions)


def item(title: str, icon: str, url: str, *permissions: str) -> dict[str, Any]:
    """Return one sidebar entry, shown to those who hold all `permissions`."""
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{url}"), "permission": allowed(*permissions)}


SIDEBAR = [
    {
        "items": [
            item("Dashboard", "monitoring", "index"),
            item("Live calls", "bolt", "live", "relay.view_usagerecord"),
            item("Usage report", "stacked_bar_chart", "usage_report", "relay.view_usageday"),
        ]
    },
    {
        "title": "Clients",
        "items": [
            item("API keys", "key", "apikeys_apikey_changelist", "apikeys.view_apikey"),
            item("Teams", "groups", "apikeys_team_changelist", "apikeys.view_team"),
        ],
    },
    {
        "title": "Upstreams",
        "items": [
            item("Accounts", "cloud", "accounts_account_changelist", "accounts.view_account"),
            item("Account groups", "folder", "accounts_accountgroup_changelist", "accounts.view_accountgroup"),
            item("Why there", "alt_route", "explain", "apikeys.view_apikey", "accounts.view_account"),
            item("Account events", "history", "accounts_accountevent_changelist", "accounts.view_accountevent"),
        ],
    },
    {
        "title": "Usage and money",
        "items": [
            item("Usage records", "receipt_long", "relay_usagerecord_changelist", "relay.view_usagerecord"),
            item("Corrections", "edit_note", "relay_usagecorrection_changelist", "relay.view_usagecorrection"),
            item("Prices", "sell", "relay_price_changelist", "relay.view_price"),
            item("Billing periods", "calendar_month", "relay_billingperiod_changelist", "relay.view_billingperiod"),
            item("Quarantine", "report", "relay_quarantine_changelist", "relay.view_quarantine"),
        ],
    },
    {
        "title": "System",
        "items": [
            item("Users", "person", "auth_user_changelist", "auth.view_user"),
            item("Roles", "badge", "auth_group_changelist", "auth.view_group"),
            item(
                "Scheduled tasks",
                "schedule",
                "django_celery_beat_periodictask_changelist",
                "django_celery_beat.view_periodictask",
            ),
            item("Audit trail", "policy", "auditlog_logentry_changelist", "auditlog.view_logentry"),
        ],
    },
]


def environment(request: HttpRequest) -> list[str] | None:
    """The label in the head of every page, while made-up figures stand among the real ones."""
    from relay import demo

    return ["Demo", "warning"] if request.user.is_authenticated and demo.exists() else None


UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Baton",
    "SITE_HEADER": "Baton",
    "SITE_SUBHEADER": "LLM relay",
    "SITE_SYMBOL": "conversion_path",
    "SITE_URL": None,
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": asset("baton/favicon.svg")}],
    "ENVIRONMENT": "relay_site.admin.environment",
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_BACK_BUTTON": True,
    "STYLES": [asset("baton/baton.css")],
    "SCRIPTS": [asset("baton/baton.js")],
    "COLORS": {"primary": PRIMARY},
    "SIDEBAR": {"show_search": True, "command_search": False, "navigation": SIDEBAR},
}
