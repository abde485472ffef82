"""The rules of the house (DESIGN section 1), read from the sources themselves."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from django.core.management import call_command

from accounts.models import Account, kind_choices
from relay.dialects import DIALECTS
from relay.dialects.base import Dialect
from relay.providers import FAMILIES, PROVIDERS
from relay.providers.base import Provider

ROOT = Path(__file__).resolve().parent.parent
APPS = ("relay_site", "accounts", "apikeys", "relay")
LEAVES = (
    "relay.call",
    "relay.errors",
    "relay.sse",
    "relay.eventstream",
    "relay.pricing",
    "relay.dialects",
    "relay.providers",
    "relay.translators",
)
# What a module that does no I/O has no use for.
IO = frozenset(
    "django asyncio socket ssl selectors subprocess threading multiprocessing tempfile shutil sqlite3 pathlib io "
    "httpx aiohttp requests redis psycopg celery channels ninja logging".split()
) | {"urllib.request", "http.client"}
# The steps of a call, as the pipeline tells them (DESIGN section 2).
STEPS = frozenset({"apikeys.admission", "accounts.selection", "relay.answer", "relay.settlement"})
OPEN_TO_APPS = ("relay.call", "relay.errors", "relay.state")
# The registries may be asked late, inside functions: choices of a model field, fields of a form.
REGISTRIES = frozenset({"relay.providers", "relay.dialects"})
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
VAGUE = re.compile(r"(?:Service|Manager|Helper|Util|Utils|Handler)$|^process_")


@dataclass(frozen=True)
class Module:
    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    @cached_property
    def imports(self) -> set[str]:
        """Everything imported anywhere in the file; of `from a import b` both `a` and `a.b`."""
        return set(imported(self.tree))

    @cached_property
    def late_imports(self) -> set[str]:
        """What is imported inside functions only."""
        late = {name for function in self.functions for name in imported(function)}
        return late - {name for node in top_level(self.tree) for name in imported(node)}

    def is_under(self, *packages: str) -> bool:
        return any(self.name == package or self.name.startswith(f"{package}.") for package in packages)


def top_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements outside functions."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            if not isinstance(node, ast.Import | ast.ImportFrom):
                waiting.extend(ast.iter_child_nodes(node))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> list[Module]:
    """All of our code but migrations and tests."""
    found = []
    for path in sorted(path for app in APPS for path in (ROOT / app).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "migrations" not in parts:
            found.append(Module(".".join(part for part in parts if part != "__init__"), path))
    return found


MODULES = modules()


def is_within(name: str, packages: tuple[str, ...] | frozenset[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_leaves_import_no_django_and_do_no_io() -> None:
    wrong = {
        f"{module.name}: {name}"
        for module in MODULES
        if module.is_under(*LEAVES)
        for name in module.imports
        if is_within(name, IO)
    }
    opened = {
        f"{module.name}: open"
        for module in MODULES
        if module.is_under(*LEAVES)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
    }
    assert wrong | opened == set()


def test_leaves_import_no_other_part_of_ours() -> None:
    wrong = {
        f"{module.name}: {name}"
        for module in MODULES
        if module.is_under(*LEAVES)
        for name in module.imports
        if is_within(name, APPS) and not is_within(name, LEAVES)
    }
    assert wrong == set()


def test_apikeys_and_accounts_know_the_relay_by_call_errors_and_state_only() -> None:
    wrong = {
        f"{module.name}: {name}"
        for module in MODULES
        if module.is_under("apikeys", "accounts")
        for name in module.imports
        if is_within(name, ("relay",))
        and name != "relay"
        and not is_within(name, OPEN_TO_APPS)
        and not (is_within(name, REGISTRIES) and name in module.late_imports)
    }
    assert wrong == set()


def test_only_the_pipeline_knows_all_the_steps() -> None:
    knowing = {module.name for module in MODULES if module.imports >= STEPS}
    assert knowing == {"relay.pipeline"}


def test_every_provider_file_is_registered() -> None:
    files = {path.stem for path in (ROOT / "relay/providers").glob("*.py")} - {"__init__", "base"}
    modules = {name: importlib.import_module(f"relay.providers.{name}") for name in files}
    vendors = {
        name
        for name, module in modules.items()
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Provider) and item.__module__ == module.__name__
    }
    registered = {type(provider).__module__.rpartition(".")[2] for provider in PROVIDERS.values()}
    assert vendors == registered


@pytest.mark.parametrize("kind", PROVIDERS)
def test_every_provider_has_a_test_of_its_name_and_recorded_answers(kind: str) -> None:
    provider = PROVIDERS[kind]
    module = type(provider).__module__.rpartition(".")[2]
    assert (ROOT / f"tests/providers/test_{module}.py").exists()
    # A provider that is another one with another address shares that one's recordings.
    family = [owner.kind for owner in inspect.getmro(type(provider)) if hasattr(owner, "kind")]
    assert any((ROOT / "tests/fixtures" / name).is_dir() for name in (*family, *provider.dialects))


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_has_a_test_of_its_name(name: str) -> None:
    module = type(DIALECTS[name]).__module__.rpartition(".")[2]
    assert (ROOT / f"tests/dialects/test_{module}.py").exists()


def test_registries_name_what_they_hold() -> None:
    assert {kind: provider.kind for kind, provider in PROVIDERS.items()} == {kind: kind for kind in PROVIDERS}
    assert {name: dialect.name for name, dialect in DIALECTS.items()} == {name: name for name in DIALECTS}
    assert {dialect.family for dialect in DIALECTS.values()} <= set(FAMILIES)
    assert all(provider.dialects <= set(DIALECTS) for provider in PROVIDERS.values())


def test_nothing_abstract_is_registered_as_an_instance() -> None:
    registered: list[Provider | Dialect] = [*PROVIDERS.values(), *DIALECTS.values()]
    # A class whose abstract methods were taken away by hand would pass as a whole one.
    assert [
        f"{type(item).__name__}.{name}"
        for item in registered
        for name in dir(item)
        if getattr(getattr(type(item), name, None), "__isabstractmethod__", False)
    ] == []


def names_compared(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts that the code compares something with: ==, in, match."""
    for node in ast.walk(tree):
        sides: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        for side in sides:
            members = side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]
            for member in members:
                if isinstance(member, ast.Constant) and isinstance(member.value, str):
                    yield member.lineno, member.value


