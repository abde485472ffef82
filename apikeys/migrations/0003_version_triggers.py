"""Raise a table's version when its rows change."""

from __future__ import annotations

from django.db import migrations

from accounts.triggers import create_version_triggers


class Migration(migrations.Migration):
    dependencies = [("apikeys", "0002_rotation"), ("accounts", "0002_version_triggers")]

    operations = [
        create_version_triggers(["apikeys_apikey", "apikeys_team", "apikeys_limit", "apikeys_binding"]),
    ]
