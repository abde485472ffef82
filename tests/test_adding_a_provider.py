"""docs/adding-a-provider.md, done word by word in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import inherited_env

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/adding-a-provider.md"
COPIED = ("relay", "accounts", "apikeys", "relay_site", "templates", "tests", "docs", "manage.py", "pyproject.toml")
REGISTRY = "relay/providers/__init__.py"
# A heading, or the text above a block, names the file that the blocks after it are for.
FILE = re.compile(r"`((?:relay|tests)/[\w/.]+\.\w+)`:?\n")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n", flags=re.DOTALL | re.MULTILINE)
LONGEST = 100  # lines of Python in all


def blocks() -> list[tuple[str, str]]:
    """The page's blocks, each with the file it is for, in the order of the page."""
    text = PAGE.read_text().partition("\n## 5.")[0]
    found = []
    for block in BLOCK.finditer(text):
        path = FILE.findall(text[: block.start()])[-1]
        found.append((path, block[2]))
    return found


def commands() -> list[list[str]]:
    """What the page says to run at the end, by this interpreter."""
    (block,) = BLOCK.finditer(PAGE.read_text().partition("\n## 5.")[2])
    return [[sys.executable, *words(line)] for line in block[2].splitlines()]


def words(line: str) -> list[str]:
    program, *rest = re.findall(r'"[^"]*"|\S+', line)
    assert program == ".venv/bin/python"
    return [word.strip('"') for word in rest]


def registered(text: str, imported: str, entry: str) -> str:
    """The registry with its two new lines: the import after the others, the instance at the end."""
    imports, found, rest = text.partition("\nPROVIDERS: ")
    text = f"{imports}{imported}{found}{rest}"
    end = text.index("\n    )\n}") + 1
    return text[:end] + entry + text[end:]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what belongs to the tree, and no more."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *COPIED],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    copy = tmp_path / "tree"
    for name in os.fsdecode(listed.stdout).split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def test_the_page_needs_less_than_a_hundred_lines_of_python() -> None:
    lines = [line for path, block in blocks() if path.endswith(".py") for line in block.splitlines()]
    assert 0 < len(lines) < LONGEST


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_adds_a_provider(tree: Path, tmp_path: Path) -> None:
    parts = blocks()
    imported, entry = (block for path, block in parts if path == REGISTRY)
    (tree / REGISTRY).write_text(registered((tree / REGISTRY).read_text(), imported, entry))
    for path, block in parts:
        if path != REGISTRY:
            assert not (tree / path).exists()
            (tree / path).parent.mkdir(exist_ok=True)
            (tree / path).write_text(block)
    env = {**inherited_env(), "RELAY_DATA_DIR": str(tmp_path / "data"), "RELAY_SECRET_KEYS": "of this test only"}
    said = ""
    for command in commands():
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout
    ran = re.findall(r"^(tests/\S+\.py) \.", said, flags=re.MULTILINE)
    assert set(ran) == {"tests/providers/test_deepseek.py", "tests/test_architecture.py", "tests/test_matrix.py"}
    assert "No changes detected" in said
