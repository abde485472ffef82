"""Test connection: one small real call through one account, by the same pipeline, booked with origin `operator`."""

from __future__ import annotations

import time
from typing import Any

from accounts.snapshot import ACCOUNTS
from relay import pipeline
from relay.call import Account, Call, CallStatus, Endpoint, Key, new_call_id
from relay.catalogue import upstream_models
from relay.dialects import DIALECTS
from relay.providers import PROVIDERS
from relay.runtime import Runtime

OPERATOR = Key(id=0, name="(operator)", public_id="", digest=b"")


async def test_connection(run: Runtime, account_id: int, *, model: str = "") -> dict[str, Any]:
    """Return `{"ok", "status", "model", "duration_ms", "message", "record"}`, whatever the upstream does."""
    account = next((item for item in ACCOUNTS.current if item.id == account_id), None)
    if account is None:
        return answer(model, message="This account is not loaded. Is it saved, and the relay running?")
    provider = PROVIDERS[account.kind]
    dialect = DIALECTS[provider.probe_dialect(account)]
    model = model or await some_model(run, account)
    if not model:
        return answer(model, message="Name a model to test with: the account has no model map and no list of models.")
    endpoint, path, headers, body = dialect.probe(model)
    now = time.time()
    call = Call(
        id=new_call_id(now),
        created_at=now,
        key=OPERATOR,
        endpoint=Endpoint(endpoint, dialect.name),
        envelope=dialect.read_envelope(body, headers=dict(headers), path_model=model),
        method="POST",
        path=path,
        query="",
        headers=headers,
        body=body,
        origin="operator",
        account_id=account.id,
    )
    flight = pipeline.launch(run, call)
    head = await flight.reply.head()
    async for _ in flight.reply.chunks():
        pass
    record = flight.record
    ok = record.status == CallStatus.OK.value
    message = "The account answered." if ok else f"{record.error or record.status}: {error_text(head.body)}"
    return answer(
        model, ok=ok, status=head.status, duration_ms=record.duration_ms or 0, message=message, record=record.id
    )


async def some_model(run: Runtime, account: Account) -> str:
    """The account's cheapest model, as a key would ask for it; "" where none is known."""
    book = run.prices.current
    entries = await upstream_models(run, account, now=time.time())
    provider = PROVIDERS[account.kind]

    def price(name: str) -> tuple[int, str]:
        rate = book.output_rate(account.provider, provider.upstream_model(account, name), now=time.time())
        return (rate if rate is not None else 2**62, name)

    return min((entry.id for entry in entries), key=price, default="")


def error_text(body: bytes | None) -> str:
    """The upstream's words, short; an error body holds no prompt."""
    return (body or b"").decode("utf-8", "replace")[:500]


def answer(
    model: str,
    *,
    ok: bool = False,
    status: int | None = None,
    duration_ms: int = 0,
    message: str,
    record: str | None = None,
) -> dict[str, Any]:
    return {
        "ok": ok,
        "status": status,
        "model": model,
        "duration_ms": duration_ms,
        "message": message,
        "record": record,
    }
