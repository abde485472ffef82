"""The settable fields of an account: one table that commands and forms read, refuse and validate by."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from accounts.health import RESTS
from accounts.kinds import Kind, kinds
from accounts.models import Account as AccountRow
from relay.call import Account
from relay_site.moments import far_off, read_moment

CREDENTIAL = "credential."
SMALL, LARGE = 32_767, 2_147_483_647  # what the columns hold
LONGEST_REST = 7 * 24 * 3600
BASE_SCHEMES = ("http", "https")
PROXY_SCHEMES = ("http", "https", "socks5")


@dataclass
class Draft:
    """An account as somebody wants it, before it is checked and saved. `credential` None = stored, but unreadable."""

    kind: str = ""
    name: str = ""
    description: str = ""
    base_url: str = ""
    provider: str = ""
    credential: dict[str, str] | None = field(default_factory=dict, repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    active: bool = True
    priority: int = 50
    weight: int = 1
    slots: int = 0
    proxy: str | None = field(default="", repr=False)
    model_map: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    on_disconnect: str = "abort"
    cooldowns: dict[str, float] = field(default_factory=dict)
    expires_at: datetime | None = None


class AccountRefused(ValueError):
    """What is wrong, by field; nothing was saved."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {message}" for name, message in errors.items()))
        self.errors = dict(errors)


# --- How words become values; each raises ValueError with what is allowed ----------------------------


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None


