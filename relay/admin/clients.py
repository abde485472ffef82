"""What the relay adds to the keys' pages: when a key was last used, and where its limits stand."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display

from apikeys.admin import ApiKeyAdmin, key_state
from apikeys.keyring import load_rules
from apikeys.models import ApiKey
from relay import internal
from relay.call import LimitRule
from relay.models import UsageRecord
from relay.standings import Standing, standings
from relay_site.display import badge, time_left


def rules_of(keys: list[ApiKey]) -> dict[int, list[LimitRule]]:
    """Return the limits that hold for each key, its team's included."""
    rules = load_rules()
    return {key.pk: list(rules.of(key.pk, key.team_id)) for key in keys}


@admin.register(ApiKey)
class RelayedApiKeyAdmin(ApiKeyAdmin):
    list_display = (*ApiKeyAdmin.list_display, "limits", "used")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiKey]:
        # The newest record says when, by its index: a column of its own would be a write for every call.
        newest = UsageRecord.objects.filter(key_id=OuterRef("pk")).order_by("-id").values("created_at")[:1]
        queryset: QuerySet[ApiKey] = super().get_queryset(request)
        return queryset.annotate(used_at=Subquery(newest))

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        changelist = super().get_changelist_instance(request)
        keys: list[Any] = list(changelist.result_list)
        rules = rules_of(keys)
        every = [rule for found in rules.values() for rule in found]
        try:
            stand = {found.rule: found for found in standings(every, now=timezone.now().timestamp())}
        except internal.RelayUnreachable:
            stand = {}  # each row then says so: see `limits`
        for key in keys:
            key.standings = [stand[rule] for rule in rules[key.pk] if rule in stand]
            key.limit_count = len(rules[key.pk])
        return changelist

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        key: Any = self.get_object(request, object_id)
        more: dict[str, Any] = {}
        if key:
            now = timezone.now()
            more = {"state": badge(*key_state(key, now=now)), "used": self.used(key)}
            try:
                more["limits"] = standings(rules_of([key])[key.pk], now=now.timestamp())
            except internal.RelayUnreachable as error:
                more["limits_problem"] = f"Where the limits stand is not known: {error}"
        response: HttpResponse = super().change_view(request, object_id, form_url, {**more, **(extra_context or {})})
        return response

    @display(description="Limits")
    def limits(self, key: Any) -> str | SafeString:
        if not key.limit_count:
            return "none"
        if not key.standings:
            return format_html('<span title="The relay does not answer">{} set</span>', key.limit_count)
        nearest: Standing = max(key.standings, key=lambda found: found.share)
        return format_html('<div class="b-limit">{}<span class="b-note">{}</span></div>', nearest.bar, nearest.glance)

    @display(description="Last used", empty_value="never")
    def used(self, key: Any) -> str | None:
        if key.used_at is None:
            return None
        return f"{time_left((timezone.now() - key.used_at).total_seconds())} ago"
