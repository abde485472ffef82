"""Several programs run as one: prefixed output, restarts, an orderly end, no orphan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from relay.supervisor import FIRST_DELAY, LONGEST_DELAY, next_delay
from tests.harness import ROOT, wait_for

SCRIPT = """
import asyncio, sys
from relay.supervisor import Program, Supervisor
programs = [Program(name, tuple(command), stop_seconds={stop}) for name, command in {programs!r}]
async def ready():
    print("ready", flush=True)
asyncio.run(Supervisor(programs, say=lambda line: print(line, flush=True)).run(ready))
print("all ended", flush=True)
"""
# Ends on SIGTERM, and says so.
POLITE = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit(0))); "
    "print('up', flush=True); time.sleep(600)"
)
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); time.sleep(600)"


def script(*, stop: float, programs: dict[str, str]) -> str:
    """A program that supervises Python programs; a path stands for a program that is none of ours."""
    commands = [
        (name, [code] if code.startswith("/") else [sys.executable, "-c", code]) for name, code in programs.items()
    ]
    return SCRIPT.format(stop=stop, programs=commands)


class Supervised:
    """A supervisor in a process of its own."""

    def __init__(self, folder: Path, *, stop: float, programs: dict[str, str]) -> None:
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", script(stop=stop, programs=programs)],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def lines(self) -> list[str]:
        return self.output.read_text().splitlines()

    def wait_for(self, line: str, *, times: int = 1) -> None:
        wait_for(lambda: self.lines().count(line) >= times, seconds=20, what=f"{times} x {line!r} in {self.lines()}")

    def children(self) -> list[psutil.Process]:
        children: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return children


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Supervised]]:
    """Supervisors that a test started; nothing of them outlives it."""
    running: list[Supervised] = []
    yield running
    for supervised in running:
        if supervised.process.poll() is None:
            supervised.process.kill()
            supervised.process.wait()


def start(started: list[Supervised], folder: Path, *, stop: float = 10, **programs: str) -> Supervised:
    started.append(Supervised(folder, stop=stop, programs=programs))
    return started[-1]


def test_it_ends_programs_in_order_on_sigterm(started: list[Supervised], tmp_path: Path) -> None:
    supervised = start(started, tmp_path, web=POLITE, simulator=POLITE)
    supervised.wait_for("web       | up")
    supervised.wait_for("simulator | up")
    children = supervised.children()
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(20) == 0
    assert supervised.lines()[-3:] == ["web       | bye", "simulator | bye", "all ended"]
    assert not any(child.is_running() for child in children)


def test_ctrl_c_reaches_the_supervisor_alone(started: list[Supervised], tmp_path: Path) -> None:
    supervised = start(started, tmp_path, web=POLITE)
    supervised.wait_for("web | up")
    os.killpg(supervised.process.pid, signal.SIGINT)
    assert supervised.process.wait(20) == 0
    assert supervised.lines()[-2:] == ["web | bye", "all ended"]


def test_a_crashed_program_is_started_again(started: list[Supervised], tmp_path: Path) -> None:
    supervised = start(
        started, tmp_path, web=POLITE, worker="print('half a line', end='', flush=True); raise SystemExit(3)"
    )
    supervised.wait_for("worker | half a line", times=2)
    supervised.wait_for(f"worker | ended with 3; starts again in {FIRST_DELAY:g} s")
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(20) == 0


def test_a_program_that_does_not_end_in_time_is_killed(started: list[Supervised], tmp_path: Path) -> None:
    supervised = start(started, tmp_path, stop=0.5, web=STUBBORN, worker=POLITE)
    supervised.wait_for("web    | up")
    supervised.wait_for("worker | up")
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(20) == 0
    assert supervised.lines()[-3:] == [
        "web    | did not end within 0.5 s and is killed",
        "worker | bye",
        "all ended",
    ]


def test_a_second_signal_ends_everything_at_once(started: list[Supervised], tmp_path: Path) -> None:
    supervised = start(started, tmp_path, stop=600, web=STUBBORN)
    supervised.wait_for("web | up")
    supervised.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)  # two signals that wait together are one
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(20) == 0


def test_what_a_program_had_started_ends_with_it(started: list[Supervised], tmp_path: Path) -> None:
    supervised = start(started, tmp_path, web=PARENT)
    supervised.wait_for("web | up")
    children = supervised.children()
    assert len(children) == 2
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(20) == 0
    wait_for(lambda: not any(child.is_running() for child in children), seconds=10, what="no orphan")


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_no_program_outlives_a_killed_supervisor(started: list[Supervised], tmp_path: Path) -> None:
    supervised = start(started, tmp_path, web=POLITE, worker=POLITE)
    supervised.wait_for("web    | up")
    supervised.wait_for("worker | up")
    children = supervised.children()
    supervised.process.kill()
    wait_for(lambda: not any(child.is_running() for child in children), seconds=10, what="no orphan")


def test_a_program_that_is_not_there_ends_the_others_and_says_why(started: list[Supervised], tmp_path: Path) -> None:
    supervised = start(started, tmp_path, web=POLITE, worker="/no/such/program")
    assert supervised.process.wait(20) == 1
    assert "No such file or directory: '/no/such/program'" in supervised.lines()[-1]


@pytest.mark.parametrize(
    "delay, ran, expected",
    [
        (0, 0.1, FIRST_DELAY),
        (FIRST_DELAY, 0.1, 2 * FIRST_DELAY),
        (20, 1, LONGEST_DELAY),
        (LONGEST_DELAY, 3600, FIRST_DELAY),
    ],
)
def test_crashes_in_a_row_wait_longer(delay: float, ran: float, expected: float) -> None:
    assert next_delay(delay, ran=ran) == expected
