"""Runs several programs as one: their output in one stream, started again when they crash, all ended together."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
STEADY_SECONDS = 60.0  # who ran so long has recovered: the next crash waits the first delay again
READ_BYTES = 2**16
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Program:
    """One program to keep running, or to run `once`, `after_seconds`.

    `stop_seconds` is how long it may take to end before it is killed.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: float = 10.0
    once: bool = False
    after_seconds: float = 0.0


def die_with_parent() -> None:
    """To be called in a child before it becomes a program: it gets SIGTERM when its parent dies, however that dies."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def next_delay(delay: float, *, ran: float) -> float:
    """Seconds to wait before starting a program again that ran for `ran` seconds and waited `delay` the last time."""
    return FIRST_DELAY if ran >= STEADY_SECONDS or delay <= 0 else min(delay * 2, LONGEST_DELAY)


class Supervisor:
    """Keeps programs running until SIGINT, SIGTERM or SIGHUP; a second signal kills what is left."""

    def __init__(self, programs: Sequence[Program], *, say: Callable[[str], None]) -> None:
        """`programs` stand in the order in which they are stopped; they are started in the opposite one."""
        self._programs = tuple(programs)
        self._say = say
        self._width = max(len(program.name) for program in programs)
        self._stopping = asyncio.Event()
        self._running: dict[str, Process] = {}

    async def run(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Run the programs, and `ready` beside them; return when all have ended."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled)
        keepers = {program.name: loop.create_task(self._keep(program)) for program in reversed(self._programs)}
        for keeper in keepers.values():
            keeper.add_done_callback(self._keeper_ended)
        announcing = asyncio.ensure_future(ready())
        await self._stopping.wait()
        announcing.cancel()
        for program in self._programs:
            await self._stop(program, keepers[program.name])
        with contextlib.suppress(asyncio.CancelledError):
            await announcing

    def _signalled(self) -> None:
        if self._stopping.is_set():
            for child in self._running.values():
                signal_group(child, signal.SIGKILL)
        self._stopping.set()

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        """A program that can't even be started ends the others; `run` raises why."""
        self._stopping.set()

    async def _keep(self, program: Program) -> None:
        """Start the program, again and again unless it is to run once, until told to stop."""
        delay = 0.0
        await self._pause(program.after_seconds)
        while not self._stopping.is_set():
            started = time.monotonic()
            status = await self._run_once(program)
            if self._stopping.is_set():
                return
            if program.once:
                if status:
                    self._print(program, f"ended with {status}")
                await self._stopping.wait()
                return
            delay = next_delay(delay, ran=time.monotonic() - started)
            self._print(program, f"ended with {status}; starts again in {delay:g} s")
            await self._pause(delay)

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until told to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _run_once(self, program: Program) -> int:
        # A pipe of our own: asyncio's would keep `wait` waiting for as long as a grandchild holds it open.
        reading, writing = os.pipe()
        try:
            child = await asyncio.create_subprocess_exec(
                *program.command,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **program.env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                # A group of its own: Ctrl-C goes to the supervisor alone, which ends the programs in order.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        finally:
            os.close(writing)
        self._running[program.name] = child
        if self._stopping.is_set():
            child.terminate()
        printing = asyncio.ensure_future(self._print_output(program, reading))
        status = await child.wait()
        self._running.pop(program.name)
        # What the program itself had started must not outlive it; with the last of them the output ends.
        signal_group(child, signal.SIGKILL)
        await asyncio.wait({printing}, timeout=1)
        printing.cancel()
        return status

    async def _print_output(self, program: Program, reading: int) -> None:
        """Print what comes out of the pipe, a line at a time, until it ends."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
        )
        line = b""
        while chunk := await reader.read(READ_BYTES):
            *lines, line = (line + chunk).split(b"\n")
            for whole in lines:
                self._print(program, whole.decode(errors="replace"))
        if line:
            self._print(program, line.decode(errors="replace"))
        transport.close()

    def _print(self, program: Program, line: str) -> None:
        self._say(f"{program.name:<{self._width}} | {line}")

    async def _stop(self, program: Program, keeper: asyncio.Task[None]) -> None:
        """End one program within its time, else kill it."""
        child = self._running.get(program.name)
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        done, _ = await asyncio.wait({keeper}, timeout=program.stop_seconds)
        if not done and (child := self._running.get(program.name)) is not None:
            self._print(program, f"did not end within {program.stop_seconds:g} s and is killed")
            signal_group(child, signal.SIGKILL)
        await keeper


def signal_group(child: Process, number: signal.Signals) -> None:
    """Signal the child's whole group, where anything of it is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)
