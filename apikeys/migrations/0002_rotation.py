"""After a rotation the old secret may go on for a while."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("apikeys", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="apikey",
            name="previous_digest",
            field=models.BinaryField(editable=False, max_length=32, null=True, unique=True),
        ),
        migrations.AddField(
            model_name="apikey",
            name="previous_until",
            field=models.DateTimeField(editable=False, null=True),
        ),
    ]
