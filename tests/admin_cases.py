"""Rows of every kind for tests of the admin, and an answering relay behind it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.test import override_settings
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from accounts.credentials import encrypt, encrypt_text
from accounts.models import Account, AccountEvent, AccountGroup
from apikeys.authentication import new_secret
from apikeys.models import ApiKey, Binding, Limit, Team
from relay.call import new_call_id
from relay.internal import HEADER, is_signed
from relay.models import BillingPeriod, Price, Quarantine, UsageCorrection, UsageRecord
from relay.rollup import mark

MODEL = "claude-sonnet-4-5"
CREDENTIAL = "sk-ant-canary-credential"
PROXY = "http://user:canary-password@proxy.test:3128"


def make_account(name: str = "main", **fields: Any) -> Account:
    account: Account = Account.objects.create(
        **{
            "name": name,
            "kind": "claude_console",
            "base_url": "https://upstream.test",
            "credential": encrypt({"api_key": CREDENTIAL}),
            "proxy": encrypt_text(PROXY),
            **fields,
        }
    )
    return account


def make_key(name: str = "laptop", **fields: Any) -> tuple[ApiKey, str]:
    """Return the row and the whole key."""
    public_id, secret, digest = new_secret()
    return ApiKey.objects.create(**{"name": name, "public_id": public_id, "digest": digest, **fields}), secret


def make_record(at: datetime, **fields: Any) -> UsageRecord:
    """A booked call of that time, and its mark, as the ledger leaves them."""
    call_id = UUID(new_call_id(at.timestamp()))
    record: UsageRecord = UsageRecord.objects.create(
        **{
            "id": call_id,
            "created_at": at.replace(microsecond=at.microsecond // 1000 * 1000),
            "key_id": 1,
            "key_name": "laptop",
            "account_id": 1,
            "account_name": "main",
            "provider": "anthropic",
            "dialect": "anthropic",
            "endpoint": "messages",
            "requested_model": MODEL,
            "upstream_model": MODEL,
            "response_model": MODEL,
            "status": "ok",
            "http_status": 200,
            "usage_source": "provider",
            "input_tokens": 1000,
            "output_tokens": 200,
            "cost_nanos": 6_000_000,
            "lines": [
                {
                    "meter": "input_tokens",
                    "quantity": 1000,
                    "model": MODEL,
                    "rate": 3 * 10**9,
                    "cost": 3_000_000,
                },
                {
                    "meter": "output_tokens",
                    "quantity": 200,
                    "model": MODEL,
                    "rate": 15 * 10**9,
                    "cost": 3_000_000,
                },
            ],
            "duration_ms": 1200,
            "time_to_first_token_ms": 300,
            "attempts": [{"account": "main", "status": 200, "error": "", "duration_ms": 1200}],
            "candidates": [{"account": "main", "taken": True, "reason": "priority 50"}],
            "provider_usage": '{"input_tokens":1000,"output_tokens":200}',
            "tags": {"project": "search"},
            **fields,
        }
    )
    mark([record.created_at])
    return record


def make_everything(now: datetime) -> None:
    """At least one row in every table that the admin shows."""
    group = AccountGroup.objects.create(name="pool")
    account = make_account(expires_at=now + timedelta(days=3))
    account.groups.add(group)
    resting = make_account("resting", priority=10)
    AccountEvent.objects.create(
        account_id=resting.pk,
        account_name="resting",
        at=now - timedelta(seconds=10),
        kind="rest",
        model=MODEL,
        cause="429",
        until=now + timedelta(seconds=200),
        http_status=429,
    )
    make_account("off", active=False)
    team = Team.objects.create(name="Search", cost_center="4711")
    key, _ = make_key(team=team, tags={"project": "search"}, families=["claude"], expires_at=now + timedelta(days=5))
    Limit.objects.create(key=key, metric="cost", amount=5 * 10**9, per="day")
    Limit.objects.create(team=team, metric="tokens", amount=10**6, per="month", strict=True)
    Limit.objects.create(account=account, metric="requests", amount=1000, per="day")
    Binding.objects.create(key=key, group=group)
    shared = {"key_id": key.pk, "key_name": key.name, "team_id": team.pk, "team_name": team.name}
    for hours in range(30):
        make_record(now - timedelta(hours=hours), **shared, account_id=account.pk, account_name=account.name)
    record = make_record(now, **shared, unpriced=True, cost_nanos=0)
    make_record(now, status="refused", http_status=429, error="rate_limit_error", usage_source="none", cost_nanos=0)
    UsageCorrection.objects.create(
        record_id=record.pk,
        booked_at=now,
        author="ada",
        reason="test",
        changes={"input_tokens": [1, 2]},
        input_tokens=1,
    )
    Quarantine.objects.create(record_id=new_call_id(), error="ValueError", entry=b"{}")
    BillingPeriod.objects.create(start=datetime(2026, 1, 1).date(), end=datetime(2026, 2, 1).date())
    every_minute = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.MINUTES)
    PeriodicTask.objects.create(name="roll up", task="relay.roll_up", interval=every_minute)
    Price.objects.create(
        provider="anthropic",
        model="test-model",
        meter="input_tokens",
        rate=3 * 10**9,
        valid_from=datetime(2026, 1, 1, tzinfo=UTC),
        source="admin",
    )


def make_user(name: str, *, superuser: bool = False) -> User:
    user: User = User.objects.create_user(name, password="a long enough password")
    user.is_staff, user.is_superuser = True, superuser
    user.save()
    return user


@contextmanager
def answering_relay(answers: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """A relay's internal address, over a real socket; yields the questions that came with a good signature."""
    asked: list[dict[str, Any]] = []

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if not is_signed(body, self.headers[HEADER]):
                self.send_error(403)
                return
            question = json.loads(body)
            asked.append(question)
            answer = json.dumps(answers[question["question"]]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with override_settings(RELAY_INTERNAL_URL=f"http://127.0.0.1:{server.server_port}"):
            yield asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def form_values(page: Any) -> dict[str, Any]:
    """What a browser would send if nobody typed anything: the values of the form and its inlines."""
    forms = [page.context["adminform"].form]
    for inline in page.context["inline_admin_formsets"]:
        forms += [inline.formset.management_form, *inline.formset.forms]
    values: dict[str, Any] = {}
    for form in forms:
        for field in form:
            if field.field.disabled:
                continue
            if hasattr(field.field.widget, "decompress"):
                parts = field.field.widget.decompress(field.value())
                values |= {f"{field.html_name}_{index}": part or "" for index, part in enumerate(parts)}
            else:
                value = field.field.prepare_value(field.value())
                values |= {} if value is None or value is False else {field.html_name: value}
    return values


def errors_of(page: Any) -> dict[str, list[str]]:
    """The errors of a form that was shown again."""
    form = page.context["adminform"].form
    found = {name: list(errors) for name, errors in form.errors.items()}
    for inline in page.context["inline_admin_formsets"]:
        for errors in inline.formset.errors:
            found |= {f"inline.{name}": list(messages) for name, messages in errors.items()}
    return found
