"""The first tables; the usage table partitioned where the database can do that."""

from __future__ import annotations

from django.db import migrations, models

from relay.partitions import CreatePartitionedModel


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="BillingPeriod",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("start", models.DateField(unique=True)),
                ("end", models.DateField(help_text="Exclusive.")),
                ("closed_at", models.DateTimeField(blank=True, null=True)),
                ("closed_by", models.CharField(blank=True, max_length=150)),
            ],
            options={
                "ordering": ["-start"],
            },
        ),
        migrations.CreateModel(
            name="Quarantine",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("record_id", models.CharField(db_index=True, max_length=36)),
                ("at", models.DateTimeField(auto_now_add=True)),
                ("error", models.CharField(max_length=500)),
                ("entry", models.BinaryField()),
                ("resolved_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "verbose_name": "quarantined entry",
                "verbose_name_plural": "quarantined entries",
                "ordering": ["-at"],
            },
        ),
        migrations.CreateModel(
            name="RollUpMark",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("hour", models.DateTimeField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="UsageCorrection",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("record_id", models.UUIDField(db_index=True)),
                ("booked_at", models.DateTimeField(db_index=True)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("author", models.CharField(max_length=150)),
                ("reason", models.CharField(max_length=500)),
                ("changes", models.JSONField(default=dict)),
                ("input_tokens", models.BigIntegerField(default=0)),
                ("cache_read_input_tokens", models.BigIntegerField(default=0)),
                ("cache_creation_5m_input_tokens", models.BigIntegerField(default=0)),
                ("cache_creation_1h_input_tokens", models.BigIntegerField(default=0)),
                ("output_tokens", models.BigIntegerField(default=0)),
                ("reasoning_tokens", models.BigIntegerField(default=0)),
                ("cost_nanos", models.BigIntegerField(default=0)),
            ],
            options={
                "ordering": ["-created_at"],
            },
        ),
        migrations.CreateModel(
            name="Price",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("provider", models.CharField(max_length=60)),
                ("model", models.CharField(help_text="A model id; * matches any rest.", max_length=200)),
                ("meter", models.CharField(max_length=60)),
                ("tier", models.CharField(blank=True, max_length=40)),
                ("above_tokens", models.PositiveIntegerField(default=0)),
                ("rate", models.BigIntegerField(help_text="Nano-dollars per million units.")),
                ("valid_from", models.DateTimeField()),
                ("valid_to", models.DateTimeField(blank=True, null=True)),
                ("source", models.CharField(max_length=100)),
                ("approved_by", models.CharField(blank=True, max_length=150)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "ordering": ["provider", "model", "meter", "tier", "above_tokens", "-valid_from"],
                "indexes": [models.Index(fields=["provider", "model", "meter"], name="price_lookup")],
            },
        ),
        migrations.CreateModel(
            name="RefusalCount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("minute", models.DateTimeField()),
                ("key_id", models.BigIntegerField()),
                ("reason", models.CharField(max_length=60)),
                ("count", models.BigIntegerField(default=0)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("minute", "key_id", "reason"), name="refusal_count_unique")
                ],
            },
        ),
        migrations.CreateModel(
            name="UsageDay",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("team_id", models.BigIntegerField(default=0)),
                ("team_name", models.CharField(blank=True, max_length=100)),
                ("key_id", models.BigIntegerField(default=0)),
                ("key_name", models.CharField(blank=True, max_length=100)),
                ("account_id", models.BigIntegerField(default=0)),
                ("account_name", models.CharField(blank=True, max_length=100)),
                ("provider", models.CharField(blank=True, max_length=60)),
                ("model", models.CharField(blank=True, max_length=200)),
                ("calls", models.BigIntegerField(default=0)),
                ("errors", models.BigIntegerField(default=0)),
                ("refused", models.BigIntegerField(default=0)),
                ("estimated_calls", models.BigIntegerField(default=0)),
                ("estimated_cost_nanos", models.BigIntegerField(default=0)),
                ("unpriced_calls", models.BigIntegerField(default=0)),
                ("input_tokens", models.BigIntegerField(default=0)),
                ("cache_read_input_tokens", models.BigIntegerField(default=0)),
                ("cache_creation_5m_input_tokens", models.BigIntegerField(default=0)),
                ("cache_creation_1h_input_tokens", models.BigIntegerField(default=0)),
                ("output_tokens", models.BigIntegerField(default=0)),
                ("reasoning_tokens", models.BigIntegerField(default=0)),
                ("cost_nanos", models.BigIntegerField(default=0)),
                ("held_nanos", models.BigIntegerField(default=0)),
                ("duration_ms", models.BigIntegerField(default=0)),
                ("time_to_first_token_ms", models.BigIntegerField(default=0)),
                ("time_to_first_token_calls", models.BigIntegerField(default=0)),
                ("day", models.DateField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("day", "team_id", "key_id", "account_id", "provider", "model"), name="usage_day_unique"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="UsageHour",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("team_id", models.BigIntegerField(default=0)),
                ("team_name", models.CharField(blank=True, max_length=100)),
                ("key_id", models.BigIntegerField(default=0)),
                ("key_name", models.CharField(blank=True, max_length=100)),
                ("account_id", models.BigIntegerField(default=0)),
                ("account_name", models.CharField(blank=True, max_length=100)),
                ("provider", models.CharField(blank=True, max_length=60)),
                ("model", models.CharField(blank=True, max_length=200)),
                ("calls", models.BigIntegerField(default=0)),
                ("errors", models.BigIntegerField(default=0)),
                ("refused", models.BigIntegerField(default=0)),
                ("estimated_calls", models.BigIntegerField(default=0)),
                ("estimated_cost_nanos", models.BigIntegerField(default=0)),
                ("unpriced_calls", models.BigIntegerField(default=0)),
                ("input_tokens", models.BigIntegerField(default=0)),
                ("cache_read_input_tokens", models.BigIntegerField(default=0)),
                ("cache_creation_5m_input_tokens", models.BigIntegerField(default=0)),
                ("cache_creation_1h_input_tokens", models.BigIntegerField(default=0)),
                ("output_tokens", models.BigIntegerField(default=0)),
                ("reasoning_tokens", models.BigIntegerField(default=0)),
                ("cost_nanos", models.BigIntegerField(default=0)),
                ("held_nanos", models.BigIntegerField(default=0)),
                ("duration_ms", models.BigIntegerField(default=0)),
                ("time_to_first_token_ms", models.BigIntegerField(default=0)),
                ("time_to_first_token_calls", models.BigIntegerField(default=0)),
                ("hour", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("hour", "team_id", "key_id", "account_id", "provider", "model"),
                        name="usage_hour_unique",
                    )
                ],
            },
        ),
        CreatePartitionedModel(
            name="UsageRecord",
            fields=[
                ("id", models.UUIDField(primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField()),
                ("key_id", models.BigIntegerField(null=True)),
                ("key_name", models.CharField(blank=True, max_length=100)),
                ("team_id", models.BigIntegerField(null=True)),
                ("team_name", models.CharField(blank=True, max_length=100)),
                ("account_id", models.BigIntegerField(null=True)),
                ("account_name", models.CharField(blank=True, max_length=100)),
                ("provider", models.CharField(blank=True, max_length=60)),
                ("dialect", models.CharField(blank=True, max_length=40)),
                ("endpoint", models.CharField(blank=True, max_length=60)),
                ("requested_model", models.CharField(blank=True, max_length=200)),
                ("upstream_model", models.CharField(blank=True, max_length=200)),
                ("response_model", models.CharField(blank=True, max_length=200)),
                ("stream", models.BooleanField(default=False)),
                ("status", models.CharField(max_length=30)),
                ("http_status", models.PositiveSmallIntegerField(null=True)),
                ("error", models.CharField(blank=True, max_length=200)),
                ("usage_source", models.CharField(max_length=12)),
                ("input_tokens", models.BigIntegerField(null=True)),
                ("cache_read_input_tokens", models.BigIntegerField(null=True)),
                ("cache_creation_5m_input_tokens", models.BigIntegerField(null=True)),
                ("cache_creation_1h_input_tokens", models.BigIntegerField(null=True)),
                ("output_tokens", models.BigIntegerField(null=True)),
                ("reasoning_tokens", models.BigIntegerField(null=True)),
                ("cost_nanos", models.BigIntegerField(default=0)),
                ("held_nanos", models.BigIntegerField(default=0)),
                ("unpriced", models.BooleanField(default=False)),
                ("price_version", models.CharField(blank=True, max_length=60)),
                ("lines", models.JSONField(default=list)),
                ("duration_ms", models.BigIntegerField(null=True)),
                ("time_to_first_token_ms", models.BigIntegerField(null=True)),
                ("attempts", models.JSONField(default=list)),
                ("candidates", models.JSONField(default=list)),
                ("flags", models.JSONField(default=list)),
                ("provider_usage", models.TextField(blank=True)),
                ("origin", models.CharField(default="client", max_length=10)),
                ("upstream_request_id", models.CharField(blank=True, max_length=200)),
                ("response_id", models.CharField(blank=True, max_length=200)),
                ("session", models.CharField(blank=True, max_length=200)),
                ("end_user", models.CharField(blank=True, max_length=200)),
                ("user_agent", models.CharField(blank=True, max_length=300)),
                ("tags", models.JSONField(default=dict)),
                ("service_tier", models.CharField(blank=True, max_length=40)),
            ],
            options={
                "ordering": ["-id"],
                "indexes": [
                    models.Index(fields=["key_id", "-id"], name="usage_by_key"),
                    models.Index(fields=["account_id", "-id"], name="usage_by_account"),
                    models.Index(
                        condition=models.Q(("response_id", ""), _negated=True),
                        fields=["response_id"],
                        name="usage_by_response",
                    ),
                    models.Index(condition=models.Q(("unpriced", True)), fields=["-id"], name="usage_unpriced"),
                ],
            },
        ),
    ]
