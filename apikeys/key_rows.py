"""How commands find and write the rows around a key: its team, its limits, the accounts that it is bound to."""

from __future__ import annotations

from collections.abc import Iterable

from accounts.models import Account, AccountGroup
from apikeys.key_text import KeyTextError, name_of
from apikeys.limit_text import LimitText
from apikeys.models import ApiKey, Binding, Limit, Team

FALLBACK = ":fallback"


def key_named(name: str) -> ApiKey:
    """Return the one key of that name; raises `KeyTextError` where there is none, or more than one."""
    found = list(ApiKey.objects.filter(name=name, deleted_at=None)[:2])
    if len(found) != 1:
        how_many = "More than one key is" if found else "No key is"
        raise KeyTextError(f"{how_many} named {name!r}.")
    key: ApiKey = found[0]
    return key


def team_named(name: str) -> Team | None:
    """Return the team, made if there is none of that name yet; "" = no team."""
    if not name:
        return None
    team = Team.objects.filter(name=name).first()
    if team is None:
        team = Team(name=name_of("team", name))
        team.full_clean()
        team.save()
    if team.deleted_at is not None:
        raise KeyTextError(f"team {name!r} was deleted.")
    return team


def binding_to(key: ApiKey, text: str) -> Binding:
    """Return an unsaved binding to the account or group of that name; `NAME:fallback` may return to the pool."""
    name, fallback = text.removesuffix(FALLBACK), text.endswith(FALLBACK)
    account = Account.objects.filter(name=name, deleted_at=None).first()
    group = AccountGroup.objects.filter(name=name).first()
    if account and group:
        raise KeyTextError(f"{name!r} is an account and a group; give one of them another name.")
    if not (account or group):
        raise KeyTextError(f"No account or group is named {name!r}.")
    return Binding(key=key, account=account, group=group, fallback=fallback)


def set_bindings(key: ApiKey, texts: Iterable[str]) -> None:
    """Bind the key to these and to nothing else."""
    wanted = [binding_to(key, text) for text in texts if text]
    key.bindings.all().delete()
    for binding in wanted:
        binding.save()


def set_limits(key: ApiKey, limits: Iterable[LimitText]) -> None:
    """Give the key these limits and no others. One of which only the amount changes keeps its row, and so its count."""
    kept = {same_count(limit_of(row)): row for row in key.limits.all()}
    for limit in limits:
        row = kept.pop(same_count(limit), None) or Limit(key=key)
        for column, value in limit.columns().items():
            setattr(row, column, value)
        row.full_clean()
        row.save()
    Limit.objects.filter(pk__in=[row.pk for row in kept.values()]).delete()


def limit_of(row: Limit) -> LimitText:
    return LimitText(
        row.metric, row.amount, per=row.per, strict=row.strict, models=row.model_pattern, time_zone=row.time_zone
    )


def same_count(limit: LimitText) -> tuple[str, str, str, str]:
    return limit.metric, limit.per, limit.models, limit.time_zone
