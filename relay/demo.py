"""A month of demo data: through the ledger's own way into the database, marked, and removable without a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

import msgspec
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet, Sum

from accounts.credentials import encrypt
from accounts.models import Account, AccountEvent
from apikeys.authentication import new_secret
from apikeys.models import ApiKey, Limit, Team
from relay import rollup
from relay.call import Record
from relay.demo_calls import ORIGIN, TAG, Caller, Upstream, calls
from relay.entries import Entry, Kind
from relay.models import BillingPeriod, UsageCorrection, UsageRecord
from relay.partitions import first_id
from relay.prices import load_prices
from relay.reports import report_zone
from relay.rows import Books
from relay.spans import midnight

MARK = "Made up by manage.py seed_demo; remove with --remove."
# A model that nobody asks for: an account with this map never takes a real call.
NO_MODELS = {"demo-only": "demo-only"}
ACCOUNTS = (
    ("Demo Anthropic A", "claude_official", "anthropic"),
    ("Demo Anthropic B", "claude_official", "anthropic"),
    ("Demo OpenAI", "openai", "openai"),
)
# Team, cost centre, keys: name, share of the calls, project, user agent.
TEAMS = (
    (
        "Demo Search",
        "CC-100",
        (("demo-search-api", 9.0, "ranking", "openai-python"), ("demo-search-ci", 2.0, "ci", "curl")),
    ),
    ("Demo Support", "CC-200", (("demo-support-bot", 7.0, "helpdesk", "anthropic-sdk-typescript"),)),
    ("Demo Research", "CC-300", (("demo-claude-code", 5.0, "prototypes", "claude-cli"),)),
    ("", "", (("demo-notebooks", 1.5, "", "anthropic-sdk-python"),)),
)
KEY_NAMES = [name for _, _, keys in TEAMS for name, *_ in keys]
EXPIRING, EXPIRES = "demo-notebooks", timedelta(days=9)
NEARLY_SPENT = "demo-search-ci"
DIME = 10**8
BUDGET = 5000 * DIME
CHUNK = 500
SEED = 20261
GoOn = Callable[[], bool]


class DemoExists(Exception):
    """There is demo data already."""


class DemoNameTaken(Exception):
    """Somebody's own key, team or account has the name of one of the demo's."""


class DemoClosed(Exception):
    """The days reach into a month that finance has closed: its figures stand."""


class DemoUnwanted(Exception):
    """Somebody has taken the demo data away while it was written; nothing of it is left."""


@dataclass(frozen=True, slots=True)
class Seeded:
    records: int
    hours: int


def seed(*, days: int, per_day: int, now: datetime, chunk: int = CHUNK, go_on: GoOn = lambda: True) -> Seeded:
    """Write the demo's rows and so many days of records, and roll them up.

    `go_on` is asked before each chunk: it may take its time, and says whether the demo is still wanted. Raises
    `DemoExists`, `DemoNameTaken`, `DemoClosed` and `DemoUnwanted`.
    """
    if exists():
        raise DemoExists
    since = (now - timedelta(days=days)).astimezone(report_zone()).date()
    if BillingPeriod.objects.exclude(closed_at=None).filter(end__gt=since).exists():
        raise DemoClosed
    try:
        with transaction.atomic():
            upstreams = [make_account(*given) for given in ACCOUNTS]
            callers = make_callers(now=now)
            make_events(upstreams, now=now)
    except IntegrityError:  # names are taken once: somebody began at the same moment, or has called something so
        raise DemoExists if exists() else DemoNameTaken from None
    made = calls(
        days=days,
        per_day=per_day,
        now=now,
        callers=callers,
        upstreams=upstreams,
        prices=load_prices(),
        seed=SEED,
    )
    books, written = Books(), 0
    try:
        while batch := list(islice(made, chunk)):
            if not go_on():
                raise DemoUnwanted
            written += books.add([entry_of(record) for record in batch])
        # Last: a relay that runs counts what is in the ledger when it first sees a limit.
        make_limits(callers, now=now)
    except DemoUnwanted:
        remove()
        raise
    finally:
        books.close()
    return Seeded(written, rollup.roll_up().hours)


def exists() -> bool:
    """Whether there is demo data, a part of it at least."""
    return demo_keys().exists()


def demo_keys() -> QuerySet[ApiKey]:
    """The demo's own: anybody may give a key of theirs the tag."""
    return ApiKey.objects.filter(name__in=KEY_NAMES, **{f"tags__{TAG}": "1"})


def in_period(start: datetime, end: datetime) -> bool:
    """Whether made-up records lie in this time."""
    return UsageRecord.objects.filter(origin=ORIGIN, pk__gte=first_id(start), pk__lt=first_id(end)).exists()


