"""Baton refuses to be reachable from other machines with the default secret or with DEBUG."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured

# How uvicorn and daphne are told where to listen.
BIND_OPTIONS = frozenset({"--host", "--bind", "-b"})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host in {"", "localhost"}:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bound_hosts(bind: str, arguments: Sequence[str]) -> list[str]:
    """Where this process listens, by RELAY_BIND and by the server's own command line."""
    hosts = [urlsplit(f"//{bind}").hostname or ""]
    for argument, following in pairwise([*arguments, ""]):
        option, equals, value = argument.partition("=")
        if option in BIND_OPTIONS:
            hosts.append(value if equals else following)
    return hosts


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


def present_dangers(arguments: Sequence[str]) -> list[str]:
    return dangers(
        bound_hosts(settings.RELAY_BIND, arguments),
        secrets=settings.RELAY_SECRET_KEYS,
        default_secret=settings.DEFAULT_SECRET,
        debug=settings.DEBUG,
    )


@register()
def check_exposure(**options: Any) -> list[CheckMessage]:
    """For every command: `manage.py check` says it before a server is started."""
    return [Error(danger, id="baton.E001") for danger in present_dangers(())]


def refuse_exposure() -> None:
    """For a server's start, which runs no checks; raises `ImproperlyConfigured`."""
    if found := present_dangers(sys.argv):
        raise ImproperlyConfigured(" ".join(found))
