"""What commands say about a key, as text -> the values of its columns; every refusal names the word."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from accounts.fields import unreadable_name
from apikeys.models import family_choices
from relay_site.moments import read_moment


class KeyTextError(ValueError):
    """A field can't be read; the message names it."""


def families_of(words: Iterable[str]) -> list[str]:
    found = list(dict.fromkeys(words))
    known = [family for family, _ in family_choices()]
    for word in found:
        if word not in known:
            raise KeyTextError(f"provider {word!r} is unknown; choose of {', '.join(known)}.")
    return found


def tags_of(words: Iterable[str]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise KeyTextError(f"tag {word!r} is not NAME=VALUE.")
        if name in tags:
            raise KeyTextError(f"tag {name!r} is given twice.")
        tags[name] = value
    return tags


def networks_of(words: Iterable[str]) -> list[str]:
    networks = []
    for word in words:
        try:
            networks.append(str(ipaddress.ip_network(word)))
        except ValueError as error:
            raise KeyTextError(f"ip {word!r} is no address or CIDR network: {error}.") from None
    return networks


def moment_of(text: str, *, field: str) -> datetime | None:
    """An ISO 8601 time; without an offset it counts in the installation's time zone. "" = never."""
    try:
        return read_moment(text)
    except ValueError as error:
        raise KeyTextError(f"{field} {error}.") from None


def name_of(field: str, name: str) -> str:
    """The name of a new key or team, as it was given."""
    if unreadable := unreadable_name(name):
        raise KeyTextError(f"{field} {name!r}: {unreadable}.")
    return name


def truth_of(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise KeyTextError(f"{text!r} is neither true nor false.")
    return text.lower() == "true"


def last_of(words: Sequence[str]) -> str:
    return words[-1].strip()


def listed(words: Iterable[str]) -> list[str]:
    """Words that stand one by one or together, with commas between them."""
    return [part.strip() for word in words for part in word.split(",") if part.strip()]


def filled(field: str, words: Sequence[str]) -> Sequence[str]:
    """The words; an empty one, such as a script's unset variable, would say less than was meant."""
    if any(not listed([word]) for word in words):
        raise KeyTextError(f"{field} has an empty word; leave it out for none.")
    return words


# What `set_key` may set: name on the command line -> column, and how its words are read. A field given again adds to
# a list; given empty, it empties it.
COLUMNS: Mapping[str, tuple[str, Callable[[Sequence[str]], Any]]] = {
    "name": ("name", lambda words: name_of("name", last_of(words))),
    "active": ("active", lambda words: truth_of(last_of(words))),
    "expires": ("expires_at", lambda words: moment_of(last_of(words), field="expires")),
    "provider": ("families", lambda words: families_of(listed(words))),
    "model": ("model_patterns", listed),
    "tag": ("tags", lambda words: tags_of(listed(words))),
    "ip": ("ip_allow", lambda words: networks_of(listed(words))),
}
# Fields of one value: given again, one of them is a mistake.
SINGLE = frozenset({"name", "active", "expires", "team"})


def assignments(words: Iterable[str], *, known: Sequence[str]) -> dict[str, list[str]]:
    """Group `FIELD=VALUE` words by field; raises for what is no assignment and for an unknown field."""
    fields: dict[str, list[str]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise KeyTextError(f"{word!r} is not FIELD=VALUE.")
        if name not in known:
            raise KeyTextError(f"{name!r} is no field of a key; choose of {', '.join(known)}.")
        if name in SINGLE and name in fields:
            raise KeyTextError(f"{name} is given twice.")
        fields.setdefault(name, []).append(value)
    return fields
