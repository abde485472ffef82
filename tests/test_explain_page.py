"""The admin page that says where a call would go now."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.credentials import encrypt
from accounts.models import Account
from apikeys.authentication import new_secret
from apikeys.models import ApiKey

URL = "/admin/explain/"


@pytest.fixture
def rows(db: None) -> None:
    public_id, _, digest = new_secret()
    ApiKey.objects.create(name="the key", public_id=public_id, digest=digest)
    for name, active in (("on", True), ("off", False)):
        credential = encrypt({"api_key": "sk-ant-secret"})
        Account.objects.create(
            name=name, kind="claude_console", base_url="http://127.0.0.1:1", credential=credential, active=active
        )


def page(client: Client, **query: str) -> str:
    response = client.get(URL, query)
    assert response.status_code == 200
    return response.content.decode()


def test_it_says_what_to_do_first(admin_client: Client) -> None:
    assert "Choose a key and a model" in page(admin_client)


def test_it_names_the_account_and_why_not_the_others(admin_client: Client, rows: None) -> None:
    text = page(admin_client, key="the key", model="claude-sonnet-5-5")
    assert "It would go to on" in text
    assert "switched off" in text
    assert "sk-ant-secret" not in text


def test_a_key_that_is_not_there_is_named(admin_client: Client, rows: None) -> None:
    assert "nobody" in page(admin_client, key="nobody", model="m")


def test_others_do_not_see_it(client: Client) -> None:
    assert client.get(URL).status_code == 302
