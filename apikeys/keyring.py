"""API keys as the relay holds them in memory: rows -> `relay.call.Key`, found by digest."""

from __future__ import annotations

import hashlib
import logging
import zoneinfo
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from django.db.models import Q

from accounts.credentials import CredentialUnreadable, decrypt_text
from apikeys.models import ApiKey, Binding, DigestSuffix, Limit, Team
from relay.call import BindingRule, Key, LimitRule
from relay.state.snapshot import chunked

logger = logging.getLogger(__name__)

KEY_TABLES = ("apikeys_apikey", "apikeys_team", "apikeys_limit", "apikeys_binding", "apikeys_digestsuffix")
KEY_COLUMNS = (
    "pk", "name", "public_id", "digest", "team_id", "active", "expires_at", "families", "model_patterns", "tags",
    "ip_allow", "previous_digest", "previous_until",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that are not deleted, disabled and expired ones included."""

    by_digest: Mapping[bytes, Key] = field(default_factory=dict)
    by_id: Mapping[int, Key] = field(default_factory=dict)
    # What other relays appended to a key before they hashed it; tried for keys that are not found without.
    suffixes: tuple[bytes, ...] = ()

    def find_foreign(self, secret: str) -> Key | None:
        """A key brought along from a relay that hashes with a suffix."""
        for suffix in self.suffixes:
            digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape") + suffix).digest()
            if (key := self.by_digest.get(digest)) is not None:
                return key
        return None


@dataclass(frozen=True, slots=True)
class Rules:
    """What stands on keys and teams, by owner; `defaults` are what a team gives to each of its keys."""

    team_names: Mapping[int, str]
    of_keys: Mapping[int, tuple[LimitRule, ...]]
    of_teams: Mapping[int, tuple[LimitRule, ...]]
    defaults: Mapping[int, tuple[LimitRule, ...]]
    bindings: Mapping[int, tuple[BindingRule, ...]]

    def of(self, key_id: int, team_id: int | None) -> tuple[LimitRule, ...]:
        """The limits of one key: its own, its team's defaults that it has no such limit of its own for, its team's."""
        own, team = self.of_keys.get(key_id, ()), team_id or 0
        replaced = {(rule.metric, rule.per, rule.models) for rule in own}
        given = (
            replace(rule, owner_id=key_id)
            for rule in self.defaults.get(team, ())
            if (rule.metric, rule.per, rule.models) not in replaced
        )
        return (*own, *given, *self.of_teams.get(team, ()))


def load_keys(before: KeyRing | None = None) -> KeyRing:
    """Return every key that is not deleted; keys that are as they were `before` stay the same objects.

    Keys are read before limits and bindings: a key that commits in between is missing for one poll (and looked up),
    it is never there without its limits.
    """
    known = before.by_id if before is not None else {}
    rows = list(chunked(ApiKey.objects.alive().values_list(*KEY_COLUMNS)))
    rules = load_rules()
    by_digest: dict[bytes, Key] = {}
    by_id: dict[int, Key] = {}
    for row in rows:
        key = key_of(row, rules)
        key = by_id[key.id] = known[key.id] if known.get(key.id) == key else key
        by_digest |= digests_of(key, row)
    return KeyRing(by_digest=by_digest, by_id=by_id, suffixes=load_suffixes())


def load_suffixes() -> tuple[bytes, ...]:
    """The suffixes that other relays hashed with; one that can't be decrypted is left out, and said."""
    found = []
    for name, token in DigestSuffix.objects.order_by("pk").values_list("name", "suffix"):
        try:
            found.append(decrypt_text(token).encode())
        except CredentialUnreadable as error:
            logger.error("The digest suffix %s can't be decrypted, so its keys don't work: %s", name, error)
    return tuple(found)


def load_key(digests: Iterable[bytes]) -> Key | None:
    """Return the one key with one of these digests, straight from the database."""
    wanted = list(digests)
    matching = Q(digest__in=wanted) | Q(previous_digest__in=wanted)
    row = ApiKey.objects.alive().filter(matching).values_list(*KEY_COLUMNS).first()
    if row is None:
        return None
    found = digests_of(key_of(row, load_rules(key_id=row[0], team_id=row[4])), row)
    return next(found[digest] for digest in wanted if digest in found)


def digests_of(key: Key, row: Any) -> dict[bytes, Key]:
    """The key by its digest, and by the one before its last rotation, with which it expires sooner."""
    previous, until = row[-2:]
    if previous is None or until is None:
        return {key.digest: key}
    ends = min(until.timestamp(), key.expires_at if key.expires_at is not None else until.timestamp())
    return {key.digest: key, bytes(previous): replace(key, expires_at=ends)}


def load_rules(*, key_id: int | None = None, team_id: int | None = None) -> Rules:
    """The limits and bindings of all keys, or those of one key and its team; one query a table."""
    limits, bindings, teams = Limit.objects.filter(account=None), Binding.objects.all(), Team.objects.all()
    if key_id is not None:
        limits = Limit.objects.filter(key_id=key_id)
        if team_id is not None:
            limits |= Limit.objects.filter(team_id=team_id)
        bindings, teams = bindings.filter(key_id=key_id), teams.filter(pk=team_id)
    of_keys: dict[int, list[LimitRule]] = defaultdict(list)
    of_teams: dict[int, list[LimitRule]] = defaultdict(list)
    defaults: dict[int, list[LimitRule]] = defaultdict(list)
    columns = ("each_key", "pk", "key_id", "team_id", "metric", "amount", "per", "model_pattern", "time_zone", "strict")
    for each_key, pk, key, team, *rest in limits.order_by("pk").values_list(*columns):
        rule = rule_of(pk, key, team, rest)
        if each_key:
            defaults[team].append(replace(rule, scope="key", owner_id=0))
        else:
            (of_keys[key] if key else of_teams[team]).append(rule)
    bound: dict[int, list[BindingRule]] = defaultdict(list)
    for key, account, group, fallback in bindings.order_by("pk").values_list(
        "key_id", "account_id", "group_id", "fallback"
    ):
        bound[key].append(BindingRule(account, group, fallback))
    return Rules(
        team_names=dict(teams.values_list("pk", "name")),
        of_keys={owner: tuple(found) for owner, found in of_keys.items()},
        of_teams={owner: tuple(found) for owner, found in of_teams.items()},
        defaults={owner: tuple(found) for owner, found in defaults.items()},
        bindings={owner: tuple(found) for owner, found in bound.items()},
    )


def rule_of(pk: int, key_id: int | None, team_id: int | None, rest: list[Any]) -> LimitRule:
    metric, amount, per, models, time_zone, strict = rest
    if time_zone not in zoneinfo.available_timezones():
        logger.error("Limit %s has no time zone that this system knows (%s); it follows UTC", pk, time_zone)
        time_zone = "UTC"
    scope, owner = ("key", key_id) if key_id else ("team", team_id)
    return LimitRule(
        id=pk,
        scope=scope,
        owner_id=owner or 0,
        metric=metric,
        amount=amount,
        per=per,
        models=models,
        time_zone=time_zone,
        strict=strict,
    )


def key_of(row: Any, rules: Rules) -> Key:
    """One row of KEY_COLUMNS as the relay needs it."""
    pk, name, public_id, digest, team_id, active, expires_at, families, models, tags, ip_allow, _, _ = row
    return Key(
        id=pk,
        name=name,
        public_id=public_id,
        digest=bytes(digest),
        team_id=team_id,
        team=rules.team_names.get(team_id, ""),
        active=active,
        expires_at=expires_at.timestamp() if expires_at else None,
        families=frozenset(families),
        models=tuple(models),
        bindings=rules.bindings.get(pk, ()),
        limits=rules.of(pk, team_id),
        tags=tags,
        ip_allow=tuple(ip_allow),
    )
