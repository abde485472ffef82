"""The documents promise nothing that is not there: links, commands, variables, code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from django.core.management import get_commands

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
names = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_commands_exist(page: Path) -> None:
    named = set(re.findall(r"manage\.py ([a-z_]+)", page.read_text()))
    assert named - set(get_commands()) == set()


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`?\bmake ([a-z-]+)(?=`|  )", page.read_text())) - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_python_in_them_is_python(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        assert ast.parse(block).body


def test_every_variable_of_the_deployment_page_is_read() -> None:
    table = re.findall(r"^\| (`[A-Z_`, ]+`) \|", (ROOT / "docs/deployment.md").read_text(), flags=re.MULTILINE)
    named = {name for row in table for name in re.findall(r"[A-Z_]{3,}", row)}
    read = (ROOT / "relay_site/settings.py").read_text()
    assert len(named) > 10
    assert [name for name in sorted(named) if f'"{name}"' not in read] == []


def test_every_place_of_the_nginx_example_tells_who_calls() -> None:
    """A location with one header of its own inherits none."""
    example = (ROOT / "docs/deployment.md").read_text().partition("```nginx\n")[2].partition("```")[0]
    places = [place for place in re.findall(r"location [^{]+{[^}]+}", example) if "proxy_set_header" in place]
    wanted = ("Host $host", "X-Forwarded-For $proxy_add_x_forwarded_for", "X-Forwarded-Proto $scheme")
    assert places and [(place, header) for place in places for header in wanted if header not in place] == []


def test_the_changelog_knows_this_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()
