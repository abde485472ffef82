"""The report page: its address, its table and chart, its files."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zipfile import ZipFile

import pytest
from django.http import QueryDict
from django.test import Client
from django.urls import reverse
from openpyxl import load_workbook

from apikeys.models import Team
from relay.exports import BOM, to_csv, to_xlsx
from relay.rollup import roll_up
from relay.usage_report import ROWS, STACKED, Asked, Report, buckets, build, read
from tests.admin_cases import make_record, make_user

NOW = datetime(2026, 3, 31, 14, 20, tzinfo=UTC)


def asked(text: str) -> Asked:
    return read(QueryDict(text), now=NOW)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("", ("2026-03-01", "2026-03-31", ("team",), "cost")),
        ("day=last-month&by=key&by=model&show=calls", ("2026-02-01", "2026-02-28", ("key", "model"), "calls")),
        ("from=2026-01-05&to=2026-01-06&by=tag&tag=project", ("2026-01-05", "2026-01-06", ("tag",), "cost")),
        ("by=team&by=team&by=day&by=week", ("2026-03-01", "2026-03-31", ("team", "day"), "cost")),
        ("by=nonsense&show=nonsense", ("2026-03-01", "2026-03-31", ("team",), "cost")),
    ],
)
def test_the_address_says_what_is_asked(text: str, expected: tuple[str, str, tuple[str, ...], str]) -> None:
    found = asked(text)
    assert (str(found.first), str(found.last), found.by, found.shown) == expected
    assert found.problem == ""


@pytest.mark.parametrize(
    "text,word",
    [
        ("day=yesteryear", "can't be read"),
        ("from=2026-02-01&to=2026-01-01", "ends before"),
        ("by=tag", "which tag"),
        ("from=2000-01-01&to=2026-01-01", "at once"),
    ],
)
def test_what_can_not_be_asked_is_said(text: str, word: str) -> None:
    assert word in asked(text).problem


@pytest.mark.parametrize(
    "text",
    ["day=30d&by=team&by=model&show=tokens", "from=2026-01-05&to=2026-01-06&by=tag&tag=a%26b", "day=year&by=day&key=3"],
)
def test_the_address_of_a_report_gives_the_same_report(text: str) -> None:
    found = asked(text)
    assert asked(found.query()) == found


def test_every_step_of_the_time_stands_in_the_chart() -> None:
    first, last = date(2026, 2, 27), date(2026, 3, 9)
    assert [str(day) for day in buckets("week", first, last)] == ["2026-02-23", "2026-03-02", "2026-03-09"]
    assert [str(day) for day in buckets("month", first, last)] == ["2026-02-01", "2026-03-01"]
    assert len(buckets("day", first, last)) == 11


def make_usage() -> None:
    """Two teams and nobody, two models, three days, one name that a spreadsheet could run."""
    search, evil = Team.objects.create(name="Search"), Team.objects.create(name='=HYPERLINK("http://evil.test")')
    for days, (team, model, cost) in enumerate(
        [(search, "claude-opus-5-5", 1), (search, "claude-haiku-5-5", 2_000_000_001), (evil, "claude-opus-5-5", 10**15)]
    ):
        make_record(
            NOW - timedelta(days=days),
            team_id=team.pk,
            team_name=team.name,
            response_model=model,
            cost_nanos=cost,
            usage_source="estimated" if days == 1 else "provider",
            tags={"project": "@sum(1)"},
        )
    make_record(NOW, team_id=None, cost_nanos=5, tags={})


@pytest.mark.django_db
@pytest.mark.parametrize(
    "text,names",
    [
        ("by=team", [('=HYPERLINK("http://evil.test")',), ("Search",), ("no team",)]),
        ("by=model&by=day", None),
        ("by=tag&tag=project", [("@sum(1)",), ("no project",)]),
        ("by=month", [("March 2026",)]),
        ("by=week&by=team", None),
    ],
)
def test_table_chart_and_total_are_the_same_sums(text: str, names: list[tuple[str, ...]] | None) -> None:
    make_usage()
    report = build(asked(text))
    assert sum(row.figures["cost_nanos"] for row in report.rows) == report.total["cost_nanos"] == 10**15 + 2_000_000_007
    drawn = sum(value or 0 for series in report.chart.series for value in series.values)
    assert drawn == report.total["cost_nanos"]
    if names:
        assert [tuple(cell.text for cell in row.cells) for row in report.rows] == names


@pytest.mark.django_db
def test_what_does_not_fit_the_palette_is_drawn_as_others() -> None:
    for number in range(STACKED + 3):
        make_record(NOW, key_id=number + 1, key_name=f"key {number}", cost_nanos=number + 1)
    report = build(asked("by=key"))
    assert [series.name for series in report.chart.series][-1] == "3 others"
    assert sum(value or 0 for series in report.chart.series for value in series.values) == report.total["cost_nanos"]


def rows_of(report: Report) -> list[dict[str, str]]:
    text = "".join(to_csv(report))
    assert text.startswith(BOM)
    return list(csv.DictReader(io.StringIO(text.removeprefix(BOM))))


@pytest.mark.django_db
def test_csv_has_exact_decimals_and_no_formula() -> None:
    make_usage()
    roll_up()
    rows = rows_of(build(asked("by=team&by=tag&tag=project")))
    assert [row["cost_usd"] for row in rows] == ["1000000.000000000", "2.000000002", "0.000000005"]
    assert sum(Decimal(row["cost_usd"]) for row in rows) == Decimal("1000002.000000007")
    assert rows[0]["team"] == '\'=HYPERLINK("http://evil.test")'
    assert rows[0]["project"] == "'@sum(1)"
    assert rows[1]["estimated_cost_usd"] == "2.000000001"


@pytest.mark.django_db
def test_xlsx_has_exact_decimals_a_total_and_no_formula() -> None:
    make_usage()
    book = load_workbook(io.BytesIO(to_xlsx(build(asked("by=team")))))
    cells: list[list[Any]] = [list(row) for row in book.active.iter_rows()]
    assert [cell.data_type for row in cells for cell in row if cell.data_type == "f"] == []
    column = [cell.value for cell in cells[0]].index("cost_usd")
    assert cells[1][0].value == '=HYPERLINK("http://evil.test")'
    assert [Decimal(str(row[column].value)) for row in cells[1:]] == [
        Decimal("1000000"),
        Decimal("2.000000002"),
        Decimal("0.000000005"),
        Decimal("1000002.000000007"),
    ]
    assert cells[-1][0].value == "Total"


@pytest.mark.django_db
def test_xlsx_has_the_nano_dollars_of_millions() -> None:
    make_record(NOW, cost_nanos=12_345_678_123_456_789)
    with ZipFile(io.BytesIO(to_xlsx(build(asked("by=team"))))) as book:
        assert b"<v>12345678.123456789</v>" in book.read("xl/worksheets/sheet1.xml")


@pytest.mark.django_db
@pytest.mark.parametrize("form,kind", [("csv", "text/csv"), ("xlsx", "spreadsheetml"), ("", "text/html")])
def test_the_page_and_its_files_answer(client: Client, form: str, kind: str) -> None:
    client.force_login(make_user("ada", superuser=True))
    make_usage()
    answer = client.get(reverse("admin:usage_report"), {"by": ["team", "model"], "day": "year", "format": form})
    assert answer.status_code == 200
    assert kind in answer["content-type"]
    if form:
        assert f".{form}" in answer["content-disposition"]


@pytest.mark.django_db
def test_the_page_names_its_zone_and_each_row_leads_to_its_records(client: Client) -> None:
    client.force_login(make_user("ada", superuser=True))
    now = datetime.now(UTC)
    team = Team.objects.create(name="Search")
    make_record(now, team_id=team.pk, team_name="Search", cost_nanos=123)
    make_record(now, cost_nanos=1)
    page = client.get(reverse("admin:usage_report"), {"by": "team", "day": "today"})
    assert "days of UTC" in page.text
    row = next(row for row in page.context["rows"] if row.cells[0].text == "Search")
    listed = client.get(row.records.replace("/usagerecord/?", "/usagerecord/totals/?"))
    assert "$0.000000123" in listed.text
    assert f"team={team.pk}" in row.records


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["team", "provider", "model"])
def test_a_row_of_nobody_leads_to_its_own_figures_and_records(client: Client, name: str) -> None:
    client.force_login(make_user("ada", superuser=True))
    nobody: dict[str, Any] = {"team_id": None, "provider": "", "response_model": "", "upstream_model": ""}
    make_record(datetime.now(UTC), cost_nanos=123, requested_model="", **nobody)
    make_record(datetime.now(UTC), cost_nanos=1, team_id=2)
    page = client.get(reverse("admin:usage_report"), {"by": name, "day": "today"})
    row = next(row for row in page.context["rows"] if row.cells[0].text == f"no {name}")
    narrowed = client.get(reverse("admin:usage_report") + row.cells[0].link)
    listed = client.get(row.records.replace("/usagerecord/?", "/usagerecord/totals/?"))
    assert narrowed.context["report"].total["cost_nanos"] == 123
    assert "$0.000000123" in listed.text


@pytest.mark.django_db
def test_a_long_table_is_cut_on_the_page_and_whole_in_the_file(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.usage_report.ROWS", 2)
    assert ROWS > 2
    client.force_login(make_user("ada", superuser=True))
    for number in range(5):
        make_record(datetime.now(UTC), key_id=number + 1, key_name=f"key {number}")
    page = client.get(reverse("admin:usage_report"), {"by": "key", "day": "today"})
    assert "3 more rows" in page.text
    assert len(rows_of(page.context["report"])) == 5
