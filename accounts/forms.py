"""The account form: fields of every kind, made from the registry; secrets go in and never come out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar
from urllib.parse import urlsplit

from django import forms
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminTextInputWidget,
)

from accounts.account_rows import PLAIN, draft_of
from accounts.credentials import encrypt, encrypt_text
from accounts.fields import CREDENTIAL as CREDENTIAL_ERROR
from accounts.fields import READ_SETTING, Draft, validate_account
from accounts.health import RESTS
from accounts.kinds import Kind, kinds
from accounts.models import Account, AccountGroup
from relay_site.form_fields import MapField, WriteOnlyField

CREDENTIAL = "credential_"
SETTING = "setting_"
REST = "rest_"
PROXY = "proxy_url"
REST_LABELS = {
    "429": "After 429, without a reset time",
    "529": "After 529 (overloaded)",
    "503": "After 503",
    "5xx": "After other 5xx, three in a row",
    "timeout": "After timeouts, three in a row",
    "model": "When the account lacks the model",
    "credential": "When the credential is rejected",
}
ELSEWHERE = "Enter the credential again: it would go to another address."
DEFAULT_PORTS = {"http": 80, "https": 443}
WORDS = {"api": "API", "id": "ID", "url": "URL", "aws": "AWS"}


def words(name: str) -> str:
    """`session_token` -> "Session token", `api_key` -> "API key"."""
    text = " ".join(WORDS.get(word, word) for word in name.split("_"))
    return text[:1].upper() + text[1:]


def text_of(value: Any) -> str:
    """A setting as the form shows it; what is no text (a deployment map) as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def destinations(draft: Draft, kind: Kind) -> list[tuple[str, str, int | None]]:
    """Scheme, host and port of every address that gets a credential."""
    base = draft.base_url or kind.default_base_url
    urls = [base, *(str(draft.settings.get(name) or base) for name in kind.setting_fields if name.endswith("_url"))]
    return [origin(url) for url in urls]


