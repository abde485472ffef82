"""Drafts of accounts <-> rows: what commands (and whoever wants the same rules) read and save."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import transaction
from django.utils import timezone

from accounts.credentials import CredentialUnreadable, decrypt, decrypt_text, encrypt, encrypt_text
from accounts.fields import AccountRefused, Draft, assign, validate_account
from accounts.models import Account, AccountEvent, AccountGroup

# Columns that are fields of the draft under the same name.
PLAIN = (
    "name", "description", "kind", "base_url", "provider", "settings", "active", "priority", "weight", "slots",
    "model_map", "on_disconnect", "cooldowns", "expires_at",
)  # fmt: skip
SWITCHED = "switched"


def create(kind: str, name: str, assignments: Iterable[str]) -> Account:
    """Save a new account and return its row; raises AccountRefused, and then nothing is saved."""
    draft = Draft(kind=kind, name=name)
    assign(draft, assignments)
    return save(draft, row=None)


def change(name: str, assignments: Iterable[str]) -> tuple[Account, list[str]]:
    """Change an account; returns its row and the fields named. Raises AccountRefused, and then nothing is saved."""
    with transaction.atomic():
        row = Account.objects.alive().select_for_update().filter(name=name).first()
        if row is None:
            raise AccountRefused({"name": f"no account is named {name!r}"})
        draft = draft_of(row)
        named = assign(draft, assignments)
        return save(draft, row=row), named


def draft_of(row: Account) -> Draft:
    """The stored account as a draft; a credential or proxy that can't be decrypted is None."""
    draft = Draft(**{name: getattr(row, name) for name in PLAIN})
    draft.settings, draft.model_map, draft.cooldowns = dict(row.settings), dict(row.model_map), dict(row.cooldowns)
    draft.groups = [group.name for group in row.groups.all()]
    try:
        draft.credential = decrypt(row.credential)
    except CredentialUnreadable:
        draft.credential = None
    try:
        draft.proxy = decrypt_text(row.proxy)
    except CredentialUnreadable:
        draft.proxy = None
    return draft


@transaction.atomic
def save(draft: Draft, *, row: Account | None) -> Account:
    """Check and save the draft, its groups made if missing. What can't be decrypted stays stored as it was."""
    errors = validate_account(draft, row_id=row.pk if row else None)
    if errors:
        raise AccountRefused(errors)
    switched = row is not None and row.active != draft.active
    row = row or Account()
    for name in PLAIN:
        setattr(row, name, getattr(draft, name))
    if draft.credential is not None:
        row.credential = encrypt(draft.credential)
    if draft.proxy is not None:
        row.proxy = encrypt_text(draft.proxy)
    row.save()
    row.groups.set([AccountGroup.objects.get_or_create(name=name)[0] for name in draft.groups])
    if switched:
        note_switch(row)
    return row


def note_switch(row: Account) -> None:
    """Somebody turned the human switch: an event beside the rests and recoveries."""
    AccountEvent.objects.create(
        account_id=row.pk,
        account_name=row.name,
        at=timezone.now(),
        kind=SWITCHED,
        cause="on, by hand" if row.active else "off, by hand",
    )
