"""`python -m bench.peers --litellm BIN --portkey BIN`: other relays beside Baton, in one run, with the same load.

Each is a process of its own in front of the bench's upstream, set up as its documentation says and with as little
switched on as it allows. They do less for a call than Baton does (no budget, no durable record): see bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Target, machine, median_of, throughput
from bench.scenario import SCENARIOS, request_body
from bench.world import BenchError, Child, World, free_port, wait_until, world

START_SECONDS = 120
MEASURED = ("json", "burst")
OWN_CALLS = 6000  # of Baton, which does in seconds what takes others a minute
CLIENTS = 16


@dataclass(frozen=True, slots=True)
class Peer:
    """One relay: how it is started, and what the load must send to be let in. `budget`: Baton's share of its CPU."""

    name: str
    budget: float
    calls: int
    command: Callable[[str, int, Path, str], list[str]]  # program, port, folder, upstream
    headers: Callable[[str], Mapping[str, str]] = lambda upstream: {}
    scenarios: frozenset[str] = frozenset(MEASURED)


def litellm(program: str, port: int, folder: Path, upstream: str) -> list[str]:
    models = [
        {
            "model_name": scenario.model,
            "litellm_params": {"model": f"anthropic/{scenario.model}", "api_base": upstream, "api_key": "sk-ant-bench"},
        }
        for scenario in SCENARIOS.values()
    ]
    config = folder / "litellm.json"  # JSON is YAML
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": "sk-bench"}}))
    return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def portkey(program: str, port: int, folder: Path, upstream: str) -> list[str]:
    return ["node", program, f"--port={port}", "--headless"]


def portkey_headers(upstream: str) -> Mapping[str, str]:
    return {"x-portkey-provider": "anthropic", "x-portkey-custom-host": f"{upstream}/v1"}


PEERS = {
    "litellm": Peer("litellm", 1 / 25, 800, litellm, headers=lambda upstream: {"authorization": "Bearer sk-bench"}),
    # Its streams do not start under Node 20 without a patch (reference: performance notes), so it is measured without.
    "portkey": Peer("portkey", 1 / 3, 4000, portkey, headers=portkey_headers, scenarios=frozenset({"json"})),
}


@contextmanager
def running(peer: Peer, program: str, place: World) -> Iterator[Target]:
    """The peer, ready to be loaded; ended in every case."""
    port = free_port()
    command = peer.command(program, port, place.folder, place.upstream_url)
    log = (place.folder / f"{peer.name}.log").open("w")
    env = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NODE_ENV": "production",
        "TRUSTED_CUSTOM_HOSTS": "127.0.0.1",
    }
    process = subprocess.Popen(command, cwd=place.folder, env=env, stdout=log, stderr=log, text=True)
    child = Child(peer.name, process)
    headers = {"anthropic-version": "2023-06-01", "x-api-key": "sk-ant-bench", **peer.headers(place.upstream_url)}
    target = Target(peer.name, f"http://127.0.0.1:{port}", "sk-ant-bench", child, place, headers=headers)
    try:
        wait_until(lambda: answers(target, process), seconds=START_SECONDS, what=f"{peer.name} is ready")
        yield target
    except BenchError as error:
        raise BenchError(f"{error}\n{(place.folder / f'{peer.name}.log').read_text()[-1500:]}") from error
    finally:
        child.stop()
        log.close()


def answers(target: Target, process: subprocess.Popen[str]) -> bool:
    if process.poll() is not None:
        raise BenchError(f"{target.name} ended with {process.returncode} at start")
    request = urllib.request.Request(f"{target.url}/v1/messages", request_body(SCENARIOS["json"]), target.headers)
    request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def measure(targets: list[Target], rounds: int) -> dict[str, dict[str, float]]:
    """Return scenario -> target -> CPU milliseconds a call; rounds are interleaved."""
    found: dict[str, dict[str, float]] = {}
    for scenario in MEASURED:
        able = [target for target in targets if target.name not in PEERS or scenario in PEERS[target.name].scenarios]
        taken: dict[str, list[dict[str, float]]] = {target.name: [] for target in able}
        for _ in range(rounds):
            for target in able:
                print(f"{scenario} on {target.name} ...", file=sys.stderr)
                calls = PEERS[target.name].calls if target.name in PEERS else OWN_CALLS
                taken[target.name].append(throughput(target, scenario, clients=CLIENTS, calls=calls))
        found[scenario] = {name: median_of(items)["cpu_us_per_call"] / 1000 for name, items in taken.items()}
    return found


def render(found: dict[str, dict[str, float]]) -> str:
    lines = [f"{'CPU per call, ms':<20}{'':>12}{'Baton takes':>14}{'budget':>12}"]
    for scenario, figures in found.items():
        own = figures["baton"]
        lines.append(f"{scenario + ', Baton':<20}{own:>12.2f}")
        for name in figures.keys() - {"baton"}:
            share, budget = figures[name] / own, 1 / PEERS[name].budget
            over = "" if share >= budget or scenario != "json" else "  OVER"
            lines.append(
                f"{scenario + ', ' + name:<20}{figures[name]:>12.2f}{f'1/{share:.1f}':>14}{f'1/{budget:.0f}':>12}{over}"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--litellm", help="the program, such as VENV/bin/litellm of `pip install 'litellm[proxy]'`")
    parser.add_argument("--portkey", help="start-server.js of `npm install @portkey-ai/gateway`")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    asked = {name: program for name in PEERS if (program := getattr(options, name))}
    if not asked:
        parser.error("name the program of at least one peer")
    try:
        with world(relay=True, limits=3) as place, ExitStack() as stack:
            assert place.relay is not None
            targets = [Target("baton", place.relay_url, place.keys[3], place.relay, place)]
            targets += [stack.enter_context(running(PEERS[name], program, place)) for name, program in asked.items()]
            before = machine(place.folder)
            print(render(measure(targets, options.rounds)))
            print(f"\nload before the run {before['load']:.1f} on {before['cores']:.0f} cores")
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
