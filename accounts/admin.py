"""Accounts, their groups and their events in the admin. What the relay knows of them is added in relay/admin."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import Count, Max, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.debug import sensitive_post_parameters
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display
from unfold.paginator import InfinitePaginator

from accounts.account_rows import note_switch
from accounts.forms import CREDENTIAL, REST, SETTING, AccountForm, account_form, conditions
from accounts.kinds import kinds
from accounts.models import Account, AccountEvent, AccountGroup
from accounts.snapshot import account_of
from accounts.status import Status, statuses
from relay_site.display import badge, time_left
from relay_site.model_admin import BatonModelAdmin, DeletedFilter, ReadOnlyAdmin, SoftDeleteAdmin

TONES = {"ready": "success", "resting": "warning", "fault": "danger", "expired": "danger"}
EVENTS_SHOWN = 20
REST_TEXT = "Empty: the default shown. 0: no rest. A reset time that the upstream names counts before these."


def state_text(found: Status, *, now: datetime) -> str:
    """The words of the badge: `resting 212 s: 429`."""
    if found.state == "fault":
        return "credential fault" if "credential" in found.cause else "fault"
    if found.state != "resting" or found.until is None:
        return found.state
    left = time_left((found.until - now).total_seconds())
    models = f"{len(found.resting)} model{'s' if len(found.resting) > 1 else ''} " if found.partial else ""
    return f"{models}resting {left}: {found.cause}"


def fault_of(account: Account) -> str:
    """What keeps the row from being used, in words without secrets; "" = nothing."""
    known = account_of(account)
    return known.fault or "; ".join(kinds()[account.kind].check(known))


def latest_events(account_ids: list[int]) -> dict[int, AccountEvent]:
    """Return each account's newest event; two queries."""
    rows = AccountEvent.objects.filter(account_id__in=account_ids).order_by()
    newest = rows.values("account_id").annotate(newest=Max("id")).values_list("newest", flat=True)
    return {event.account_id: event for event in AccountEvent.objects.filter(id__in=list(newest))}


