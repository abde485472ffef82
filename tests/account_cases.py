"""Accounts, keys and calls as selection's tests need them, with only what matters spelled out."""

from __future__ import annotations

import itertools
from typing import Any

from accounts import events, health, quota, selection
from relay.call import Account, BindingRule, Call, Endpoint, Envelope, Key, new_call_id

NOW = 1_800_000_000.0
MODEL = "claude-opus-4-8"
_ids = itertools.count(1)


def account(name: str, **given: Any) -> Account:
    fields = {"kind": "claude_console", "base_url": "http://upstream.test", "provider": "anthropic"}
    number = sum((position + 1) * ord(letter) for position, letter in enumerate(name))
    return Account(**{"id": number, "name": name, **fields, **given})


def key(*bindings: BindingRule, number: int = 1) -> Key:
    return Key(id=number, name=f"key-{number}", public_id=f"p{number}", digest=b"", bindings=bindings)


def call(
    model: str = MODEL,
    *,
    of: Key | None = None,
    conversation: str = "",
    dialect: str = "anthropic",
    envelope: dict[str, Any] | None = None,
    **given: Any,
) -> Call:
    return Call(
        id=new_call_id(NOW),
        created_at=NOW,
        key=of or key(),
        endpoint=Endpoint("messages", dialect),
        envelope=Envelope(model, affinity=conversation, **(envelope or {})),
        method="POST",
        path="messages",
        query="",
        headers=(),
        body=b"{}",
        **given,
    )


def forget() -> None:
    """What this process remembers of accounts, as after a start."""
    selection.TURNS.forget()
    health._recovering.clear()
    health._failing.clear()
    events._noted.clear()
    quota._held.clear()
