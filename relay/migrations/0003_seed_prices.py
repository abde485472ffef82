"""Price what the bundled catalogue knows, so that a fresh install books no call unpriced that need not be."""

from __future__ import annotations

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def seed(apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:
    from relay.price_catalogue import listed
    from relay.prices import rows_of

    model = apps.get_model("relay", "Price")
    if not model.objects.using(editor.connection.alias).exists():
        model.objects.using(editor.connection.alias).bulk_create(list(rows_of(listed(), model)), batch_size=1000)


class Migration(migrations.Migration):
    dependencies = [("relay", "0002_version_triggers")]

    operations = [migrations.RunPython(seed, migrations.RunPython.noop)]
