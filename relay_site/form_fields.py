"""Form fields of our own: write-only secrets, JSON that explains itself, dollars that stay exact."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminPasswordWidget,
    UnfoldAdminTextareaWidget,
)

from relay_site.display import nanos_of, usd_plain


class WriteOnlyWidget(UnfoldAdminPasswordWidget):
    """Never renders a value; a box beside it removes the stored one."""

    template_name = "baton/write_only.html"
    stored = False

    def __init__(self) -> None:
        super().__init__(attrs={"autocomplete": "new-password", "spellcheck": "false"}, render_value=False)

    def get_context(self, name: str, value: Any, attrs: dict[str, Any] | None) -> dict[str, Any]:
        placeholder = {"placeholder": "Stored. Leave empty to keep it."} if self.stored else {}
        context = super().get_context(name, None, {**(attrs or {}), **placeholder})
        context["widget"]["stored"] = self.stored
        return context


class WriteOnlyField(forms.CharField):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(required=False, widget=WriteOnlyWidget(), **kwargs)


class MapField(forms.JSONField):
    """A JSON object of texts, shown indented; errors say where they are."""

    def __init__(self, *, example: str = "", **kwargs: Any) -> None:
        widget = UnfoldAdminTextareaWidget(attrs={"rows": 5, "placeholder": example, "spellcheck": "false"})
        super().__init__(required=False, widget=widget, **kwargs)

    def prepare_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return value
        return json.dumps(value, indent=2, ensure_ascii=False) if value else ""

    def bound_data(self, data: Any, initial: Any) -> Any:
        return data

    def to_python(self, value: Any) -> Any:
        if not value or not str(value).strip():
            return {}
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                where = f"line {error.lineno}, column {error.colno}"
                raise ValidationError(f"This is no JSON: {error.msg} at {where}.", code="invalid") from None
            except RecursionError:
                raise ValidationError("This is no JSON: it is nested too deeply.", code="invalid") from None
        if not isinstance(value, dict):
            raise ValidationError('Write an object: {"name": "value"}.', code="invalid")
        for name, target in value.items():
            if not isinstance(target, str):
                raise ValidationError(f"The value of {name!r} must be a text in double quotes.", code="invalid")
        return value

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return self.to_python(data) != (initial or {})
        except ValidationError:
            return True


class LinesField(forms.CharField):
    """A list of texts, one to a line."""

    def __init__(self, *, example: str = "", **kwargs: Any) -> None:
        widget = UnfoldAdminTextareaWidget(attrs={"rows": 3, "placeholder": example, "spellcheck": "false"})
        super().__init__(required=False, widget=widget, **kwargs)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        lines = value if isinstance(value, list) else str(value or "").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(self.to_python(data) != (initial or []))


class UsdField(forms.DecimalField):
    """US dollars in the form, nano-dollars (int) in the database; nothing is rounded on the way."""

    widget = UnfoldAdminDecimalFieldWidget

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_digits=18, decimal_places=9, **kwargs)

    def prepare_value(self, value: Any) -> Any:
        if not isinstance(value, int):
            return value
        plain = usd_plain(value).rstrip("0")
        return plain + "0" * (2 - len(plain.partition(".")[2])) if len(plain.partition(".")[2]) < 2 else plain

    def to_nanos(self, value: Decimal | None) -> int | None:
        return None if value is None else nanos_of(value)

    def clean(self, value: Any) -> Any:
        return self.to_nanos(super().clean(value))

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return bool(self.clean(data) != initial)
        except ValidationError:
            return True
