"""Keys of other relays: by secret, by digest, by digest with a suffix; clients keep theirs."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.core.management import CommandError, call_command

from apikeys import lookup
from apikeys.authentication import KEYS, KeyRing, authenticate
from apikeys.foreign import identity, suffix_named
from apikeys.key_text import KeyTextError
from apikeys.keyring import load_keys
from apikeys.lookup import Lookups
from apikeys.models import ApiKey, DigestSuffix
from relay.errors import NotAuthenticated

SECRET = "cr_6f1d2c3b4a5968778695a4b3c2d1e0ff"
PEPPER = "another relay's encryption key"
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "LOOKUPS", Lookups())
    monkeypatch.setattr(KEYS, "current", KeyRing())


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def bring(folder: Path, text: str, *words: str) -> list[dict[str, object]]:
    path = folder / "keys.csv"
    path.write_text(text)
    out = io.StringIO()
    call_command("import_keys", str(path), *words, "--json", stdout=out)
    found: list[dict[str, object]] = json.loads(out.getvalue())
    return found


def owner(secret: str) -> str:
    headers = ((b"authorization", f"Bearer {secret}".encode()),)
    return async_to_sync(authenticate)(headers, "", client_ip="", now=1_780_315_200.0).name


@pytest.mark.parametrize("snapshot", [True, False])
def test_a_key_is_known_however_it_was_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: bool) -> None:
    monkeypatch.setenv("PEPPER", PEPPER)
    bring(tmp_path, f"name,secret\nby secret,{SECRET}1\n")
    bring(tmp_path, f"name,digest\nby digest,{sha256(SECRET + '2')}\n")
    bring(
        tmp_path,
        f"name,digest\nby suffix,{sha256(SECRET + '3' + PEPPER).upper()}\n",
        "--suffix",
        "crs",
        "--suffix-env",
        "PEPPER",
    )
    # Where only the snapshot knows the suffixes, a key made later is found by the query too.
    KEYS.current = load_keys() if snapshot else KeyRing(suffixes=load_keys().suffixes)
    assert [owner(SECRET + digit) for digit in "123"] == ["by secret", "by digest", "by suffix"]
    with pytest.raises(NotAuthenticated):
        owner(SECRET + "4")


def test_a_suffix_is_stored_encrypted_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEPPER", PEPPER)
    rows = [f"name,digest\n{name},{sha256(name * 20 + PEPPER)}\n" for name in ("one", "two")]
    bring(tmp_path, rows[0], "--suffix", "crs", "--suffix-env", "PEPPER")
    bring(tmp_path, rows[1], "--suffix", "crs")
    suffix = DigestSuffix.objects.get()
    assert PEPPER.encode() not in bytes(suffix.suffix)
    assert ApiKey.objects.filter(digest_suffix=suffix).count() == 2


def test_a_row_may_say_all_that_create_key_can(tmp_path: Path) -> None:
    bring(
        tmp_path,
        "name,secret,team,limit,tag,model,ip,expires\n"
        f"ada,{SECRET},crew,cost 5 per day strict;concurrency 4,env=ci,claude-*,10.0.0.0/8,2027-01-01T00:00:00Z\n",
    )
    key = load_keys().by_id[ApiKey.objects.get().pk]
    assert (key.team, key.tags, key.models, key.ip_allow) == ("crew", {"env": "ci"}, ("claude-*",), ("10.0.0.0/8",))
    assert [(rule.metric, rule.amount) for rule in key.limits] == [("cost", 5 * 10**9), ("concurrency", 4)]


@pytest.mark.parametrize(
    "text, words",
    [
        ("name,secret\nada,short\n", "Line 2: The secret must have 16 characters"),
        ("name,digest\nada,abcd\n", "Line 2: The digest must be a SHA-256 in 64 hexadecimal digits"),
        ("name,secret,digest\nada,,\n", "Line 2: Give the key's secret or its digest"),
        (f"name,secret\nada,{SECRET}\nbob,{SECRET}\n", "Line 3: The key of 'bob' is here already"),
        (f"name,secret,limit\nada,{SECRET},cost many\n", "Line 2: "),
        ("name,password\nada,x\n", "unknown columns: password"),
        ("secret\nx\n", "there is no column `name`"),
    ],
)
def test_a_wrong_row_names_its_line_and_nothing_is_imported(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CommandError) as refused:
        bring(tmp_path, text)
    assert words in str(refused.value)
    assert SECRET not in str(refused.value)
    assert not ApiKey.objects.exists()


def test_an_unknown_suffix_is_refused() -> None:
    with pytest.raises(KeyTextError, match="There is no digest suffix named 'crs'"):
        suffix_named("crs")
    with pytest.raises(KeyTextError, match="a secret needs none"):
        identity(secret=SECRET, suffix=suffix_named("crs", PEPPER))
