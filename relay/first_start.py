"""What an installation needs before its first start, made once: secrets, folders, an administrator, a demo."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import DatabaseError, transaction

from accounts.credentials import encrypt
from accounts.models import Account
from apikeys.authentication import new_secret
from apikeys.models import ApiKey
from relay.models import Price

ADMIN = "admin"
DEMO = "demo"
# Half a sentence a second: slow enough to see that it streams (docs/simulator.md).
DEMO_CREDENTIAL = {"api_key": "sk-ant-demo~delay=0.04"}


@dataclass(frozen=True, slots=True)
class Made:
    """What this start made; "" = it was there already, and can't be shown again."""

    password: str = ""
    key: str = ""


def write_secret(folder: Path, *, older: str = "") -> bool:
    """Write a random secret for this installation, for its owner's eyes only; returns whether it was missing.

    `older` is kept behind it, for what was encrypted with it before.
    """
    path = folder / "secret_keys"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write("\n".join(filter(None, [secrets.token_urlsafe(48), older])) + "\n")
    return True


def credentials_exist() -> bool:
    """Whether accounts were made before there was a secret, so that theirs was the default one."""
    try:
        return Account.objects.exclude(credential=b"").exists()
    except DatabaseError:  # no tables yet
        return False


def make_folders(folder: Path) -> None:
    """Make what the file system broker and whitenoise expect to be there."""
    for name in ("celery/queue", "celery/control", "static"):
        (folder / name).mkdir(parents=True, exist_ok=True)


@transaction.atomic
def make_rows(*, demo: bool, simulator_url: str) -> Made:
    """Make the administrator, and the demo's account and key, where there are none; returns what can be shown once."""
    password = make_admin()
    key = make_demo(simulator_url) if demo else ""
    return Made(password=password, key=key)


def make_admin() -> str:
    """Make the first administrator; returns the password, "" where an administrator exists."""
    users = get_user_model()
    if users.objects.filter(is_superuser=True).exists():
        return ""
    password = secrets.token_urlsafe(15)
    users.objects.create_superuser(ADMIN, password=password)
    return password


def make_demo(simulator_url: str) -> str:
    """Make the demo's account and key, once: a deleted demo stays deleted. Returns the key, "" if made before."""
    if Account.objects.filter(name=DEMO).exists():
        return ""
    Account.objects.create(
        name=DEMO,
        kind="claude_console",
        base_url=simulator_url,
        credential=encrypt(DEMO_CREDENTIAL),
        description="The simulator that `manage.py up` starts. It costs nothing and answers with your own words.",
    )
    public_id, secret, digest = new_secret()
    ApiKey.objects.create(name=DEMO, public_id=public_id, digest=digest)
    return secret


def demo_account() -> Account | None:
    """The demo's account, as long as it stands on a simulator of this machine."""
    account = Account.objects.filter(name=DEMO, kind="claude_console", deleted_at=None).first()
    return account if account and urlsplit(account.base_url).hostname == "127.0.0.1" else None


def load_prices() -> None:
    """Load the prices that came with this version, unless there are any."""
    if not Price.objects.exists():
        call_command("sync_prices", verbosity=0)
