"""Raise the version of the prices when they change."""

from __future__ import annotations

from django.db import migrations

from accounts.triggers import create_version_triggers


class Migration(migrations.Migration):
    dependencies = [("relay", "0001_initial"), ("accounts", "0002_version_triggers")]

    operations = [create_version_triggers(["relay_price"])]
