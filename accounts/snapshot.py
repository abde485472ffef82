"""Upstream accounts as the relay holds them in memory; one bad row never loses the others."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from accounts import models
from accounts.credentials import CredentialUnreadable, decrypt, decrypt_text
from accounts.kinds import kinds
from relay.call import Account, LimitRule, TokenState
from relay.state.snapshot import Snapshot

logger = logging.getLogger(__name__)

TABLES = (
    "accounts_account",
    "accounts_account_groups",
    "accounts_accountgroup",
    "accounts_accounttoken",
    "apikeys_limit",
)
CONCURRENCY = "concurrency"


def load_accounts() -> tuple[Account, ...]:
    """Return every account that is not deleted, switched-off ones included; three queries."""
    rows = models.Account.objects.alive().order_by("id").select_related("token").prefetch_related("groups", "limits")
    return tuple(readable(row) for row in rows)


def readable(row: models.Account) -> Account:
    """`account_of`, whatever stands in the row: one that nobody foresaw must not keep the others from being loaded."""
    try:
        return account_of(row)
    except Exception as error:
        logger.exception("Account %s can't be read", row.pk)
        fault = f"this row can't be read ({type(error).__name__})"
        return Account(row.pk, str(row.name), str(row.kind), "", "", active=False, fault=fault)


def account_of(row: models.Account) -> Account:
    """Return the account; where a part of the row can't be used, the rest of it, marked with the `fault`."""
    faults: list[str] = []
    kind = kinds().get(row.kind)
    if kind is None:
        faults.append(f"this Baton has no kind {row.kind!r}")
    limits = [limit_rule(limit) for limit in row.limits.all()]
    if any(rule.metric == CONCURRENCY and rule.amount < 1 for rule in limits):
        faults.append("it has a limit of 0 calls at a time")
    account = Account(
        id=row.pk,
        name=row.name,
        kind=row.kind,
        base_url=row.base_url,
        provider=row.provider or (kind.provider if kind else ""),
        credential=readable_credential(row, faults),
        settings=mapping(row.settings, "settings", faults=faults),
        priority=row.priority,
        weight=max(1, row.weight),
        slots=min((*([row.slots] if row.slots else []), *at_a_time(limits)), default=0),
        proxy=readable_proxy(row, faults),
        model_map=model_map(row, faults),
        groups=frozenset(group.pk for group in row.groups.all()),
        active=row.active,
        expires_at=row.expires_at.timestamp() if row.expires_at else None,
        on_disconnect=row.on_disconnect,
        cooldowns=cooldowns(row, faults),
        limits=tuple(rule for rule in limits if rule.metric != CONCURRENCY),
        fault="; ".join(faults),
    )
    return with_token(row, account) if kind is not None and kind.renews(account) else account


def readable_credential(row: models.Account, faults: list[str]) -> Mapping[str, str]:
    try:
        return decrypt(row.credential)
    except CredentialUnreadable as error:
        faults.append(f"credential can't be decrypted: {error}")
        return {}


def with_token(row: models.Account, account: Account) -> Account:
    """The account with the access token that was got last, unless that was got by another credential."""
    origin = origin_of(account)
    stored: models.AccountToken | None = getattr(row, "token", None)
    given: Mapping[str, str] = {}
    if stored is not None and stored.origin == origin and stored.version:
        with suppress(CredentialUnreadable):  # then it is got anew, like one that ran out
            given = decrypt(stored.secret)
    if stored is None or not given:
        return replace(account, token=TokenState(origin))
    times = (stored.issued_at, stored.due_at, stored.expires_at)
    issued, due, expires = (moment.timestamp() if moment is not None else 0.0 for moment in times)
    state = TokenState(origin, stored.version, issued, due, expires)
    return replace(account, credential={**account.credential, **given}, token=state)


def origin_of(account: Account) -> str:
    """A check sum of all that a token is got by; it gives nothing of that away."""
    told = json.dumps([dict(account.credential), account.settings], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()


def readable_proxy(row: models.Account, faults: list[str]) -> str:
    try:
        return decrypt_text(row.proxy)
    except CredentialUnreadable as error:
        # Without its proxy the account must not call: the proxy may be what keeps the address allowed.
        faults.append(f"proxy can't be decrypted: {error}")
        return ""


def mapping(value: Any, field: str, *, faults: list[str]) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    faults.append(f"{field} is no JSON object")
    return {}


def model_map(row: models.Account, faults: list[str]) -> dict[str, str]:
    """Requested -> upstream. A list of names, or a null, stands for models that keep their name."""
    if isinstance(row.model_map, list):
        return {str(name): str(name) for name in row.model_map}
    given = mapping(row.model_map, "model_map", faults=faults)
    return {str(name): str(upstream or name) for name, upstream in given.items()}


def cooldowns(row: models.Account, faults: list[str]) -> dict[str, float]:
    given = mapping(row.cooldowns, "cooldowns", faults=faults)
    try:
        return {str(cause): max(0.0, float(seconds)) for cause, seconds in given.items()}
    except (TypeError, ValueError):
        faults.append("cooldowns holds something that is no number of seconds")
        return {}


def at_a_time(limits: list[LimitRule]) -> list[int]:
    """Limits on calls at a time are slots by another name."""
    return [rule.amount for rule in limits if rule.metric == CONCURRENCY and rule.amount > 0]


def limit_rule(limit: Any) -> LimitRule:
    return LimitRule(
        id=limit.pk,
        scope="account",
        owner_id=limit.account_id,
        metric=limit.metric,
        amount=limit.amount,
        per=limit.per,
        models=limit.model_pattern,
        time_zone=limit.time_zone,
        strict=limit.strict,
    )


ACCOUNTS: Snapshot[tuple[Account, ...]] = Snapshot(TABLES, load_accounts, empty=())
