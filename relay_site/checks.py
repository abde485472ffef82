"""Baton refuses to be reachable from other machines with the default secret or with DEBUG."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured

# How uvicorn and daphne are told where to listen; argparse, which daphne uses, takes any beginning of a long name.
BIND_OPTIONS = ("--host", "--bind", "-b")
ENDPOINT_OPTIONS = ("--endpoint", "-e")
NO_NETWORK = frozenset({"unix", "fd", "systemd"})
RUNSERVER = "runserver"
RUNSERVER_PLACE = re.compile(r"\[?([^\[\]]+)\]?:\d+")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host in {"", "localhost"}:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bound_hosts(bind: str, arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Where this process listens, by RELAY_BIND, by the server's own command line and by uvicorn's variable."""
    hosts = [urlsplit(f"//{bind}").hostname or ""]
    for argument, following in pairwise([*arguments, ""]):
        option, value = option_of(argument)
        if is_one_of(option, BIND_OPTIONS):
            hosts.append(following if value is None else value)
        elif is_one_of(option, ENDPOINT_OPTIONS):
            hosts.append(endpoint_host(following if value is None else value))
    if RUNSERVER in arguments:
        hosts += [place[1] for argument in arguments if (place := RUNSERVER_PLACE.fullmatch(argument))]
    if host := environment.get("UVICORN_HOST"):
        hosts.append(host)
    return hosts


def option_of(argument: str) -> tuple[str, str | None]:
    """The option's name and the value joined to it, None where the next word is the value."""
    if argument.startswith("--"):
        name, equals, value = argument.partition("=")
        return name, value if equals else None
    return argument[:2], argument[2:].removeprefix("=") or None


def is_one_of(option: str, names: Sequence[str]) -> bool:
    return option in names or (len(option) > 2 and any(name.startswith(option) for name in names))


def endpoint_host(endpoint: str) -> str:
    """The interface of one of Twisted's endpoints, all of them where it names none."""
    kind, *fields = (field.replace("\\", "") for field in re.split(r"(?<!\\):", endpoint))
    if kind in NO_NETWORK:
        return ""
    named = (field.partition("=")[2] for field in fields if field.startswith("interface="))
    placed = (field for field in fields[1:2] if "=" not in field)
    return next(named, "") or next(placed, "") or "0.0.0.0"  # noqa: S104 - what Twisted does then


def dangers(hosts: Sequence[str], *, secrets: Sequence[str], default_secret: str, debug: bool) -> list[str]:
    """What must not be where other machines can reach it, in words; empty = nothing."""
    exposed = [host for host in hosts if not is_loopback(host)]
    if not exposed:
        return []
    found = []
    if default_secret in secrets:
        found.append(
            f"Listening on {exposed[0]} needs a secret of your own: set RELAY_SECRET_KEYS to a long random text "
            "(python -c 'import secrets; print(secrets.token_urlsafe(48))')."
        )
    if debug:
        found.append(f"Listening on {exposed[0]} with DEBUG shows settings and code to everyone: unset DEBUG.")
    return found


def present_dangers(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    return dangers(
        bound_hosts(settings.RELAY_BIND, arguments, environment),
        secrets=settings.RELAY_SECRET_KEYS,
        default_secret=settings.DEFAULT_SECRET,
        debug=settings.DEBUG,
    )


@register()
def check_exposure(**options: Any) -> list[CheckMessage]:
    """For every command: `manage.py check` says it before a server is started."""
    arguments = sys.argv if RUNSERVER in sys.argv else ()
    return [Error(danger, id="baton.E001") for danger in present_dangers(arguments, {})]


def refuse_exposure() -> None:
    """For a server's start, which runs no checks; raises `ImproperlyConfigured`."""
    if found := present_dangers(sys.argv, os.environ):
        raise ImproperlyConfigured(" ".join(found))
