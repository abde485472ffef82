"""One usage record, readable to its last line, and the form that corrects it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec
from django import forms
from django.db import transaction
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from accounts.models import Account
from apikeys.models import ApiKey, Team
from relay.call import CallStatus, Line, UsageSource
from relay.corrections import COUNTS, CorrectionError, correct
from relay.models import UsageCorrection, UsageRecord
from relay_site.display import count, milliseconds, usd
from relay_site.form_fields import MapField, UsdField

COUNT_NAMES = {
    "input_tokens": "Input tokens",
    "cache_read_input_tokens": "Cache read tokens",
    "cache_creation_5m_input_tokens": "Cache write tokens, 5 min",
    "cache_creation_1h_input_tokens": "Cache write tokens, 1 h",
    "output_tokens": "Output tokens",
    "reasoning_tokens": "of it reasoning tokens",
}
# Whose usage it is, chosen by row and written as id and name.
OWNERS: dict[str, Any] = {"team": Team, "key": ApiKey, "account": Account}
PLAIN = (
    "provider",
    "upstream_model",
    "response_model",
    "service_tier",
    "status",
    "usage_source",
    "end_user",
    "session",
)


class OwnerField(forms.TypedChoiceField):
    """Rows to choose from, and the one that the record names, which may be gone."""

    def __init__(self) -> None:
        super().__init__(coerce=int, empty_value=None, required=False, widget=UnfoldAdminSelectWidget())

    def offer(self, rows: Iterable[tuple[int, str]], own: tuple[int | None, str]) -> None:
        found = dict(rows)
        if own[0] is not None:
            found.setdefault(own[0], f"{own[1]} (gone)")
        self.choices = [("", "nobody"), *sorted(found.items(), key=lambda item: item[1])]


class CorrectionForm(forms.ModelForm):
    """What is typed here never overwrites silently: it becomes a correction with its author and reason."""

    cost_nanos = UsdField(
        label="Cost, USD",
        min_value=0,
        help_text="Left alone, it follows the counts by the prices of the call's time. Typed, it goes before them.",
    )
    team = OwnerField()
    key = OwnerField()
    account = OwnerField()
    status = forms.ChoiceField(
        choices=[(status.value, status.value.replace("_", " ")) for status in CallStatus],
        widget=UnfoldAdminSelectWidget(),
    )
    usage_source = forms.ChoiceField(
        label="Usage comes from",
        choices=[(source.value, source.value) for source in UsageSource],
        widget=UnfoldAdminSelectWidget(),
    )
    tags = MapField()
    reason = forms.CharField(
        max_length=500,
        widget=UnfoldAdminTextInputWidget(),
        help_text="Why it is changed; stands beside the change for ever.",
    )

    class Meta:
        model = UsageRecord
        fields: ClassVar = [
            *COUNTS,
            "provider",
            "upstream_model",
            "response_model",
            "service_tier",
            "end_user",
            "session",
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        record = self.instance
        for name, label in COUNT_NAMES.items():
            if name in self.fields:
                self.fields[name].label, self.fields[name].required = label, False
        for name in ("cost_nanos", "tags", "status", "usage_source"):
            self.initial[name] = getattr(record, name)
        for name, model in OWNERS.items():
            own = getattr(record, f"{name}_id"), getattr(record, f"{name}_name")
            self.initial[name] = own[0]
            if isinstance(field := self.fields.get(name), OwnerField):
                field.offer(model.objects.values_list("pk", "name"), own)

    def clean(self) -> dict[str, Any]:
        """Try it, so that saving succeeds; what is wrong stands at its field."""
        cleaned = super().clean() or self.cleaned_data
        if self.errors:
            return cleaned
        before = transaction.savepoint()
        try:
            correct(self.instance.pk, self.changes(), author="", reason=cleaned["reason"])
        except CorrectionError as error:
            name, _, said = str(error).partition(": ")
            field = name.removesuffix("_id").removesuffix("_name")
            self.add_error(field if said and field in self.fields else None, said or name)
        finally:
            transaction.savepoint_rollback(before)
        return cleaned

    def _post_clean(self) -> None:
        """The row is left alone: `relay.corrections` writes it."""

    def changes(self) -> dict[str, Any]:
        """What differs from the record, as `relay.corrections.correct` takes it."""
        found: dict[str, Any] = {}
        for name in self.changed_data:
            value = self.cleaned_data.get(name)
            if name in OWNERS:
                row = OWNERS[name].objects.filter(pk=value).first() if value else None
                found |= {f"{name}_id": row.pk if row else None, f"{name}_name": row.name if row else ""}
            elif name != "reason":
                found[name] = value
        return found


def page_context(record: UsageRecord) -> dict[str, Any]:
    """What the page shows of the record, ready to read."""
    lines = [msgspec.convert(line, Line) for line in record.lines]
    return {
        "record": record,
        "counts": [(COUNT_NAMES[name], count(getattr(record, name))) for name in COUNTS],
        "lines": [line_row(line) for line in lines],
        "took": milliseconds(record.duration_ms),
        "first": milliseconds(record.time_to_first_token_ms),
        "attempts": [{**attempt, "took": milliseconds(attempt.get("duration_ms"))} for attempt in record.attempts],
        "provider_usage": pretty(record.provider_usage),
        "facts": [(name, value) for name, value in facts(record) if value],
        "corrections": [correction_row(row) for row in UsageCorrection.objects.filter(record_id=record.pk)],
    }


def line_row(line: Line) -> dict[str, Any]:
    kind = [part for part in (line.tier, line.speed, line.geo) if part]
    return {
        "meter": line.meter.replace("_", " "),
        "quantity": count(line.quantity),
        "model": line.model,
        "kind": ", ".join(kind) or "standard",
        "rate": "no price" if line.rate is None else usd(line.rate),
        "cost": "-" if line.rate is None else usd(line.cost),
        "unpriced": line.rate is None,
    }


def facts(record: UsageRecord) -> list[tuple[str, str]]:
    tags = ", ".join(f"{name}={value}" for name, value in record.tags.items())
    return [
        ("Call id", str(record.pk)),
        ("Endpoint", f"{record.endpoint} ({record.dialect}{', streamed' if record.stream else ''})"),
        ("Asked for", record.requested_model),
        ("Sent as", record.upstream_model),
        ("Answered by", record.response_model),
        ("Provider", record.provider),
        ("Usage comes from", record.usage_source),
        ("Price version", record.price_version),
        ("Service tier", record.service_tier),
        ("Held", usd(record.held_nanos) if record.held_nanos else ""),
        ("Flags", ", ".join(record.flags)),
        ("Origin", record.origin),
        ("Tags", tags),
        ("Session", record.session),
        ("End user", record.end_user),
        ("User agent", record.user_agent),
        ("Response id", record.response_id),
        ("Upstream request id", record.upstream_request_id),
    ]


def correction_row(correction: UsageCorrection) -> dict[str, Any]:
    return {
        "correction": correction,
        "changes": [
            (name.removesuffix("_nanos").replace("_", " "), shown(name, old), shown(name, new))
            for name, (old, new) in correction.changes.items()
        ],
    }


def shown(name: str, value: Any) -> str:
    if name.endswith("_nanos"):
        return usd(value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "not reported" if value is None else f"{value:,}" if isinstance(value, int) else str(value) or "empty"


def pretty(text: str) -> str:
    """The provider's usage, indented, its figures as they came; the text itself where it is no JSON."""
    try:
        return msgspec.json.format(text, indent=2)
    except msgspec.DecodeError:
        return text
