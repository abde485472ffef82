"""Forms for keys, their limits and bindings: families as boxes, lists line by line, budgets in dollars."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminSelectWidget,
)

from accounts.fields import unreadable_name
from accounts.models import Account, AccountGroup
from apikeys.key_text import KeyTextError, networks_of
from apikeys.models import ApiKey, Binding, Limit, Team, family_choices
from apikeys.rules import LARGEST
from relay_site.display import nanos_of, usd_plain
from relay_site.form_fields import LinesField, MapField
from relay_site.moments import far_off

LABELS = {"openai": "OpenAI"}
OVERLAPS = (("0", "at once"), ("3600", "in 1 hour"), ("86400", "in 1 day"), ("604800", "in 7 days"))


def offer(field: forms.Field, rows: QuerySet[Any]) -> None:
    """Let a field choose among these rows."""
    if isinstance(field, forms.ModelChoiceField):
        field.queryset = rows


class ApiKeyForm(forms.ModelForm):
    families = forms.MultipleChoiceField(
        choices=lambda: [(family, LABELS.get(family, label)) for family, label in family_choices()],
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget(),
        help_text="What the key may call. None ticked: everything.",
    )
    model_patterns = LinesField(
        label="Models", example="claude-*\nclaude-haiku-4-5", help_text="One pattern to a line; empty: every model."
    )
    tags = MapField(example='{"project": "search"}', help_text="Stand in every usage record of the key.")
    ip_allow = LinesField(
        label="IP allow-list",
        example="10.0.0.0/8",
        help_text="Addresses or CIDR networks, one to a line; empty: any address.",
    )

    class Meta:
        model = ApiKey
        fields: ClassVar = ["name", "team", "active", "expires_at", "families", "model_patterns", "tags", "ip_allow"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "team" in self.fields:
            own = self.instance.team_id
            offer(self.fields["team"], Team.objects.filter(deleted_at=None) | Team.objects.filter(pk=own))

    def clean_ip_allow(self) -> list[str]:
        try:
            return networks_of(self.cleaned_data["ip_allow"])
        except KeyTextError as error:
            raise ValidationError(str(error)) from None

    def clean_expires_at(self) -> datetime | None:
        moment: datetime | None = self.cleaned_data["expires_at"]
        if wrong := far_off(moment):
            raise ValidationError(f"This {wrong}; empty: never.")
        return moment

    def clean_name(self) -> str:
        """Scripts find a key by its name, so two that live must not share one."""
        name: str = self.cleaned_data["name"]
        if unreadable := unreadable_name(name):
            raise ValidationError(f"This needs {unreadable}.")
        if ApiKey.objects.filter(name=name, deleted_at=None).exclude(pk=self.instance.pk).exists():
            raise ValidationError(f"A key named {name!r} exists already.")
        return name


class RotateForm(forms.Form):
    overlap = forms.ChoiceField(label="The old key ends", choices=OVERLAPS, widget=UnfoldAdminSelectWidget())


class LimitForm(forms.ModelForm):
    """The amount is in US dollars where the metric is cost, and a whole number elsewhere."""

    amount = forms.DecimalField(
        min_value=0,
        max_digits=25,
        decimal_places=9,
        widget=UnfoldAdminDecimalFieldWidget(attrs={"step": "any"}),
        help_text="USD for cost; else a whole number",
    )

    class Meta:
        model = Limit
        fields: ClassVar = ["metric", "amount", "per", "model_pattern", "time_zone", "strict"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            self.initial["amount"] = shown_amount(self.instance)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        metric, amount = cleaned.get("metric"), cleaned.get("amount")
        if metric and amount is not None:
            cleaned["amount"] = self.stored_amount(metric, amount)
        counted = metric == Limit.Metric.CONCURRENCY
        if counted and cleaned.get("per"):
            self.add_error("per", "Calls at a time have no period: leave it empty.")
        if metric and not counted and not cleaned.get("per"):
            self.add_error("per", "Choose a period.")
        if cleaned.get("strict") and metric not in {Limit.Metric.COST, Limit.Metric.TOKENS}:
            self.add_error("strict", "Only tokens and cost are estimated; other limits are exact as they are.")
        return cleaned

    def stored_amount(self, metric: str, amount: Decimal) -> int:
        """The amount as the column holds it; adds an error and returns 0 where it can't."""
        try:
            stored = nanos_of(amount) if metric == Limit.Metric.COST else int(amount)
        except ValueError:
            self.add_error("amount", "Nine decimal places at most.")
            return 0
        if metric != Limit.Metric.COST and stored != amount:
            self.add_error("amount", "Write a whole number.")
        if stored > LARGEST:
            self.add_error("amount", "This is more than can be counted.")
        return stored


class TeamLimitForm(LimitForm):
    """A team's limit is shared by its keys, or each of them has it for itself."""

    class Meta(LimitForm.Meta):
        fields: ClassVar = [*LimitForm.Meta.fields, "each_key"]


def shown_amount(limit: Limit) -> Decimal:
    """Dollars for cost, the number itself for the others."""
    if limit.metric != Limit.Metric.COST:
        return Decimal(limit.amount)
    whole, _, places = usd_plain(limit.amount).partition(".")
    return Decimal(f"{whole}.{places.rstrip('0').ljust(2, '0')}")


class BindingForm(forms.ModelForm):
    class Meta:
        model = Binding
        fields: ClassVar = ["account", "group", "fallback"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = Account.objects.filter(pk=self.instance.account_id)
        offer(self.fields["account"], Account.objects.filter(deleted_at=None) | own)
        offer(self.fields["group"], AccountGroup.objects.all())

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if bool(cleaned.get("account")) == bool(cleaned.get("group")):
            raise ValidationError("Choose an account or a group: one of the two.")
        return cleaned
