"""Credentials at rest, under keys derived from RELAY_SECRET_KEYS: the newest encrypts, all of them decrypt."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings


class CredentialUnreadable(Exception):
    """No secret key fits, or what was encrypted is no credential; the message carries no part of it."""


def encrypt(credential: Mapping[str, str]) -> bytes:
    """Return the credential's fields as one encrypted token; b"" for none."""
    return encrypt_text(json.dumps(dict(credential))) if credential else b""


def decrypt(token: bytes | memoryview) -> dict[str, str]:
    """Return the credential's fields, {} for b""; raises CredentialUnreadable."""
    text = decrypt_text(token)
    if not text:
        return {}
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise CredentialUnreadable("what was decrypted is no set of fields")
    return fields


def encrypt_text(text: str) -> bytes:
    """Return one text encrypted (a proxy's URL may carry a password); b"" for ""."""
    return fernet().encrypt(text.encode()) if text else b""


def decrypt_text(token: bytes | memoryview) -> str:
    """Return the text, "" for b""; raises CredentialUnreadable. PostgreSQL hands out memoryviews."""
    if not token:
        return ""
    try:
        return fernet().decrypt(bytes(token)).decode()
    except (InvalidToken, UnicodeDecodeError):
        raise CredentialUnreadable("None of the keys in RELAY_SECRET_KEYS decrypts it") from None


def rotate(token: bytes | memoryview) -> bytes:
    """Return the same secret under the newest key; raises CredentialUnreadable."""
    return encrypt_text(decrypt_text(token))


def is_newest(token: bytes | memoryview) -> bool:
    """Whether the newest key alone decrypts the token, so that older keys are not needed for it."""
    newest = many_fernets((settings.RELAY_SECRET_KEYS[0],))
    try:
        newest.decrypt(bytes(token))
    except InvalidToken:
        return not token
    return True


def fernet() -> MultiFernet:
    return many_fernets(tuple(settings.RELAY_SECRET_KEYS))


@lru_cache(maxsize=8)
def many_fernets(secrets: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(derived_key(secret)) for secret in secrets])


def derived_key(secret: str) -> bytes:
    """A Fernet key of its own for this purpose, so that the site's signing key is never used twice (RFC 5869)."""
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"baton: credentials at rest")
    return base64.urlsafe_b64encode(hkdf.derive(secret.encode()))
