"""Keys of other relays by the digest those stored, and limits that a team gives to each of its keys."""

from __future__ import annotations

import django.db.models.deletion
from django.db import migrations, models

from accounts.triggers import create_version_triggers


class Migration(migrations.Migration):
    dependencies = [("apikeys", "0003_version_triggers")]

    operations = [
        migrations.CreateModel(
            name="DigestSuffix",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100, unique=True)),
                ("suffix", models.BinaryField(editable=False, help_text="Encrypted text.")),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "ordering": ["name"],
                "verbose_name": "digest suffix",
                "verbose_name_plural": "digest suffixes",
            },
        ),
        migrations.AddField(
            model_name="apikey",
            name="digest_suffix",
            field=models.ForeignKey(
                blank=True,
                editable=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                to="apikeys.digestsuffix",
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="each_key",
            field=models.BooleanField(
                default=False,
                help_text="Of a team: every key has this much for itself, unless it has such a limit of its own. "
                "Otherwise all keys of the team share it.",
                verbose_name="for each key",
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(
                condition=models.Q(("each_key", False), ("team__isnull", False), _connector="OR"),
                name="limit_for_each_key_is_a_teams",
            ),
        ),
        create_version_triggers(["apikeys_apikey", "apikeys_limit", "apikeys_digestsuffix"]),
    ]
