"""What accounts ask of a kind of upstream: the one place of this app that reaches the provider registry."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Protocol

from relay.call import Account, Endpoint


class Kind(Protocol):
    """The part of `relay.providers.base.Provider` that selection and the account forms need."""

    @property
    def kind(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def dialects(self) -> frozenset[str]: ...
    @property
    def default_base_url(self) -> str: ...
    @property
    def credential_fields(self) -> tuple[str, ...]: ...
    @property
    def setting_fields(self) -> tuple[str, ...]: ...
    @property
    def address_prefix(self) -> str: ...

    def serves(self, account: Account, endpoint: Endpoint, model: str) -> bool: ...

    def upstream_model(self, account: Account, model: str) -> str: ...

    def check(self, account: Account) -> list[str]: ...

    def renews(self, account: Account) -> bool: ...


@cache
def kinds() -> Mapping[str, Kind]:
    """Return the registry, by the name that stands in `Account.kind`. Imported late: models load before providers."""
    from relay.providers import PROVIDERS

    return PROVIDERS


def family_of(dialect: str) -> str:
    """What a key must be permitted to make calls of this dialect."""
    from relay.dialects import DIALECTS

    return DIALECTS[dialect].family


@cache
def entrances() -> Mapping[str, tuple[Endpoint, str]]:
    """Return the main endpoint of each dialect and the path under which clients call it."""
    from relay.dialects import DIALECTS

    given = ((name, *dialect.entrance) for name, dialect in DIALECTS.items() if dialect.entrance[1])
    return {name: (Endpoint(endpoint, name), path) for name, endpoint, path in given}
