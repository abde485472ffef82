"""Fixtures of the whole suite: one database for rolled-back tests and real servers alike, and those servers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Literal

import hypothesis
import pytest
from django.conf import settings
from django.test import TransactionTestCase
from django.test.utils import override_settings

from tests.database import Rows
from tests.harness import Installation, Process, Server, Simulator

REAL = {"server", "start_server", "simulator", "installation"}
PROCESSES = pytest.StashKey[list[Process]]()

hypothesis.settings.register_profile(
    "baton", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("baton")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PROCESSES] = []


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test that asks for a real process is an e2e test, and can't run inside a transaction that others don't see."""
    if REAL.intersection(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.e2e)
        if item.get_closest_marker("django_db") is None:
            item.add_marker(pytest.mark.django_db(transaction=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each living process's output with a failure."""
    report = yield
    if report.failed and REAL.intersection(getattr(item, "fixturenames", ())):
        for process in item.config.stash[PROCESSES]:
            report.sections.append((f"output of {process.name} ({process.pid})", process.log()[-6000:]))
    return report


@pytest.fixture(scope="session")
def worker_number(request: pytest.FixtureRequest) -> int:
    """Number of this xdist worker, 0 without xdist."""
    worker = getattr(request.config, "workerinput", {}).get("workerid", "gw0")
    return int(worker.removeprefix("gw"))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test process's own RELAY_DATA_DIR."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session", autouse=True)
def installation_settings(data_dir: Path, worker_number: int) -> Iterator[None]:
    """Keep tests away from the data of an installation in this tree, and the workers away from one another."""
    changed: dict[str, Any] = {
        "RELAY_DATA_DIR": data_dir,
        "RELAY_SECRET_KEYS": [settings.DEFAULT_SECRET],
        "SECRET_KEY": settings.DEFAULT_SECRET,
        "SECRET_KEY_FALLBACKS": [],
    }
    if settings.REDIS_URL:
        base, _, number = settings.REDIS_URL.rpartition("/")
        changed["REDIS_URL"] = (
            f"{base}/{int(number) + worker_number}" if number.isdigit() else f"{settings.REDIS_URL}/{worker_number}"
        )
    with override_settings(**changed):
        yield


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None, data_dir: Path) -> None:
    """SQLite: a file of this session's, because server processes must see it too."""
    default = settings.DATABASES["default"]
    if default["ENGINE"].endswith("sqlite3"):
        default["TEST"]["NAME"] = str(data_dir / "test.sqlite3")


@pytest.fixture(scope="session")
def django_db_setup(request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """After a test without a transaction, delete the rows it made and keep those that migrations made.

    Django's flush would empty the migrations' rows too, and takes about a hundred times as long.
    """

    def delete_new(test: TransactionTestCase) -> None:
        for process in request.config.stash[PROCESSES]:
            if isinstance(process, Server):
                process.wait_idle()
        rows.delete_new()

    with django_db_blocker.unblock():
        rows = Rows()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", delete_new)
        yield


@pytest.fixture(scope="session")
def processes(request: pytest.FixtureRequest, django_db_setup: None) -> Iterator[list[Process]]:
    """The processes that live now; whatever is left at the end is stopped, before the database goes."""
    living = request.config.stash[PROCESSES]
    yield living
    while living:
        living.pop().stop()


@pytest.fixture(scope="session")
def simulator(processes: list[Process], data_dir: Path) -> Simulator:
    """The upstream simulator, one for the session."""
    started = Simulator(folder=data_dir)
    processes.append(started)
    return started


@pytest.fixture(scope="session")
def shared_servers(processes: list[Process], data_dir: Path) -> Callable[[str], Server]:
    """Start each kind of server once and keep it for the session."""
    servers: dict[str, Server] = {}

    def get(kind: str) -> Server:
        if kind not in servers:
            data = data_dir / f"shared-{kind}"
            servers[kind] = Server(kind=kind, folder=data_dir, data=data, env={})
            processes.append(servers[kind])
        return servers[kind]

    return get


@pytest.fixture(params=["uvicorn", "daphne"])
def server(request: pytest.FixtureRequest, shared_servers: Callable[[str], Server]) -> Server:
    """Baton under each of the two servers, shared by all tests: `@pytest.mark.parametrize("server", ["uvicorn"],
    indirect=True)` takes one of them."""
    return shared_servers(request.param)


@pytest.fixture
def start_server(processes: list[Process], data_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers of the test's own, with other settings; they are stopped, and must stop cleanly, at its end."""
    mine: list[Server] = []

    def start(
        kind: Literal["uvicorn", "daphne", "collecting"] = "uvicorn", *, data: Path | None = None, **env: str
    ) -> Server:
        started = Server(kind=kind, folder=data_dir, data=data or tmp_path / f"data-{len(mine)}", env=env)
        mine.append(started)
        processes.append(started)
        return started

    yield start
    for started in mine:
        processes.remove(started)
    failures = [str(error) for error in map(stop_error, mine) if error]
    assert not failures, "\n".join(failures)


def stop_error(server: Server) -> AssertionError | None:
    """Stop a server; one that the test killed itself has nothing to say."""
    try:
        server.stop()
    except AssertionError as error:
        return error
    return None


@pytest.fixture
def installation(simulator: Simulator, processes: list[Process], transactional_db: None) -> Installation:
    """Accounts, keys and records for a test that talks to a server."""
    simulator.forget()
    return Installation(simulator, lambda: [process for process in processes if isinstance(process, Server)])
