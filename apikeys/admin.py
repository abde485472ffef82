"""Keys and teams in the admin. A new key's secret is shown once, in the answer to the form that made it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.debug import sensitive_post_parameters
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import RelatedDropdownFilter
from unfold.decorators import action, display

from apikeys.authentication import new_secret
from apikeys.forms import ApiKeyForm, BindingForm, LimitForm, RotateForm, TeamLimitForm
from apikeys.models import ApiKey, Binding, Limit, Team
from apikeys.rotation import rotate
from relay_site.display import badge
from relay_site.model_admin import DeletedFilter, SoftDeleteAdmin


class LimitInline(TabularInline):
    model = Limit
    form = LimitForm
    extra = 0
    hide_title = True


class TeamLimitInline(LimitInline):
    form = TeamLimitForm


class BindingInline(TabularInline):
    model = Binding
    form = BindingForm
    extra = 0
    hide_title = True
    verbose_name_plural = "bindings: the only accounts that this key uses"


def key_state(key: ApiKey, *, now: datetime) -> tuple[str, str]:
    """Return the state in a word and its tone."""
    if key.deleted_at:
        return "deleted", "neutral"
    if not key.active:
        return "off", "neutral"
    if key.expires_at and key.expires_at <= now:
        return "expired", "danger"
    if key.expires_at and key.expires_at <= now + timedelta(days=7):
        return "expires soon", "warning"
    return "active", "success"


class ApiKeyAdmin(SoftDeleteAdmin):
    form = ApiKeyForm
    inlines = (LimitInline, BindingInline)
    list_display: tuple[str, ...] = ("name", "shown_id", "team", "state", "families_shown", "expires_at")
    list_select_related = ("team",)
    list_filter = (("team", RelatedDropdownFilter), "active", DeletedFilter)
    search_fields = ("name", "public_id", "team__name")
    search_help_text = "Name, public id or team"
    actions = ("disable", "enable", "restore")
    change_form_outer_before_template = "baton/key_status.html"
    empty_title = "No API key yet"
    empty_text = "Clients present a Baton key instead of the provider's. Add one; it is shown once, ready to copy."
    fieldsets = (
        (None, {"fields": ("name", "team", "active", "expires_at")}),
        ("What it may call", {"fields": ("families", "model_patterns", "ip_allow")}),
        ("What stands in its records", {"fields": ("tags",)}),
    )

    def get_urls(self) -> list[URLPattern]:
        rotate = self.admin_site.admin_view(sensitive_post_parameters()(self.rotate_view))
        own = path("<int:key_id>/rotate/", rotate, name="apikeys_apikey_rotate")
        urls: list[URLPattern] = super().get_urls()
        return [own, *urls]

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: Any) -> None:
        if not change:
            obj.public_id, secret, obj.digest = new_secret()
            # On the request, not the row: it lives as long as this answer and is written nowhere.
            request.new_secret = secret  # type: ignore[attr-defined]
        super().save_model(request, obj, form, change)

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        once = {"show_save_and_continue": False, "show_save_and_add_another": False}
        response: HttpResponse = super().add_view(request, form_url, {**once, **(extra_context or {})})
        return response

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        return self.secret_page(request, obj, request.new_secret, title=f"The key {obj.name} is made")  # type: ignore[attr-defined]

    def rotate_view(self, request: HttpRequest, key_id: int) -> HttpResponse:
        """A new secret for the same key; the old one ends at once or after the overlap that was chosen."""
        key = self.get_object(request, str(key_id))
        if key is None or key.deleted_at:
            raise Http404
        if not self.has_change_permission(request, key):
            raise PermissionDenied
        form = RotateForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            secret = rotate(key, overlap=timedelta(seconds=int(form.cleaned_data["overlap"])), now=timezone.now())
            self.log_change(request, key, "Rotated.")
            return self.secret_page(request, key, secret, title=f"The key {key.name} is rotated")
        context = {**self.admin_site.each_context(request), "title": f"Rotate {key.name}", "key": key, "form": form}
        return TemplateResponse(request, "baton/key_rotate.html", {**context, "opts": self.opts})

    def secret_page(self, request: HttpRequest, key: ApiKey, secret: str, *, title: str) -> HttpResponse:
        context = {**self.admin_site.each_context(request), "title": title, "key": key, "secret": secret}
        root = request.build_absolute_uri("/").rstrip("/")
        page = TemplateResponse(request, "baton/key_secret.html", {**context, "opts": self.opts, "root": root})
        page["Cache-Control"] = "no-store"
        return page

    @display(description="Key", ordering="public_id")
    def shown_id(self, key: ApiKey) -> SafeString:
        return format_html('<span class="b-mono">rk_{}_...</span>', key.public_id)

    @display(description="State")
    def state(self, key: ApiKey) -> SafeString:
        return badge(*key_state(key, now=timezone.now()))

    @display(description="Families")
    def families_shown(self, key: ApiKey) -> str:
        return ", ".join(key.families) if key.families else "all"

    @action(description="Disable", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        self.switch(request, queryset, active=False)

    @action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        self.switch(request, queryset, active=True)

    def switch(self, request: HttpRequest, queryset: QuerySet[ApiKey], *, active: bool) -> None:
        word = "Enabled" if active else "Disabled"
        names = []
        for key in queryset.exclude(active=active):
            key.active = active
            key.save(update_fields=["active"])
            self.log_change(request, key, f"{word}.")
            names.append(key.name)
        self.message_user(request, f"{word}: {', '.join(names)}." if names else "Nothing to change.")


@admin.register(Team)
class TeamAdmin(SoftDeleteAdmin):
    inlines = (TeamLimitInline,)
    list_display = ("name", "cost_center", "description", "keys_shown")
    list_filter = (DeletedFilter,)
    search_fields = ("name", "cost_center", "description")
    empty_title = "No team yet"
    empty_text = "Teams own keys: reports add up by team, and its limits are shared by them, or each key's own."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Team]:
        queryset: QuerySet[Team] = super().get_queryset(request)
        return queryset.annotate(key_count=Count("keys", filter=Q(keys__deleted_at=None)))

    @display(description="Keys", ordering="key_count")
    def keys_shown(self, team: Any) -> SafeString:
        url = reverse("admin:apikeys_apikey_changelist")
        return format_html('<a class="b-link" href="{}?team__id__exact={}">{}</a>', url, team.pk, team.key_count)
