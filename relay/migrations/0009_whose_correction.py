from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("relay", "0008_tokens_beside_the_counts"),
    ]

    operations = [
        migrations.AddField(
            model_name="usagecorrection",
            name="whose",
            field=models.JSONField(default=dict),
        ),
    ]