def truth(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise ValueError('this is no JSON; write it like {"name": "value"}') from None
    if not isinstance(value, dict):
        raise ValueError("this is no JSON object")
    return value


def listed(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


READ: Mapping[str, Callable[[str], Any]] = {
    "name": str,
    "description": str,
    "base_url": str,
    "provider": str,
    "priority": whole_number,
    "weight": whole_number,
    "slots": whole_number,
    "proxy": str,
    "on_disconnect": str,
    "model_map": json_object,
    "active": truth,
    "groups": listed,
    "cooldowns": json_object,
    "expires_at": read_moment,
}
# Fields of some kinds that are no plain text.
READ_SETTING: Mapping[str, Callable[[str], Any]] = {"deployment_map": json_object}


def settable(kind: Kind) -> list[str]:
    """Every field that an account of this kind has, as commands name them."""
    return [*READ, *kind.setting_fields, *(f"{CREDENTIAL}{name}" for name in kind.credential_fields)]


def assign(draft: Draft, assignments: Iterable[str]) -> list[str]:
    """Put `FIELD=VALUE` words into the draft; returns the fields named. Raises AccountRefused for every wrong word."""
    kind = kinds().get(draft.kind)
    if kind is None:
        raise AccountRefused({"kind": f"{draft.kind!r} is unknown; choose of {', '.join(kinds())}"})
    errors: dict[str, str] = {}
    named: list[str] = []
    for word in assignments:
        name, equals, text = word.partition("=")
        if name in named:
            errors[name] = "it is given twice"
        named.append(name)
        try:
            if not equals:
                raise ValueError("write FIELD=VALUE")
            assign_one(draft, kind, name, text.strip())
        except ValueError as error:
            # What follows the name may be a secret: the words themselves stay out of the message.
            errors[name if equals else "a field"] = str(error)
    if errors:
        raise AccountRefused(errors)
    return named


def assign_one(draft: Draft, kind: Kind, name: str, text: str) -> None:
    """Raises ValueError with what is allowed."""
    if name in READ:
        setattr(draft, name, READ[name](text))
    elif name in kind.setting_fields:
        replace(draft.settings, name, READ_SETTING.get(name, str)(text))
    elif name.startswith(CREDENTIAL):
        part = name.removeprefix(CREDENTIAL)
        if part not in kind.credential_fields:
            raise ValueError(f"{kind.kind} has no such credential field; there are {', '.join(kind.credential_fields)}")
        draft.credential = draft.credential or {}
        replace(draft.credential, part, text)
    else:
        raise ValueError(f"{kind.kind} has no such field; there are {', '.join(settable(kind))}")


def replace(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a value; an empty one removes it."""
    values.pop(name, None)
    if value:
        values[name] = value


# --- What a whole account must be ---------------------------------------------------------------------


def validate_account(draft: Draft, *, row_id: int | None = None) -> dict[str, str]:
    """Return what is wrong, by field; {} = it can be saved. `row_id` = the account it replaces. One query."""
    kind = kinds().get(draft.kind)
    if kind is None:
        return {"kind": f"{draft.kind!r} is unknown; choose of {', '.join(kinds())}"}
    errors = {
        "name": wrong_name(draft.name, row_id=row_id),
        "base_url": wrong_url(draft.base_url, BASE_SCHEMES, secret=False) if draft.base_url else "",
        "proxy": wrong_url(draft.proxy, PROXY_SCHEMES, secret=True) if draft.proxy else "",
        "provider": "at most 60 characters" if len(draft.provider) > 60 else "",
        "description": "at most 500 characters" if len(draft.description) > 500 else "",
        "priority": between(draft.priority, 1, 100),
        "weight": between(draft.weight, 1, SMALL),
        "slots": between(draft.slots, 0, LARGE),
        "on_disconnect": wrong_choice(draft.on_disconnect, AccountRow.OnDisconnect.values),
        "model_map": wrong_map(draft.model_map),
        "groups": next((f"{name[:30]!r}... is too long" for name in draft.groups if len(name) > 100), ""),
        "cooldowns": wrong_cooldowns(draft.cooldowns),
        "expires_at": far_off(draft.expires_at),
        **{name: wrong_map(draft.settings.get(name, {})) for name in READ_SETTING},
        **dict.fromkeys(draft.settings.keys() - set(kind.setting_fields), "this kind has no such field"),
        **wrong_credential(draft, kind),
    }
    errors = {name: message for name, message in errors.items() if message}
    return errors or by_kind(draft, kind)


def by_kind(draft: Draft, kind: Kind) -> dict[str, str]:
    """What the kind's own file says of the account, once every field is right in itself."""
    if draft.credential is None:
        return {}
    said = kind.check(account_of(draft, kind))
    fields = ("base_url", *kind.setting_fields)
    return {next((name for name in fields if message.startswith(name)), "credential"): message for message in said}


def account_of(draft: Draft, kind: Kind) -> Account:
    """The draft as the relay would see it."""
    return Account(
        id=0,
        name=draft.name,
        kind=draft.kind,
        base_url=draft.base_url,
        provider=draft.provider or kind.provider,
        credential=draft.credential or {},
        settings=draft.settings,
        proxy=draft.proxy or "",
        model_map=draft.model_map,
    )


def unreadable_name(name: str) -> str:
    """What keeps people from finding something by this name, "" = nothing."""
    bad = not name or len(name) > 100 or not name.isprintable() or name != name.strip()
    return "1 to 100 printable characters, no spaces around them" if bad else ""


def wrong_name(name: str, *, row_id: int | None) -> str:
    if unreadable := unreadable_name(name):
        return unreadable
    other = AccountRow.objects.filter(name=name).exclude(pk=row_id).first()
    if other is None:
        return ""
    return f"an account named {name!r} exists already" + (" (deleted; restore it)" if other.deleted_at else "")


def wrong_url(url: str, schemes: tuple[str, ...], *, secret: bool) -> str:
    """`secret`: the URL may carry user and password, so that it is not repeated in the message."""
    allowed = f"a URL with {', '.join(schemes[:-1])} or {schemes[-1]} and a host"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or not url.isprintable() or " " in url or len(url) > 500:
        return f"needs {allowed}" if secret else f"{url[:60]!r} is not {allowed}"
    if not secret and (parts.username or parts.password):
        return "user and password belong into the credential"
    if parts.query or parts.fragment:
        return "no query and no fragment"
    return ""


def between(value: int, least: int, most: int) -> str:
    return "" if least <= value <= most else f"{value} is not between {least} and {most}"


def wrong_choice(value: str, choices: Iterable[str]) -> str:
    return "" if value in choices else f"{value!r} is none of {', '.join(choices)}"


def wrong_map(value: Any) -> str:
    """A map of names to names, both filled."""
    if not isinstance(value, dict):
        return "this is no JSON object"
    bad = next((name for name, other in value.items() if not (name and isinstance(other, str) and other)), None)
    return "" if bad is None else f"{bad!r} leads to no name; write NAME: NAME, both as text"


def wrong_cooldowns(value: Mapping[str, Any]) -> str:
    for cause, seconds in value.items():
        if cause not in RESTS:
            return f"{cause!r} is no cause; there are {', '.join(RESTS)}"
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and math.isfinite(seconds)
        if not number or not 0 <= seconds <= LONGEST_REST:
            return f"{cause} is not between 0 and {LONGEST_REST} seconds"
    return ""


def wrong_credential(draft: Draft, kind: Kind) -> dict[str, str]:
    """Unknown fields, and secrets that can't stand in a header; a JSON document may have lines."""
    given = draft.credential or {}
    errors = {
        f"{CREDENTIAL}{name}": "this kind has no such field" for name in given if name not in kind.credential_fields
    }
    for name, secret in given.items():
        if not secret.startswith("{") and not (secret.isascii() and secret.isprintable()):
            errors[f"{CREDENTIAL}{name}"] = "it holds a character that no key has"
    return errors
