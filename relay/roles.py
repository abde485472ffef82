"""The roles that every installation has: groups of these names, brought up to date by each `migrate`.

What a role may do stands here and nowhere else; a group of another name is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.apps import apps as installed
from django.contrib.auth.management import create_permissions
from django.db import DEFAULT_DB_ALIAS

VIEW, EVERYTHING = ("view",), ("add", "change", "delete", "view")
USAGE = ("relay.usagerecord", "relay.usagecorrection", "relay.usagehour", "relay.usageday")
# Of each role: actions by model; "*" = every model of every app.
ROLES: Mapping[str, Mapping[str, Iterable[str]]] = {
    "admin": {"*": EVERYTHING},
    "operator": {
        "accounts.account": EVERYTHING,
        "accounts.accountgroup": EVERYTHING,
        "accounts.accountevent": VIEW,
        "apikeys.apikey": EVERYTHING,
        "apikeys.team": EVERYTHING,
        "apikeys.limit": EVERYTHING,
        "apikeys.binding": EVERYTHING,
        "relay.price": VIEW,
        "relay.quarantine": ("view", "change"),
        "relay.billingperiod": VIEW,
        "django_celery_beat.periodictask": VIEW,
        "auditlog.logentry": VIEW,
        **dict.fromkeys(USAGE, VIEW),
    },
    "finance": {
        "apikeys.team": VIEW,
        "relay.price": VIEW,
        "relay.billingperiod": VIEW,
        **dict.fromkeys(USAGE, VIEW),
    },
}


def renew_roles(using: str = DEFAULT_DB_ALIAS, apps: Any = installed, **kwargs: Any) -> None:
    """Make the groups and give each exactly what its role may do; runs after every migration."""
    try:
        apps.get_model("auth", "Group")
    except LookupError:  # only some apps are migrated yet
        return
    from django.contrib.auth.models import Group

    for config in installed.get_app_configs():
        # Ours may run before the one that makes permissions; making them is idempotent.
        create_permissions(config, verbosity=0, using=using)
    for name, actions in ROLES.items():
        group, _ = Group.objects.using(using).get_or_create(name=name)
        group.permissions.set(permissions_of(actions, using=using))


def permissions_of(actions: Mapping[str, Iterable[str]], *, using: str) -> list[Any]:
    """Return the rows of what a role may do; raises `LookupError` for a model that there is not."""
    from django.contrib.auth.models import Permission

    rows = Permission.objects.using(using).select_related("content_type")
    if "*" in actions:
        return list(rows)
    wanted = {
        (model._meta.app_label, f"{action}_{model._meta.model_name}")
        for label, names in actions.items()
        for model in [installed.get_model(label)]
        for action in names
    }
    return [row for row in rows if (row.content_type.app_label, row.codename) in wanted]
