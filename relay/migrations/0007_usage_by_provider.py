from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("relay", "0006_usage_indexes"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="usagerecord",
            index=models.Index(fields=["provider", "-id"], name="usage_by_provider"),
        ),
    ]
