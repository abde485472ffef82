"""Keys that clients bring along from another relay: by the secret, or by the digest that relay had stored of it."""

from __future__ import annotations

import csv
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from accounts.credentials import encrypt_text
from apikeys.authentication import ALPHABET, digest_of
from apikeys.key_text import KeyTextError
from apikeys.models import DigestSuffix

DIGEST = re.compile(r"[0-9a-fA-F]{64}")
SHORTEST = 16  # characters: anything shorter can be guessed
# Columns of a CSV file; the words of the last ones are as on `create_key`'s command line, with `;` between several.
COLUMNS = ("name", "secret", "digest", "team", "expires", "provider", "limit", "bind", "model", "tag", "ip")
SINGLE = frozenset({"team", "expires"})


def identity(*, secret: str = "", digest: str = "", suffix: DigestSuffix | None = None) -> tuple[str, str, bytes]:
    """Return public id, secret ("" where only its digest is known) and digest to store. Raises `KeyTextError`, which
    never repeats a secret."""
    if bool(secret) == bool(digest):
        raise KeyTextError("Give the key's secret or its digest, one of the two.")
    public_id = "x" + "".join(secrets.choice(ALPHABET) for _ in range(11))
    if secret:
        if suffix is not None:
            raise KeyTextError("A suffix belongs to a digest; a secret needs none.")
        if len(secret) < SHORTEST or secret != secret.strip() or not secret.isprintable():
            raise KeyTextError(f"The secret must have {SHORTEST} characters at least, without spaces around them.")
        return public_id, secret, digest_of(secret)
    if not DIGEST.fullmatch(digest):
        raise KeyTextError("The digest must be a SHA-256 in 64 hexadecimal digits.")
    return public_id, "", bytes.fromhex(digest)


def suffix_named(name: str, text: str = "") -> DigestSuffix:
    """Return the suffix of that name; with a text, made if there is none yet. Raises `KeyTextError`."""
    found = DigestSuffix.objects.filter(name=name).first()
    if found is not None:
        if text:
            raise KeyTextError(f"A digest suffix named {name!r} exists already; use it without giving its text.")
        return found
    if not text:
        raise KeyTextError(f"There is no digest suffix named {name!r}; give its text once.")
    return DigestSuffix.objects.create(name=name, suffix=encrypt_text(text))


def read_rows(file: TextIO) -> Iterator[tuple[int, Mapping[str, str], dict[str, Any]]]:
    """Yield line number, the row's name, secret and digest, and `create_key`'s options. Raises `KeyTextError`."""
    table = csv.DictReader(file)
    unknown = set(table.fieldnames or ()) - set(COLUMNS)
    if unknown or "name" not in (table.fieldnames or ()):
        wrong = f"unknown columns: {', '.join(sorted(unknown))}" if unknown else "there is no column `name`"
        raise KeyTextError(f"{wrong}. The columns are {', '.join(COLUMNS)}.")
    for row in table:
        words = {name: (row.get(name) or "").strip() for name in COLUMNS}
        options = {name: words[name] if name in SINGLE else split(words[name]) for name in COLUMNS[3:]}
        yield table.line_num, {name: words[name] for name in COLUMNS[:3]}, options


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]