def test_no_providers_or_dialects_name_is_compared_outside_its_own_file() -> None:
    own = {provider.kind: type(provider).__module__ for provider in PROVIDERS.values()}
    own |= {dialect.name: type(dialect).__module__ for dialect in DIALECTS.values()}
    wrong = {
        f"{module.name}:{line}: {name}"
        for module in MODULES
        if not module.is_under("relay.simulator")  # stands for the vendors, and knows nothing of the registries
        for line, name in names_compared(module.tree)
        if name in own and own[name] != module.name
    }
    assert wrong == set()


@pytest.mark.django_db
def test_a_new_provider_needs_no_migration(capsys: pytest.CaptureFixture[str]) -> None:
    assert Account._meta.get_field("kind").choices == kind_choices()
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)
    frozen = [path for path in (ROOT / "accounts/migrations").glob("*.py") if "claude_official" in path.read_text()]
    assert frozen == []


def test_no_file_is_longer_than_it_should_be() -> None:
    long = {module.name: count for module in MODULES if (count := module.text.count("\n")) > LONGEST_FILE}
    assert long == {}


def test_no_function_is_longer_than_it_should_be() -> None:
    long = {
        f"{module.name}.{function.name}": length
        for module in MODULES
        for function in module.functions
        if (length := (function.end_lineno or 0) - function.lineno + 1) > LONGEST_FUNCTION
    }
    assert long == {}


def test_every_module_says_what_it_is_for() -> None:
    assert [module.name for module in MODULES if module.tree.body and not ast.get_docstring(module.tree)] == []


def test_names_say_what_things_are() -> None:
    vague = {
        f"{module.name}.{node.name}"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and VAGUE.search(node.name)
    }
    assert vague == set()
