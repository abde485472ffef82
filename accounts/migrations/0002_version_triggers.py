"""Raise a table's version when its rows change."""

from __future__ import annotations

from django.db import migrations

from accounts.triggers import create_version_triggers


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]

    operations = [
        create_version_triggers(["accounts_account", "accounts_account_groups", "accounts_accountgroup"]),
    ]
