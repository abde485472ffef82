"""The admin's own pages: the dashboard, the usage report, and what an operator does to an account."""

from __future__ import annotations

import uuid
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from accounts.models import Account
from apikeys.models import ApiKey, Team
from relay import attention, dashboard, demo, demo_month, exports, internal, usage_report
from relay.models import UsageRecord
from relay_site.display import count, milliseconds


def dashboard_context(request: HttpRequest) -> dict[str, Any]:
    """What the admin's index shows; each part only to those who may see the pages behind it."""
    now, user = timezone.now(), request.user
    sees_usage = user.has_perm("relay.view_usagerecord")
    return {
        "dashboard": dashboard.build(request.GET.get("by", "hour"), now=now) if sees_usage else None,
        "findings": attention.findings(user, now=now),
        "accounts": attention.account_states(now=now) if user.has_perm("accounts.view_account") else None,
        "has_account": Account.objects.alive().exists(),
        "has_key": ApiKey.objects.alive().exists(),
        "has_record": UsageRecord.objects.exists(),
        "has_demo": demo.exists(),
        "zone": settings.REPORT_TIME_ZONE,
    }


@permission_required("accounts.change_account", raise_exception=True)
@require_POST
def test_account(request: HttpRequest, account_id: int) -> HttpResponse:
    """Make one real call through the account and say how it went."""
    account = get_object_or_404(Account.objects.alive(), pk=account_id)
    try:
        result = internal.test_connection(account.pk)
    except internal.RelayUnreachable as error:
        messages.error(request, str(error))
    else:
        messages.add_message(request, messages.SUCCESS if result["ok"] else messages.ERROR, told(account, result))
    return redirect("admin:accounts_account_change", account.pk)


def told(account: Account, result: dict[str, Any]) -> SafeString:
    """The result in a sentence, with a link to the record that booked it."""
    if result["ok"]:
        said = f"{account.name} answered with {result['model']} in {milliseconds(result['duration_ms'])}."
    else:
        status = f" ({result['status']})" if result.get("status") else ""
        said = f"{account.name} can't be used{status}: {result['message']}"
    if not result.get("record"):
        return format_html("{}", said)
    url = reverse("admin:relay_usagerecord_change", args=[result["record"]])
    return format_html('{} <a class="b-link" href="{}">The call\'s record</a>', said, url)


@permission_required("accounts.change_account", raise_exception=True)
@require_POST
def end_rest(request: HttpRequest, account_id: int) -> HttpResponse:
    """End every rest of the account now."""
    account = get_object_or_404(Account.objects.alive(), pk=account_id)
    try:
        internal.clear_rest(account.pk)
    except internal.RelayUnreachable as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{account.name} may be called again. Its state here follows within seconds.")
    return redirect("admin:accounts_account_change", account.pk)


@permission_required(("apikeys.delete_apikey", "accounts.delete_account"), raise_exception=True)
@require_POST
def remove_demo(request: HttpRequest) -> HttpResponse:
    """Take the demo's data away; the roll-ups follow by themselves."""
    removed = demo_month.take_away(roll_up=False)
    messages.success(request, f"Removed: {count(removed)} demo records, with their keys, teams and accounts.")
    return redirect("admin:index")


@permission_required("relay.view_usageday", raise_exception=True)
def usage_report_page(request: HttpRequest) -> HttpResponseBase:
    """The report for finance, as a page or, with `format`, as a file."""
    asked = usage_report.read(request.GET, now=timezone.now())
    report = usage_report.build(asked)
    has_demo = demo.exists()
    name = f"usage-{asked.first}-to-{asked.last}{'-with-demo-data' if has_demo else ''}"
    if request.GET.get("format") == "csv":
        response = StreamingHttpResponse(exports.to_csv(report), content_type="text/csv; charset=utf-8")
        return as_file(response, f"{name}.csv")
    if request.GET.get("format") == "xlsx":
        return as_file(HttpResponse(exports.to_xlsx(report), content_type=XLSX), f"{name}.xlsx")
    context = {
        **admin.site.each_context(request),
        "title": "Usage report",
        "report": report,
        "rows": report.rows[: usage_report.ROWS],
        "left_out": max(0, len(report.rows) - usage_report.ROWS),
        "presets": usage_report.presets(asked),
        "groupings": usage_report.GROUPINGS,
        "measures": [(name, text) for name, (text, _) in usage_report.SHOWN.items()],
        "tags": known_tags(),
        "zone": settings.REPORT_TIME_ZONE,
        "narrowed": narrowed(asked),
        "has_demo": has_demo,
    }
    return TemplateResponse(request, "baton/usage_report.html", context)


XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"


def as_file(response: HttpResponseBase, name: str) -> HttpResponseBase:
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def known_tags() -> list[str]:
    """The names of tags that keys carry; clients may send others."""
    found = ApiKey.objects.exclude(tags={}).values_list("tags", flat=True)[:1000]
    return sorted({name for tags in found for name in tags})


def narrowed(asked: usage_report.Asked) -> list[tuple[str, str, str]]:
    """Dimension, value and the address without it, for each value that the report is narrowed to."""
    models: dict[str, Any] = {"team": Team, "key": ApiKey, "account": Account}
    found = []
    for dimension, value in asked.where.items():
        rows = models[dimension].objects.filter(pk=value) if dimension in models and value.isdecimal() else None
        row = rows.first() if rows is not None else None
        found.append((dimension, str(row or value), f"?{asked.query(**{dimension: None})}"))
    return found


@permission_required("relay.view_usagerecord", raise_exception=True)
def live_page(request: HttpRequest) -> HttpResponse:
    """Calls in flight and just ended; everything on it comes through the WebSocket."""
    context = {
        **admin.site.each_context(request),
        "title": "Live calls",
        "records_url": reverse("admin:relay_usagerecord_changelist"),
        "record_url": reverse("admin:relay_usagerecord_change", args=[uuid.UUID(int=0)]),
    }
    return TemplateResponse(request, "baton/live.html", context)
