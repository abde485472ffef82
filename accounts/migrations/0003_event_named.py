"""Remember whether the upstream named the end of a rest: a restored guess must not hold back the last account."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0002_version_triggers")]

    operations = [
        migrations.AddField(
            model_name="accountevent",
            name="named",
            field=models.BooleanField(default=False),
        ),
    ]
