"""Every list, filter, search and report of the admin, the queries that each of them asks, and their plans."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client, RequestFactory
from django.urls import reverse

from relay.models import UsageRecord
from relay.usage_report import GROUPINGS

RECORDS, GROWING = "relay_usagerecord", ("relay_usagerecord", "relay_usagehour", "relay_usageday")


@dataclass(slots=True)
class Scan:
    """One table, or partition, read by a plan: how, how many rows were taken and how many were read in vain."""

    table: str
    node: str
    index: str
    rows: int
    vain: int


@dataclass(slots=True)
class Page:
    """One address, and what its queries did."""

    address: str
    status: int = 0
    seconds: float = 0.0
    scans: list[Scan] = field(default_factory=list)

    def records(self) -> list[Scan]:
        """The reads of usage records."""
        return [scan for scan in self.scans if scan.table.startswith(RECORDS)]

    def growing(self) -> list[Scan]:
        """The reads of usage records and of their roll-ups."""
        return [scan for scan in self.scans if scan.table.startswith(GROWING)]

    def vain(self) -> int:
        """The most rows of those that one of its queries read in vain."""
        return max((scan.vain for scan in self.growing()), default=0)


def lists(user: User) -> Iterator[str]:
    """Yield the address of every list of the admin, as it is, and with each of its filters and searches."""
    request = RequestFactory().get("/")
    request.user = user
    for model, page in sorted(admin.site._registry.items(), key=lambda item: item[0]._meta.label):
        base = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
        yield base
        if page.search_fields:
            yield f"{base}?q=nobody-has-this"
        changelist = page.get_changelist_instance(request)
        for spec in changelist.filter_specs:
            queries = [query for choice in spec.choices(changelist) for query in offered(choice)]
            yield from (f"{base}{query}" for query in few(list(dict.fromkeys(queries))) if query != "?")


def offered(choice: dict[str, Any]) -> list[str]:
    """The query strings of what a filter offers, as a link or as a form of unfold's."""
    if "query_string" in choice:
        return [choice["query_string"]]
    fields = getattr(choice.get("form"), "fields", {})
    return ["?" + urlencode({name: value}) for name, box in fields.items() for value, _ in getattr(box, "choices", ())]


def few(choices: list[str]) -> list[str]:
    """All of a few choices; of a list as long as a table the ends."""
    return choices if len(choices) <= 24 else [*choices[:3], *choices[-2:]]


def records_with_values_that_are_rare() -> Iterator[str]:
    """Yield the record list narrowed to what few records have, or none: where a list without an index reads it all."""
    base = reverse("admin:relay_usagerecord_changelist")
    for query in ("model=claude-rare", "model=none", "provider=none", "key=999999", "team=999999", "account=999999"):
        yield f"{base}?{query}"
    newest = UsageRecord.objects.order_by("-id").first()
    if newest is None:
        return
    terms = (str(newest.pk), str(newest.pk)[:13], newest.response_id, newest.upstream_request_id, newest.session)
    yield from (f"{base}?q={term}" for term in terms if term)
    yield reverse("admin:relay_usagerecord_change", args=[newest.pk])


def reports() -> Iterator[str]:
    """Yield the dashboard, and the usage report by each dimension, over a quarter and over a day."""
    yield from (f"{reverse('admin:index')}?by={by}" for by in ("hour", "day"))
    base = reverse("admin:usage_report")
    for by in (name for name in GROUPINGS if name != "tag"):
        yield from (f"{base}?day={day}&by={by}" for day in ("quarter", "24h"))
    yield f"{base}?day=30d&by=team&by=day&format=csv"
    yield f"{base}?day=30d&by=key&key=7"


def visit(client: Client, address: str, *, clock: Callable[[], float]) -> Page:
    """Fetch a page; explain and analyse each of its queries. Raises what the page raises."""
    page, asked = Page(address), []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("SELECT") and not many:
            asked.append((sql, params))
        return execute(sql, params, many, context)

    start = clock()
    with connection.execute_wrapper(note):
        response = client.get(address)
        if response.streaming:
            b"".join(response)  # type: ignore[arg-type]
    page.status, page.seconds = response.status_code, clock() - start
    for sql, params in asked:
        page.scans.extend(scans(sql, params))
    return page


def scans(sql: str, params: Any) -> list[Scan]:
    """Return the tables that the query reads, as PostgreSQL did it. Runs the query."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {sql}", params)
        [[plan]] = cursor.fetchall()
    plan = json.loads(plan) if isinstance(plan, str) else plan
    return list(read_plan(plan[0]["Plan"]))


def read_plan(node: dict[str, Any]) -> Iterator[Scan]:
    """Yield the scans below a node of a plan that were carried out; rows over all loops."""
    loops = node.get("Actual Loops", 0)
    if loops and "Relation Name" in node:
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        index = node.get("Index Name") or ", ".join(
            below["Index Name"] for below in node.get("Plans", ()) if "Index Name" in below
        )
        rows, vain = (round(figure * loops) for figure in (node["Actual Rows"], removed))
        yield Scan(node["Relation Name"], node["Node Type"], index, rows, vain)
    for below in node.get("Plans", ()):
        yield from read_plan(below)


@contextmanager
def signed_in() -> Iterator[tuple[Client, User]]:
    """A client of the admin's pages, signed in as a superuser who is gone afterwards."""
    user = User.objects.create_superuser("bench-pages", password=None)
    client = Client(SERVER_NAME="localhost")
    client.force_login(user)
    try:
        yield client, user
    finally:
        user.delete()
