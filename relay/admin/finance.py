"""Corrections, billing periods and quarantine in the admin."""

from __future__ import annotations

from datetime import date
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.paginator import InfinitePaginator

from relay import demo
from relay.models import BillingPeriod, Quarantine, UsageCorrection
from relay.quarantine import retry
from relay.reports import report_zone
from relay.spans import midnight
from relay_site.display import badge, usd
from relay_site.model_admin import BatonModelAdmin, ReadOnlyAdmin


@admin.register(UsageCorrection)
class UsageCorrectionAdmin(ReadOnlyAdmin):
    list_display = ("created_at", "record", "author", "reason", "fields_changed", "cost", "booked_at")
    search_fields = ("record_id", "author", "reason")
    search_help_text = "Call id, author or reason"
    list_display_links = None
    paginator = InfinitePaginator
    show_full_result_count = False
    empty_title = "No correction yet"
    empty_text = (
        "Records are never overwritten. Open a usage record, change its figures and give a reason: that is one."
    )

    @display(description="Record")
    def record(self, correction: UsageCorrection) -> SafeString:
        url = reverse("admin:relay_usagerecord_change", args=[correction.record_id])
        return format_html('<a class="b-link b-mono" href="{}">{}</a>', url, correction.record_id)

    @display(description="Changed")
    def fields_changed(self, correction: UsageCorrection) -> str:
        return ", ".join(name.replace("_", " ") for name in correction.changes)

    @display(description="Cost, USD")
    def cost(self, correction: UsageCorrection) -> str:
        sign = "+" if correction.cost_nanos > 0 else ""
        return sign + usd(correction.cost_nanos)


class BillingPeriodForm(forms.ModelForm):
    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        start, end = cleaned.get("start"), cleaned.get("end")
        if start and end:
            others = BillingPeriod.objects.exclude(pk=self.instance.pk).filter(start__lt=end, end__gt=start)
            if end <= start:
                raise ValidationError("A period ends after it starts; its end is the first day that is not part of it.")
            if clash := others.first():
                raise ValidationError(f"{clash} covers a part of this time: periods don't overlap.")
        return cleaned


@admin.register(BillingPeriod)
class BillingPeriodAdmin(BatonModelAdmin):
    form = BillingPeriodForm
    list_display = ("period", "start", "last_day", "state", "closed_at", "closed_by", "report")
    fields = ("start", "end")
    actions = ("close", "reopen")
    empty_title = "No billing period yet"
    empty_text = (
        "Add a month, and close it when its figures are agreed: changes that come later then count "
        "in the next open period, as corrections."
    )

    def has_delete_permission(self, request: HttpRequest, obj: BillingPeriod | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: BillingPeriod | None = None) -> bool:
        return bool(super().has_change_permission(request, obj)) and (obj is None or obj.closed_at is None)

    @display(description="Period", ordering="start")
    def period(self, period: BillingPeriod) -> str:
        return str(period)

    @display(description="Last day", ordering="end")
    def last_day(self, period: BillingPeriod) -> date:
        return last_day(period)

    @display(description="State", ordering="closed_at")
    def state(self, period: BillingPeriod) -> SafeString:
        return badge("closed", "neutral") if period.closed_at else badge("open", "success")

    @display(description="Report")
    def report(self, period: BillingPeriod) -> SafeString:
        url = reverse("admin:usage_report")
        query = f"from={period.start}&to={last_day(period)}&by=team"
        return format_html('<a class="b-link" href="{}?{}">By team</a>', url, query)

    @action(description="Close: later changes count in the next open period", permissions=["change"])
    def close(self, request: HttpRequest, queryset: QuerySet[BillingPeriod]) -> None:
        today = timezone.now().astimezone(report_zone()).date()
        for period in queryset.filter(closed_at=None):
            if period.end > today:
                self.message_user(request, f"{period} is not over yet: it ends on {last_day(period)}.", messages.ERROR)
                continue
            if demo.in_period(midnight(period.start, report_zone()), midnight(period.end, report_zone())):
                said = f"{period} holds made-up demo records. Remove them first: manage.py seed_demo --remove"
                self.message_user(request, said, messages.ERROR)
                continue
            period.closed_at, period.closed_by = timezone.now(), request.user.get_username()
            period.save(update_fields=["closed_at", "closed_by"])
            self.log_change(request, period, "Closed.")
            self.message_user(request, f"{period} is closed.", messages.SUCCESS)

    @action(description="Open again", permissions=["change"])
    def reopen(self, request: HttpRequest, queryset: QuerySet[BillingPeriod]) -> None:
        for period in queryset.exclude(closed_at=None):
            period.closed_at, period.closed_by = None, ""
            period.save(update_fields=["closed_at", "closed_by"])
            self.log_change(request, period, "Opened again.")
            self.message_user(request, f"{period} is open again.", messages.WARNING)


def last_day(period: BillingPeriod) -> date:
    return date.fromordinal(period.end.toordinal() - 1)


@admin.register(Quarantine)
class QuarantineAdmin(ReadOnlyAdmin):
    list_display = ("at", "record_id", "error", "state", "resolved_at")
    list_filter = (("resolved_at", admin.EmptyFieldListFilter),)
    search_fields = ("record_id", "error")
    fields = ("at", "record_id", "error", "resolved_at")
    actions = ("try_again",)
    empty_title = "Nothing in quarantine"
    empty_text = "Here wait journal entries that the database refused. None is waiting: every call is booked."

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("relay.change_quarantine")

    @display(description="State")
    def state(self, row: Quarantine) -> SafeString:
        return badge("resolved", "neutral") if row.resolved_at else badge("waits", "danger")

    @action(description="Try again", permissions=["retry"])
    def try_again(self, request: HttpRequest, queryset: QuerySet[Quarantine]) -> None:
        rows = list(queryset.filter(resolved_at=None))
        done = sum(retry(row, now=timezone.now()) for row in rows)
        if done:
            self.message_user(request, f"Booked: {done} of {len(rows)}.", messages.SUCCESS)
        if done < len(rows):
            text = f"Refused again: {len(rows) - done}. The reason is in the list; remove it and try again."
            self.message_user(request, text, messages.ERROR)
