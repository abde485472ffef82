"""Access tokens that are got anew before they run out."""

from __future__ import annotations

import django.db.models.deletion
from django.db import migrations, models

from accounts.triggers import create_version_triggers


class Migration(migrations.Migration):
    dependencies = [("accounts", "0003_event_named")]

    operations = [
        migrations.CreateModel(
            name="AccountToken",
            fields=[
                (
                    "account",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="token",
                        serialize=False,
                        to="accounts.account",
                    ),
                ),
                ("secret", models.BinaryField(default=bytes)),
                ("origin", models.CharField(blank=True, max_length=64)),
                ("version", models.PositiveIntegerField(default=0)),
                ("issued_at", models.DateTimeField(null=True)),
                ("due_at", models.DateTimeField(null=True)),
                ("expires_at", models.DateTimeField(null=True)),
                ("leased_by", models.CharField(blank=True, max_length=36)),
                ("leased_until", models.DateTimeField(null=True)),
                ("failure", models.CharField(blank=True, max_length=40)),
            ],
        ),
        create_version_triggers(["accounts_accounttoken"]),
    ]
