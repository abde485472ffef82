"""Credentials at rest: what goes in comes out, under every key that was ever used, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from accounts.credentials import CredentialUnreadable, decrypt, decrypt_text, encrypt, encrypt_text, is_newest, rotate

FIELDS = {"api_key": "sk-ant-canary", "note": "žluť"}


@given(st.dictionaries(st.text(), st.text()))
def test_what_is_encrypted_comes_back(fields: dict[str, str]) -> None:
    assert decrypt(encrypt(fields)) == fields


def test_nothing_is_stored_as_nothing() -> None:
    assert (encrypt({}), encrypt_text("")) == (b"", b"")
    assert (decrypt(b""), decrypt_text(b"")) == ({}, "")


def test_the_secret_is_not_in_what_is_stored() -> None:
    assert b"canary" not in encrypt(FIELDS)


def test_postgresql_hands_out_memoryviews() -> None:
    assert decrypt(memoryview(encrypt(FIELDS))) == FIELDS


def test_an_older_key_still_decrypts_and_the_newest_encrypts(settings: Settings) -> None:
    settings.RELAY_SECRET_KEYS = ["old"]
    token = encrypt(FIELDS)
    settings.RELAY_SECRET_KEYS = ["new", "old"]
    assert decrypt(token) == FIELDS
    assert (is_newest(token), is_newest(rotate(token))) == (False, True)
    rotated = rotate(token)
    settings.RELAY_SECRET_KEYS = ["new"]
    assert decrypt(rotated) == FIELDS


def test_no_key_fits_is_said_without_the_secret(settings: Settings) -> None:
    settings.RELAY_SECRET_KEYS = ["old"]
    token = encrypt(FIELDS)
    settings.RELAY_SECRET_KEYS = ["other"]
    with pytest.raises(CredentialUnreadable, match="None of the keys in RELAY_SECRET_KEYS decrypts it") as caught:
        decrypt(token)
    assert "canary" not in repr(caught.value)


@pytest.mark.parametrize("text", ["no json", "[1]", '{"api_key": 5}'])
def test_what_decrypts_to_no_fields_is_no_credential(text: str) -> None:
    with pytest.raises(CredentialUnreadable, match="no set of fields"):
        decrypt(encrypt_text(text))
