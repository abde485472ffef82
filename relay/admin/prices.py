"""Prices in the admin: rows are never edited; saving a change ends what held and adds a version."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from import_export import fields, resources, widgets
from import_export.admin import ImportExportMixin
from unfold.contrib.filters.admin import DropdownFilter
from unfold.contrib.import_export.forms import ExportForm, ImportForm
from unfold.decorators import display
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminSplitDateTimeWidget

from relay.models import Price
from relay.prices import set_rates
from relay_site.display import badge, nanos_of, usd, usd_plain
from relay_site.form_fields import UsdField
from relay_site.model_admin import BatonModelAdmin

MOST_TOKENS = 2**31 - 1  # what the column holds
KEY = ("provider", "model", "meter", "tier", "above_tokens")


class PriceForm(forms.ModelForm):
    rate = UsdField(label="Rate", min_value=0, help_text="US dollars per million units (tokens, searches ...).")
    above_tokens = forms.IntegerField(
        label="Above tokens", min_value=0, max_value=MOST_TOKENS, initial=0, widget=UnfoldAdminIntegerFieldWidget()
    )
    valid_from = forms.SplitDateTimeField(
        required=False,
        widget=UnfoldAdminSplitDateTimeWidget(),
        help_text="Empty: from now on; for a meter that never had a price, from the beginning.",
    )

    class Meta:
        model = Price
        fields: ClassVar = [*KEY, "rate", "valid_from"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            self.initial["valid_from"] = None
            for name in KEY:
                if name in self.fields:
                    self.fields[name].disabled = True

    def _post_clean(self) -> None:
        """The row itself stays as it is: saving adds a version, see `PriceAdmin.save_model`."""


class UsdWidget(widgets.Widget):
    """Dollars in the file, nano-dollars in the row."""

    def clean(self, value: Any, row: Any = None, **kwargs: Any) -> int:
        return nanos_of(forms.DecimalField().clean(str(value)))

    def render(self, value: Any, obj: Any = None, **kwargs: Any) -> str:
        # An import shows what was there before: of a new row nothing.
        return "" if value is None else usd_plain(value)


class PriceResource(resources.ModelResource):
    rate = fields.Field(attribute="rate", column_name="usd_per_million", widget=UsdWidget())

    class Meta:
        model = Price
        fields = (*KEY, "rate", "valid_from", "valid_to", "source", "approved_by")
        export_order = fields
        import_id_fields = ()
        force_init_instance = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.author = ""

    def before_save_instance(self, instance: Price, row: Any, **kwargs: Any) -> None:
        self.author = kwargs["user"].get_username()

    def do_instance_save(self, instance: Price, is_create: bool) -> None:
        """A line of a file is a new version, as if it had been typed into the form."""
        set_rates(
            instance.provider,
            instance.model,
            {instance.meter: instance.rate},
            start=instance.valid_from,
            tier=instance.tier,
            above=instance.above_tokens or 0,
            author=self.author,
            source="import",
        )


class InForceFilter(DropdownFilter):
    title = "validity"
    parameter_name = "validity"
    all_option = ("", "In force now")

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("future", "Begins later"), ("past", "Ended"), ("every", "All versions")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Price]) -> QuerySet[Price]:
        now = timezone.now()
        conditions = {
            "every": Q(),
            "past": Q(valid_to__lte=now),
            "future": Q(valid_from__gt=now),
        }
        in_force = Q(valid_from__lte=now) & (Q(valid_to=None) | Q(valid_to__gt=now))
        return queryset.filter(conditions.get(self.value() or "", in_force))


class ProviderFilter(DropdownFilter):
    title = "provider"
    parameter_name = "provider"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = Price.objects.order_by("provider").values_list("provider", flat=True).distinct()
        return [(name, name) for name in names]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Price]) -> QuerySet[Price]:
        return queryset.filter(provider=self.value()) if self.value() else queryset


class MeterFilter(DropdownFilter):
    title = "meter"
    parameter_name = "meter"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = Price.objects.order_by("meter").values_list("meter", flat=True).distinct()
        return [(name, name) for name in names]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Price]) -> QuerySet[Price]:
        return queryset.filter(meter=self.value()) if self.value() else queryset


@admin.register(Price)
class PriceAdmin(ImportExportMixin, BatonModelAdmin):
    form = PriceForm
    resource_classes = (PriceResource,)
    import_form_class = ImportForm
    export_form_class = ExportForm
    list_display = ("model", "provider", "meter", "tier_shown", "dollars", "begins", "until", "source")
    list_filter = (InForceFilter, ProviderFilter, MeterFilter)
    search_fields = ("model", "provider")
    search_help_text = "Model or provider"
    actions = None
    sortable_by = ("dollars", "begins")
    change_form_outer_before_template = "baton/price_versions.html"
    empty_title = "No price yet"
    empty_text = "Run manage.py sync_prices to load the catalogue, or add a price: calls without one are unpriced."
    fieldsets = ((None, {"fields": (*KEY, "rate", "valid_from")}),)

    def has_delete_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        return False  # records name their prices for ever

    def save_model(self, request: HttpRequest, obj: Price, form: Any, change: Any) -> None:
        data = form.cleaned_data
        made = set_rates(
            data["provider"],
            data["model"],
            {data["meter"]: data["rate"]},
            start=data["valid_from"],
            tier=data["tier"],
            above=data["above_tokens"] or 0,
            author=request.user.get_username(),
        )
        obj.pk, obj.provider, obj.model, obj.meter = made[0].pk, data["provider"], data["model"], data["meter"]

    def response_add(self, request: HttpRequest, obj: Price, post_url_continue: str | None = None) -> HttpResponse:
        return self.to_versions(request, obj)

    def response_change(self, request: HttpRequest, obj: Price) -> HttpResponse:
        return self.to_versions(request, obj)

    def to_versions(self, request: HttpRequest, price: Price) -> HttpResponse:
        self.message_user(request, f"A new version of {price} is in the book.", messages.SUCCESS)
        query = urlencode({"q": price.model, "provider": price.provider, "meter": price.meter, "validity": "every"})
        return redirect(f"{reverse('admin:relay_price_changelist')}?{query}")

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        price = self.get_object(request, object_id)
        once: dict[str, Any] = {"show_save_and_continue": False, "show_save_and_add_another": False}
        if price:
            same = {name: getattr(price, name) for name in KEY}
            once["versions"] = Price.objects.filter(**same).order_by("-valid_from", "-id")[:50]
        response: HttpResponse = super().change_view(request, object_id, form_url, {**once, **(extra_context or {})})
        return response

    @display(description="USD per million", ordering="rate")
    def dollars(self, price: Price) -> str:
        return usd(price.rate)

    @display(description="Tier", ordering="tier")
    def tier_shown(self, price: Price) -> str:
        above = f", above {price.above_tokens:,}" if price.above_tokens else ""
        return (price.tier or "standard") + above

    @display(description="Valid from", ordering="valid_from")
    def begins(self, price: Price) -> str:
        return day_or_time(price.valid_from)

    @display(description="Valid to", ordering="valid_to")
    def until(self, price: Price) -> str | SafeString:
        now = timezone.now()
        if price.valid_from > now:
            return badge("begins later", "info")
        if price.valid_to is None:
            return badge("in force", "success")
        return day_or_time(price.valid_to)


def day_or_time(moment: datetime) -> str:
    """The day alone where it begins with it, else the time with its zone."""
    local = timezone.localtime(moment)
    return f"{local:%Y-%m-%d}" if (local.hour, local.minute) == (0, 0) else f"{local:%Y-%m-%d %H:%M %Z}"