def entry_of(record: Record) -> Entry:
    return Entry(Kind.END, record.id, record.created_at, msgspec.json.encode(record))


def make_account(name: str, kind: str, provider: str) -> Upstream:
    account = Account.objects.create(
        name=name,
        kind=kind,
        description=MARK,
        priority=100,
        model_map=NO_MODELS,
        credential=encrypt({"api_key": "demo-no-credential"}),
    )
    return Upstream(account.pk, account.name, provider)


def make_callers(*, now: datetime) -> list[Caller]:
    callers = []
    for team_name, cost_center, keys in TEAMS:
        team = None
        if team_name:
            team = Team.objects.create(name=team_name, cost_center=cost_center, description=MARK)
        for name, weight, project, user_agent in keys:
            tags = {TAG: "1"} | ({"project": project} if project else {})
            public_id, _, digest = new_secret()
            expires = now + EXPIRES if name == EXPIRING else None
            key = ApiKey.objects.create(
                name=name, public_id=public_id, digest=digest, team=team, tags=tags, expires_at=expires
            )
            team_id = team.pk if team else None
            callers.append(Caller(key.pk, name, team_id, team_name, weight, tags, user_agent))
    return callers


def make_limits(callers: list[Caller], *, now: datetime) -> None:
    """A monthly budget for each key; that of one is nearly spent. Raises `DemoUnwanted` where the keys are gone."""
    month = midnight(now.astimezone(report_zone()).date().replace(day=1), report_zone())
    with transaction.atomic():
        kept = ApiKey.objects.select_for_update().filter(pk__in=[caller.key_id for caller in callers])
        if len(kept) < len(callers):
            raise DemoUnwanted
        for caller in callers:
            amount = BUDGET
            if caller.key_name == NEARLY_SPENT:
                used = UsageRecord.objects.filter(key_id=caller.key_id, pk__gte=first_id(month))
                spent = used.aggregate(cost=Sum("cost_nanos"))["cost"] or 0
                amount = (spent * 100 // 88 // DIME + 1) * DIME
            Limit.objects.create(key_id=caller.key_id, metric=Limit.Metric.COST, amount=amount, per=Limit.Per.MONTH)


def make_events(upstreams: list[Upstream], *, now: datetime) -> None:
    """One account that rests for a while, and its past."""
    first = upstreams[1]
    shared = {"account_id": first.account_id, "account_name": first.account_name, "model": "claude-opus-5-5"}
    for ago, kind, cause, length in (
        (timedelta(days=2), "rest", "429", timedelta(minutes=5)),
        (timedelta(days=2) - timedelta(minutes=6), "recovered", "a call succeeded", None),
        (timedelta(minutes=1), "rest", "429", timedelta(minutes=30)),
    ):
        at = now - ago
        status = 429 if length else None
        AccountEvent.objects.create(
            **shared, at=at, kind=kind, cause=cause, until=at + length if length else None, http_status=status
        )


def remove(*, roll_up: bool = True) -> int:
    """Take away everything that `seed` made, whenever it was; return how many records went.

    Without `roll_up` that is left to the next roll-up; reports are right before it too.
    """
    keys = list(demo_keys().values_list("pk", flat=True))
    removed = remove_records(keys)
    with transaction.atomic():
        accounts = list(Account.objects.filter(description=MARK).values_list("pk", flat=True))
        AccountEvent.objects.filter(account_id__in=accounts).delete()
        ApiKey.objects.filter(pk__in=keys).delete()
        Team.objects.filter(description=MARK).delete()
        Account.objects.filter(pk__in=accounts).delete()
    removed += remove_records(keys)  # whoever was writing them finds no key from now on
    if roll_up:
        rollup.roll_up()
    return removed


def remove_records(keys: list[int]) -> int:
    """Take away the made-up records and their corrections; return how many went. Older ones are known by the demo's
    keys and their tag alone."""
    older = Q(key_id__in=keys, **{f"tags__{TAG}": "1"})
    records = UsageRecord.objects.filter(Q(origin=ORIGIN) | older).order_by()
    removed = 0
    while ids := list(records.values_list("pk", flat=True)[:CHUNK]):
        with transaction.atomic():
            batch = UsageRecord.objects.filter(pk__in=ids)
            corrections = UsageCorrection.objects.filter(record_id__in=ids)
            rollup.mark(batch.values_list("created_at", flat=True))
            rollup.mark(corrections.values_list("booked_at", flat=True))
            corrections.delete()
            batch.delete()
        removed += len(ids)
    return removed
