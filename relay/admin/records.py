"""Usage records in the admin: a list that stays fast over millions, and each call readable to the last line."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Q, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.paginator import InfinitePaginator

from relay.admin import record_filters as filters
from relay.admin.record_page import OWNERS, CorrectionForm, page_context
from relay.corrections import COUNTS, correct
from relay.models import UsageRecord
from relay.reports import report_zone
from relay.time_choice import Span
from relay_site.display import badge, count, milliseconds, usd
from relay_site.model_admin import BatonModelAdmin

TOKENS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
    "output_tokens",
    "reasoning_tokens",
)
TOKEN_NAMES = {
    "input_tokens": "Input",
    "cache_read_input_tokens": "Cache read",
    "cache_creation_5m_input_tokens": "Cache write, 5 min",
    "cache_creation_1h_input_tokens": "Cache write, 1 h",
    "output_tokens": "Output",
    "reasoning_tokens": "of it reasoning",
}
TONES = {"ok": "success", "client_disconnected": "warning", "refused": "warning"}
HEAVY = ("lines", "attempts", "candidates", "flags", "provider_usage", "tags")
LONGEST_TOTAL_DAYS = 93
OTHER_IDS = ("response_id", "upstream_request_id", "session")
MOST = 1000  # of one session; more can't be listed by a search


def status_badge(record: UsageRecord) -> SafeString:
    return badge(record.status.replace("_", " "), TONES.get(record.status, "danger"), title=record.error)


@admin.register(UsageRecord)
class UsageRecordAdmin(BatonModelAdmin):
    list_display = ("at", "status_shown", "key", "model_shown", "account", "tokens", "cost", "took")
    list_filter = (
        filters.DayFilter,
        filters.TeamFilter,
        filters.KeyFilter,
        filters.AccountFilter,
        filters.ModelFilter,
        filters.ProviderFilter,
        filters.StatusFilter,
        filters.FiguresFilter,
    )
    search_fields = ("id",)
    search_help_text = "Call id, response id, upstream request id or session"
    paginator = InfinitePaginator
    show_full_result_count = False
    sortable_by = ()
    ordering = ("-id",)
    actions = None
    list_before_template = "baton/record_totals.html"
    form = CorrectionForm
    change_form_outer_before_template = "baton/record.html"
    fieldsets = (
        (
            "Correct the figures",
            {"fields": (*COUNTS, "cost_nanos", "usage_source", "status"), "classes": ("collapse",)},
        ),
        ("Correct whose usage it is", {"fields": (*OWNERS, "end_user", "session", "tags"), "classes": ("collapse",)}),
        (
            "Correct what answered",
            {"fields": ("provider", "upstream_model", "response_model", "service_tier"), "classes": ("collapse",)},
        ),
        ("Why", {"fields": ("reason",)}),
    )
    empty_title = "No call in this time"
    empty_text = (
        "Every call leaves one record here within half a second of its end. "
        "Make one with the curl that is shown with a new API key, or choose another time in Filters."
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: UsageRecord | None = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        totals = path("totals/", self.admin_site.admin_view(self.totals_view), name="relay_usagerecord_totals")
        urls: list[URLPattern] = super().get_urls()
        return [totals, *urls]

    def get_queryset(self, request: HttpRequest) -> QuerySet[UsageRecord]:
        queryset: QuerySet[UsageRecord] = super().get_queryset(request)
        is_list = request.resolver_match and request.resolver_match.url_name == "relay_usagerecord_changelist"
        return queryset.defer(*HEAVY) if is_list else queryset

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[UsageRecord], search_term: str
    ) -> tuple[QuerySet[UsageRecord], bool]:
        """By the index of each kind of id, whatever the filters say."""
        term = search_term.strip()
        if not term:
            return queryset, False
        everything = self.get_queryset(request).order_by("-id")
        if bounds := id_bounds(term):
            return everything.filter(id__range=bounds), False
        found = {
            pk for name in OTHER_IDS for pk in everything.filter(**{name: term}).values_list("pk", flat=True)[:MOST]
        }
        return everything.filter(pk__in=found), False

    def totals_view(self, request: HttpRequest) -> HttpResponse:
        """Sums of the list's filter, fetched after the list, so that they never hold it back."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        changelist = self.get_changelist_instance(request)
        span = next(spec.span for spec in changelist.filter_specs if isinstance(spec, filters.DayFilter))
        end = span.end or timezone.now()
        bounded = changelist.query or (span.start and (end - span.start).days <= LONGEST_TOTAL_DAYS)
        sums = changelist.queryset.order_by().aggregate(**SUMS) if bounded else None
        tokens = [(TOKEN_NAMES[name], (sums or {}).get(name)) for name in TOKENS]
        context = {"time": said(span), "zone": settings.REPORT_TIME_ZONE, "sums": sums, "tokens": tokens}
        return TemplateResponse(request, "baton/record_sums.html", context)

    def get_fieldsets(self, request: HttpRequest, obj: UsageRecord | None = None) -> Any:
        return super().get_fieldsets(request, obj) if self.has_change_permission(request, obj) else ()

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        record = self.get_object(request, object_id)
        more: dict[str, Any] = {"show_save_and_add_another": False, "show_save_and_continue": False}
        if record:
            more |= {**page_context(record), "status": status_badge(record), "title": f"Call {record.pk}"}
        response: HttpResponse = super().change_view(request, object_id, form_url, {**more, **(extra_context or {})})
        return response

    def save_form(self, request: HttpRequest, form: Any, change: Any) -> UsageRecord:
        record: UsageRecord = form.instance
        return record

    def save_model(self, request: HttpRequest, obj: UsageRecord, form: Any, change: Any) -> None:
        """The form has made sure that this succeeds: see `CorrectionForm.clean`."""
        form.correction = correct(
            obj.pk, form.changes(), author=request.user.get_username(), reason=form.cleaned_data["reason"]
        )

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: Any) -> None:
        """Records have no relations."""

    def response_change(self, request: HttpRequest, obj: UsageRecord) -> HttpResponse:
        self.message_user(request, "The correction is booked; reports follow within a minute.", messages.SUCCESS)
        return redirect("admin:relay_usagerecord_change", obj.pk)

    @display(description=f"Time, {settings.REPORT_TIME_ZONE}")
    def at(self, record: UsageRecord) -> SafeString:
        local = timezone.localtime(record.created_at)
        said = f"{local:%Y-%m-%d %H:%M:%S %Z}, call {record.id}"
        return format_html('<span title="{}">{}</span>', said, f"{local:%m-%d %H:%M:%S}")

    @display(description="Status")
    def status_shown(self, record: UsageRecord) -> SafeString:
        return status_badge(record)

    @display(description="Key")
    def key(self, record: UsageRecord) -> SafeString:
        team = record.team_name or "no team"
        return format_html('<span title="{}">{}</span>', team, record.key_name or "-")

    @display(description="Model")
    def model_shown(self, record: UsageRecord) -> SafeString:
        if record.upstream_model in {"", record.requested_model}:
            return format_html("{}", record.requested_model or "-")
        return format_html('<span title="sent as {}">{}</span>', record.upstream_model, record.requested_model)

    @display(description="Account", empty_value="-")
    def account(self, record: UsageRecord) -> str | None:
        return record.account_name or None

    @display(description="Tokens in, out")
    def tokens(self, record: UsageRecord) -> SafeString:
        if all(getattr(record, name) is None for name in TOKENS):
            return format_html("-")
        known = [value for name in TOKENS[:4] if (value := getattr(record, name)) is not None]
        given = count(sum(known)) if known else "-"
        return format_html("{} &middot; {}", given, count(record.output_tokens))

    @display(description="Cost, USD")
    def cost(self, record: UsageRecord) -> str | SafeString:
        return badge("unpriced", "danger") if record.unpriced else usd(record.cost_nanos)

    @display(description="Duration")
    def took(self, record: UsageRecord) -> SafeString:
        first = f"first token after {milliseconds(record.time_to_first_token_ms)}"
        return format_html('<span title="{}">{}</span>', first, milliseconds(record.duration_ms))


SUMS: dict[str, Any] = {
    "calls": Count("id"),
    "failed": Count("id", filter=~Q(status="ok")),
    "unpriced_calls": Count("id", filter=Q(unpriced=True)),
    "cost_nanos": Sum("cost_nanos"),
    **{name: Sum(name) for name in TOKENS},
}


def said(span: Span) -> str:
    """The filter's time in words, in the report's zone."""
    start = f"{span.start.astimezone(report_zone()):%Y-%m-%d %H:%M}" if span.start else "the beginning"
    return f"{start} to " + (f"{span.end.astimezone(report_zone()):%Y-%m-%d %H:%M}" if span.end else "now")


def id_bounds(term: str) -> tuple[UUID, UUID] | None:
    """Return the least and greatest call id that begin with these hex digits (eight at least); None for other text."""
    digits = term.replace("-", "").lower()
    if not 8 <= len(digits) <= 32 or set(digits) - set("0123456789abcdef"):
        return None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