class AccountAdmin(SoftDeleteAdmin):
    list_display: tuple[str, ...] = ("name", "kind", "state", "last", "priority", "slots_shown")
    list_filter = (("kind", ChoicesDropdownFilter), "active", "groups", DeletedFilter)
    search_fields = ("name", "description")
    search_help_text = "Name or description"
    change_form_outer_before_template = "baton/account_status.html"
    change_form_outer_after_template = "baton/account_events.html"
    empty_title = "No account yet"
    empty_text = (
        "An account is one login at a provider: Baton carries your clients' calls to it. "
        "Add one with its API key, then use Test connection on its page."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conditional_fields = conditions()

    def get_form(self, request: HttpRequest, obj: Account | None = None, **kwargs: Any) -> type[AccountForm]:
        form: type[AccountForm] = super().get_form(request, obj, **{**kwargs, "form": account_form()})
        return form

    def get_fieldsets(
        self, request: HttpRequest, obj: Account | None = None
    ) -> list[tuple[str | None, dict[str, Any]]]:
        names = account_form().declared_fields
        credentials = [name for name in names if name.startswith(CREDENTIAL)]
        settings = [name for name in names if name.startswith(SETTING)]
        rests = [name for name in names if name.startswith(REST)]
        if obj and not self.has_change_permission(request, obj):
            credentials, settings, rests = [], [], []
        hidden = {"fields": ["name", "kind", "description", "active"]}
        sets: list[tuple[str | None, dict[str, Any]]] = [
            (None, hidden),
            ("Credential", {"fields": credentials, "description": "Encrypted. It can be written here, never read."}),
            (
                "Where it calls",
                {"fields": ["base_url", *settings, *(["proxy_url"] if credentials else []), "model_map"]},
            ),
            ("When it is chosen", {"fields": ["priority", "weight", "slots", "groups", "on_disconnect", "expires_at"]}),
            ("Money", {"fields": ["provider"]}),
            ("Rest after failure (seconds)", {"fields": rests, "classes": ["collapse"], "description": REST_TEXT}),
        ]
        return [(title, options) for title, options in sets if options["fields"]]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Account]:
        queryset: QuerySet[Account] = super().get_queryset(request)
        return queryset.prefetch_related("groups", "limits")

    def save_model(self, request: HttpRequest, obj: Account, form: Any, change: Any) -> None:
        super().save_model(request, obj, form, change)
        if change and "active" in form.changed_data:
            note_switch(obj)

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        changelist = super().get_changelist_instance(request)
        self.attach(list(changelist.result_list))
        return changelist

    def attach(self, accounts: list[Any]) -> None:
        """Give each row what the list shows beside its own columns."""
        now = timezone.now()
        found = statuses(accounts, faults={row.pk: fault_of(row) for row in accounts}, now=now)
        latest = latest_events([row.pk for row in accounts])
        for row in accounts:
            row.status, row.latest, row.seen_at = found[row.pk], latest.get(row.pk), now

    @method_decorator(sensitive_post_parameters())
    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        response: HttpResponse = super().changeform_view(request, object_id, form_url, extra_context)
        return response

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        account = self.get_object(request, object_id)
        more: dict[str, Any] = {}
        if account:
            self.attach([account])
            events = AccountEvent.objects.filter(account_id=account.pk)[:EVENTS_SHOWN]
            more = {"account": account, "state": self.state(account), "events": events}
        response: HttpResponse = super().change_view(request, object_id, form_url, {**more, **(extra_context or {})})
        return response

    @display(description="State")
    def state(self, account: Any) -> SafeString:
        found: Status = account.status
        return badge(state_text(found, now=account.seen_at), TONES.get(found.state, "neutral"), title=found.cause)

    @display(description="Last event")
    def last(self, account: Any) -> str:
        event: AccountEvent | None = account.latest
        if event is None:
            return "-"
        ago = time_left((account.seen_at - event.at).total_seconds())
        return format_html('<span title="{}">{} ago: {} {}</span>', event.at, ago, event.kind, event.cause)

    @display(description="Slots", ordering="slots")
    def slots_shown(self, account: Account) -> str:
        return str(account.slots) if account.slots else "unlimited"


@admin.register(AccountGroup)
class AccountGroupAdmin(BatonModelAdmin):
    list_display: tuple[str, ...] = ("name", "description", "members")
    search_fields = ("name",)
    empty_title = "No account group yet"
    empty_text = (
        "A group names several accounts at once. A key that is bound to a group uses its accounts and nothing else."
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[AccountGroup]:
        alive = Count("accounts", filter=Q(accounts__deleted_at=None))
        queryset: QuerySet[AccountGroup] = super().get_queryset(request).annotate(member_count=alive)
        return queryset

    @display(description="Accounts", ordering="member_count")
    def members(self, group: Any) -> SafeString:
        url = reverse("admin:accounts_account_changelist")
        return format_html('<a class="b-link" href="{}?groups__id__exact={}">{}</a>', url, group.pk, group.member_count)


@admin.register(AccountEvent)
class AccountEventAdmin(ReadOnlyAdmin):
    list_display = ("at", "account", "kind", "model_shown", "cause", "until", "http_status")
    list_filter = ("kind",)
    search_fields = ("account_name", "model", "cause")
    search_help_text = "Account, model or cause"
    paginator = InfinitePaginator
    show_full_result_count = False
    list_display_links = None
    empty_title = "No event yet"
    empty_text = "Rests, recoveries and rejected credentials of the accounts are listed here as they happen."

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        return lookup == "account_id" or bool(super().lookup_allowed(lookup, value, request))

    @display(description="Account", ordering="account_name")
    def account(self, event: AccountEvent) -> SafeString:
        url = reverse("admin:accounts_account_change", args=[event.account_id])
        return format_html('<a class="b-link" href="{}">{}</a>', url, event.account_name)

    @display(description="Model", empty_value="all")
    def model_shown(self, event: AccountEvent) -> str | None:
        return event.model or None