def origin(url: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:  # which the account's rules will say
        return "", url, None


class AccountForm(forms.ModelForm):
    """`account_form()` adds the fields of the kinds; this class knows what to do with them."""

    model_map = MapField(
        label="Model map",
        example='{"claude-sonnet-5": "claude-sonnet-5"}',
        help_text="Requested model -> upstream model. Only these models are served; empty: all of them, unchanged.",
    )
    proxy_url = WriteOnlyField(
        label="Proxy", help_text="http://, https:// or socks5:// with host and port; may carry user and password."
    )

    groups = forms.ModelMultipleChoiceField(
        AccountGroup.objects.all(),
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget(),
        help_text="Keys that are bound to a group use its accounts. Groups are made under Account groups.",
    )

    class Meta:
        model = Account
        fields: ClassVar = [
            "name",
            "description",
            "kind",
            "base_url",
            "provider",
            "active",
            "priority",
            "weight",
            "slots",
            "groups",
            "on_disconnect",
            "expires_at",
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.draft = draft_of(self.instance) if self.instance.pk else Draft()
        if self.instance.pk:
            self.initial["model_map"] = self.instance.model_map
            if "kind" in self.fields:
                self.fields["kind"].disabled = True
                self.fields["kind"].help_text = "Fixed: another kind is another account."
        for name, field in self.fields.items():
            if name.startswith(CREDENTIAL):
                field.widget.stored = name.removeprefix(CREDENTIAL) in (self.draft.credential or {})
            elif name.startswith(SETTING):
                self.initial[name] = text_of(self.draft.settings.get(name.removeprefix(SETTING), ""))
            elif name.startswith(REST):
                self.initial[name] = self.draft.cooldowns.get(name.removeprefix(REST))
        if "proxy_url" in self.fields:
            self.fields["proxy_url"].widget.stored = self.draft.proxy != ""

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if self.errors:
            return cleaned
        draft, stored = self.draft, replace(self.draft)
        for name in PLAIN:
            setattr(draft, name, cleaned.get(name, getattr(draft, name)))
        draft.kind = draft.kind or self.instance.kind
        kind = kinds()[draft.kind]
        draft.settings = self.chosen_settings(kind.setting_fields)
        draft.cooldowns = {cause: seconds for cause in RESTS if (seconds := cleaned.get(f"{REST}{cause}")) is not None}
        draft.credential = self.merged(CREDENTIAL, kind.credential_fields, stored=draft.credential)
        proxy = self.merged("", (PROXY,), stored=None if draft.proxy is None else {PROXY: draft.proxy})
        draft.proxy = None if proxy is None else proxy.get(PROXY, "")
        if self.instance.pk:
            self.keep_from_others(stored, kind)
        for name, message in validate_account(draft, row_id=self.instance.pk).items():
            self.add_error(self.field_of(name), message)
        self.put_into_row()
        return cleaned

    def keep_from_others(self, stored: Draft, kind: Kind) -> None:
        """A stored secret goes only where it went: whoever may write here may not read it on a server of his own."""
        by_another = bool(self.cleaned_data.get(PROXY)) and self.draft.proxy != stored.proxy
        if not by_another and destinations(self.draft, kind) == destinations(stored, kind):
            return
        names = kind.credential_fields
        unread = names[:1] if self.draft.credential is None else ()
        kept = [name for name in names if (stored.credential or {}).get(name) and name in (self.draft.credential or {})]
        for name in (*unread, *kept):
            if not self.cleaned_data.get(f"{CREDENTIAL}{name}"):
                self.add_error(f"{CREDENTIAL}{name}", ELSEWHERE)

    def put_into_row(self) -> None:
        """What the form has no column for. A secret that can't be decrypted stays stored as it was."""
        row, draft = self.instance, self.draft
        row.settings, row.cooldowns, row.model_map = draft.settings, draft.cooldowns, draft.model_map
        if draft.credential is not None:
            row.credential = encrypt(draft.credential)
        if draft.proxy is not None:
            row.proxy = encrypt_text(draft.proxy)

    def chosen_settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        settings = {}
        for name in names:
            text = (self.cleaned_data.get(f"{SETTING}{name}") or "").strip()
            try:
                value = READ_SETTING.get(name, str)(text)
            except ValueError as error:
                self.add_error(f"{SETTING}{name}", str(error))
                continue
            if value:
                settings[name] = value
        return settings

    def merged(self, prefix: str, names: tuple[str, ...], *, stored: Mapping[str, str] | None) -> dict[str, str] | None:
        """What is stored, with what was typed in its place and without what was to be removed; None = unreadable."""
        kept = {name: value for name, value in (stored or {}).items() if value}
        typed = {name: value for name in names if (value := self.cleaned_data.get(f"{prefix}{name}"))}
        removed = [name for name in names if self.data.get(f"{self.add_prefix(prefix + name)}-remove")]
        if stored is None and not typed and not removed:
            return None
        for name in removed:
            kept.pop(name, None)
        return {**kept, **typed}

    def field_of(self, name: str) -> str | None:
        """The form's field for a name that the account's rules complain about; None = the form as a whole."""
        if name.startswith(CREDENTIAL_ERROR):
            name = f"{CREDENTIAL}{name.removeprefix(CREDENTIAL_ERROR)}"
        elif name == "credential":
            first = kinds()[self.draft.kind].credential_fields[:1]
            name = f"{CREDENTIAL}{first[0]}" if first else ""
        return next((field for field in (name, f"{SETTING}{name}", f"{name}_url") if field in self.fields), None)


@cache
def account_form() -> type[AccountForm]:
    """Return the form with a field for each credential, setting and rest that some kind has."""
    fields: dict[str, forms.Field] = {}
    for kind in kinds().values():
        for name in kind.credential_fields:
            fields[f"{CREDENTIAL}{name}"] = WriteOnlyField(label=words(name))
        for name in kind.setting_fields:
            fields[f"{SETTING}{name}"] = forms.CharField(
                label=words(name), required=False, widget=UnfoldAdminTextInputWidget()
            )
    for cause, seconds in RESTS.items():
        fields[f"{REST}{cause}"] = forms.FloatField(
            label=REST_LABELS.get(cause, cause),
            required=False,
            min_value=0,
            max_value=7 * 86400,
            widget=UnfoldAdminDecimalFieldWidget(attrs={"placeholder": f"{seconds:g}"}),
        )
    return type("AccountForm", (AccountForm,), fields)


def kinds_with(attribute: str, name: str) -> list[str]:
    """The kinds whose `credential_fields` or `setting_fields` have this one."""
    return [kind.kind for kind in kinds().values() if name in getattr(kind, attribute)]


def conditions() -> dict[str, str]:
    """Return, by form field, the Alpine expression that shows it only for its kinds."""
    shown = {}
    for prefix, attribute in ((CREDENTIAL, "credential_fields"), (SETTING, "setting_fields")):
        for name in dict.fromkeys(name for kind in kinds().values() for name in getattr(kind, attribute)):
            shown[f"{prefix}{name}"] = f"{json.dumps(kinds_with(attribute, name))}.includes(kind)"
    return shown
