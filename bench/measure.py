"""The measurements: each runs the load against one target and returns plain figures."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.scenario import SCENARIOS
from bench.world import ROOT, BenchError, Child, World, fetch, wait_until

HELD = 1000
LEFT = 40


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: calls of the closed loops, seconds of the open ones, rounds whose median counts."""

    json: int
    burst: int
    p50: int
    p500: int
    seconds: float
    rounds: int


FULL = Size(json=6000, burst=3000, p50=240, p500=24, seconds=8, rounds=3)
QUICK = Size(json=1500, burst=1000, p50=60, p500=12, seconds=3, rounds=1)


@dataclass(slots=True)
class Target:
    """What is loaded: the upstream itself, or the relay in front of it; counts what must have been booked."""

    name: str
    url: str
    key: str
    child: Child
    world: World
    calls: int = 0
    output_tokens: int = 0
    headers: dict[str, str] = field(default_factory=dict)  # beside what every call carries

    def load(self, scenario: str, mode: str, **options: Any) -> dict[str, Any]:
        """Run the load generator; returns its report, raises BenchError if a single call failed."""
        report = finished(self.start_load(scenario, mode, **options))
        if report.get("failures"):
            raise BenchError(f"{self.name}, {scenario}: {report['failures']}")
        self.expect(scenario, report["done"])
        return report

    def expect(self, scenario: str, calls: int) -> None:
        """So many calls were made: each must leave one record."""
        self.calls += calls
        self.output_tokens += calls * SCENARIOS[scenario].output_tokens

    def start_load(self, scenario: str, mode: str, **options: Any) -> subprocess.Popen[str]:
        words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        words += [part for name, value in self.headers.items() for part in ("--header", f"{name}: {value}")]
        command = [sys.executable, "-m", "bench.load", self.url, scenario, mode, "--key", self.key, *words]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, **pipes)

    def settle(self) -> None:
        if self.world.relay is self.child:
            self.world.wait_idle()


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=600)
    if process.returncode:
        raise BenchError(f"the load generator ended with {process.returncode}")
    report: dict[str, Any] = json.loads(output.splitlines()[-1])
    return report


def machine(folder: Path) -> dict[str, float]:
    """What else decides the figures: how busy the machine is, and how long its disk takes to keep 600 bytes."""
    path = folder / "sync-probe"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 2**20)
    os.fsync(fd)
    took = []
    for number in range(200):
        started = time.perf_counter()
        os.pwrite(fd, b"x" * 600, number * 600)
        os.fdatasync(fd)
        took.append((time.perf_counter() - started) * 1e3)
    os.close(fd)
    path.unlink()
    load, _, _ = os.getloadavg()
    cores = float(os.cpu_count() or 1)
    return {"cores": cores, "load": load, "sync_p50_ms": quantile(took, 50), "sync_p99_ms": quantile(took, 99)}


def throughput(target: Target, scenario: str, *, clients: int, calls: int) -> dict[str, float]:
    """Calls in a closed loop: their rate, and the target's processor time by call and by event (microseconds).

    The time counts until the last record is booked.
    """
    target.load(scenario, "closed", clients=clients, calls=max(clients, calls // 10))
    target.settle()
    before = target.child.cpu()
    report = target.load(scenario, "closed", clients=clients, calls=calls)
    target.settle()
    used = (target.child.cpu() - before) / calls * 1e6
    return {
        "calls_per_second": calls / report["seconds"],
        "cpu_us_per_call": used,
        "cpu_us_per_event": used / SCENARIOS[scenario].events,
        "p50_ms": quantile(report["total"], 50) * 1e3,
        "p99_ms": quantile(report["total"], 99) * 1e3,
    }


def light(target: Target, scenario: str, *, seconds: float) -> dict[str, float]:
    """20 calls a second, open loop: milliseconds to the first delta and to the end, processor time by call."""
    target.load(scenario, "closed", clients=4, calls=100)
    target.settle()
    before = target.child.cpu()
    report = target.load(scenario, "open", rate=20, seconds=seconds)
    target.settle()
    figures = {
        f"{name}_p{part}_ms": quantile(report[name], part) * 1e3 for name in ("first", "total") for part in (50, 99)
    }
    return {**figures, "cpu_us_per_call": (target.child.cpu() - before) / report["done"] * 1e6}


def memory(target: Target) -> dict[str, float]:
    """1,000 open streams in which nothing happens: bytes of proportional set size for each."""
    target.load("burst", "closed", clients=100, calls=1000)
    target.settle()
    before = target.child.pss()
    load = target.start_load("idle", "hold", clients=HELD)
    assert load.stdout is not None
    if json.loads(load.stdout.readline() or "{}").get("held") != HELD:
        raise BenchError(f"{target.name}: not all of {HELD} streams opened")
    after = target.child.pss()
    target.expect("idle", HELD)
    load.communicate("\n", timeout=120)
    target.settle()
    return {"pss_bytes_per_stream": (after - before) / HELD, "pss_mib": before / 2**20}


def leaving(target: Target, scenario: str, *, how: str) -> dict[str, float]:
    """From a client's hanging up to the upstream's seeing it, milliseconds."""
    report_url = f"{target.world.upstream_url}/_bench"
    seen = len(fetch(report_url)["closed"])
    left = target.load(scenario, "leave", calls=LEFT, how=how)["left"]
    wait_until(lambda: len(fetch(report_url)["closed"]) >= seen + LEFT, seconds=30, what="the upstream was left")
    closed = fetch(report_url)["closed"][seen:]
    took = [(end - start) * 1e3 for start, end in zip(left, closed, strict=True)]
    target.settle()
    return {"p50_ms": quantile(took, 50), "max_ms": max(took)}


def quantile(values: list[float], percent: int) -> float:
    """Return the value below which so many percent lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def median_of(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return figure by figure the median of several rounds."""
    return {name: statistics.median(item[name] for item in rounds) for name in rounds[0]}
