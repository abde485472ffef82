"""`python -m bench.soak --minutes 30`: mixed load, clients that leave, upstreams that fail; all is booked.

Counts calls sent against records, ids seen against ids booked, and memory, sockets, tasks and calls in flight against
where they began. Ends with 1 where a call is lost or booked twice, or something is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.world import BenchError, World, address_of, fetch, free_port, start, start_relay, world

SCRIPTS = ("", "chunks=30,delay=0.02", "chunks=5,delay=0.2", "chunks=200,size=100", "first=0.3")
FAULTS = (
    *("error=529", "error=500", "error=429,retry_after=1", "error=400", "error=404", "fail=overloaded_error"),
    *("reset=before", "reset=3", "cut=3", "eof=3", "fail=api_error@2", "pause=1@2", "body=html"),
)
BODY = {"model": "claude-sonnet-5-5", "max_tokens": 4000, "messages": [{"role": "user", "content": "Soak. " * 50}]}
LEAVE, FAIL = 0.3, 0.15
# A kept connection to the upstream closes after 50 s of rest, or at the next look at it, as long after.
QUIET_SECONDS = 110


@dataclass
class Tally:
    sent: int = 0
    left: int = 0
    whole: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)


async def call(address: tuple[str, int], key: str, tally: Tally, dice: random.Random) -> None:
    """One call on a connection of its own; a third of them leave somewhere on the way."""
    stream = dice.random() < 0.7
    script = dice.choice(FAULTS) if dice.random() < FAIL else dice.choice(SCRIPTS)
    body = json.dumps({**BODY, "stream": stream}).encode()
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: {key}\r\nx-sim: {script}\r\n"
    head += f"anthropic-version: 2023-06-01\r\ncontent-length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        tally.sent += 1
        if dice.random() < LEAVE:
            tally.left += 1
            await asyncio.sleep(0.05 + dice.random() * 0.5)
            return
        answer = await asyncio.wait_for(reader.read(), 60)
        top = answer.partition(b"\r\n\r\n")[0].decode("latin1").lower()
        status = top[9:12]
        tally.statuses[status] = tally.statuses.get(status, 0) + 1
        tally.whole += 1
        if "x-request-id: " in top and status not in {"429", "503"}:  # a refusal may be counted only
            tally.ids.add(top.partition("x-request-id: ")[2][:36])
    finally:
        writer.close()


async def load(url: str, key: str, *, seconds: float, clients: int) -> Tally:
    """Keep `clients` callers busy for so long."""
    tally, until = Tally(), time.monotonic() + seconds
    address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)

    async def caller(number: int) -> None:
        dice = random.Random(number)
        while time.monotonic() < until:
            await call(address, key, tally, dice)
            await asyncio.sleep(dice.random() * 0.3)

    await asyncio.gather(*(caller(number) for number in range(clients)))
    return tally


def standing(place: World) -> dict[str, int]:
    """Memory (MiB), open sockets and event loop tasks of the relay, and its calls in flight."""
    assert place.relay is not None
    fds = [link.readlink() for link in Path(f"/proc/{place.relay.process.pid}/fd").iterdir()]
    return {
        "pss_mib": place.relay.pss() // 2**20,
        "tasks": gauge(place, "baton_asyncio_tasks"),
        "sockets": sum(str(target).startswith("socket:") for target in fds),
        "in_flight": int(fetch(f"{place.relay_url}/readyz")["calls_in_flight"]),
    }


def gauge(place: World, name: str) -> int:
    with urllib.request.urlopen(f"{place.relay_url}/metrics", timeout=10) as response:
        [line] = [line for line in response.read().decode().splitlines() if line.startswith(f"{name} ")]
    return int(float(line.split()[1]))


def left_behind(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What grew: anything that is counted, and memory by more than a quarter (allocators keep what a peak took)."""
    grown = [name for name in ("sockets", "tasks", "in_flight") if after[name] > before[name]]
    return [*grown, *(["pss_mib"] if after["pss_mib"] > before["pss_mib"] * 1.25 else [])]


def booked_ids(place: World, ids: set[str]) -> int:
    """How many of the ids that clients saw have a record."""
    path = place.folder / "ids.json"
    path.write_text(json.dumps(sorted(ids)))
    code = (
        "import json, pathlib; from relay.models import UsageRecord as R;"
        f"ids = json.loads(pathlib.Path({str(path)!r}).read_text());"
        "print(sum(R.objects.filter(id__in=ids[i:i+500]).count() for i in range(0, len(ids), 500)))"
    )
    return int(place.manage("shell", "--no-imports", "-c", code))


def counted_refusals(place: World) -> int:
    """Refused calls beyond ten a minute, which are counted and not recorded."""
    code = "from django.db.models import Sum; from relay.models import RefusalCount as R;"
    code += "print(R.objects.aggregate(n=Sum('count'))['n'] or 0)"
    return int(place.manage("shell", "--no-imports", "-c", code))


def run(options: Any) -> dict[str, Any]:
    stores = {"database_url": options.database_url, "redis_url": options.redis_url}
    with world(relay=False, limits=0, **stores) as place:
        simulator = start("simulator", ["relay.simulator", "--port", "0"], env=place.env)
        try:
            url = address_of(simulator)
            place.manage("migrate", "-v0")
            for name in ("one", "two", "three"):
                settings = ["--set", 'cooldowns={"429": 1, "529": 1, "5xx": 1, "timeout": 1}']
                account = ["claude_console", name, "--base-url", url, "--credential", f"api_key=soak-{name}"]
                place.manage("create_account", *account, *(settings if options.short_rests else []), "--json")
            key = json.loads(place.manage("create_key", "soak", "--limit", "concurrency 10000", "--json"))["key"]
            start_relay(place, free_port())
            asyncio.run(load(place.relay_url, key, seconds=10, clients=options.clients))
            place.wait_idle()
            time.sleep(QUIET_SECONDS)
            before, records = standing(place), place.booked()[0] + counted_refusals(place)
            tally = asyncio.run(load(place.relay_url, key, seconds=options.minutes * 60, clients=options.clients))
            place.wait_idle()
            time.sleep(QUIET_SECONDS)
            after = standing(place)
            return {
                "minutes": options.minutes,
                "sent": tally.sent,
                "left": tally.left,
                "statuses": dict(sorted(tally.statuses.items())),
                "records": place.booked()[0] + counted_refusals(place) - records,
                "ids_seen": len(tally.ids),
                "ids_booked": booked_ids(place, tally.ids),
                "before": before,
                "after": after,
                "left_behind": left_behind(before, after),
            }
        finally:
            simulator.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--short-rests", action="store_true", help="accounts rest a second, so that faults go on")
    parser.add_argument("--database-url", default="")
    parser.add_argument("--redis-url", default="")
    options = parser.parse_args()
    try:
        result = run(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2))
    exact = result["sent"] == result["records"] and result["ids_seen"] == result["ids_booked"]
    return 0 if exact and not result["left_behind"] else 1


if __name__ == "__main__":
    sys.exit(main())
