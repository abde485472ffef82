"""Starts the simulator as a process of its own, or as a thread of a test's."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from relay.simulator.anthropic import Anthropic
from relay.simulator.app import Simulator
from relay.simulator.base import Dialect
from relay.simulator.bedrock import Bedrock
from relay.simulator.gemini import Gemini, GeminiArray
from relay.simulator.http import Listener, listen
from relay.simulator.openai_chat import OpenAIChat
from relay.simulator.openai_responses import OpenAIResponses
from relay.simulator.vertex import GoogleTokens, VertexClaude, VertexGemini, VertexGeminiArray

# Order matters where two vendors serve one path: the first that says it serves a request answers it.
DIALECTS: tuple[Dialect, ...] = (
    Bedrock(),
    GoogleTokens(),
    VertexClaude(),
    VertexGeminiArray(),
    VertexGemini(),
    GeminiArray(),
    Gemini(),
    Anthropic(),
    OpenAIResponses(),
    OpenAIChat(),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, required=True, help="0 picks a free one")
    parser.add_argument("--host", default="127.0.0.1")


def run(*, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; prints the address first."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(host=host, port=port))


async def serve(*, host: str, port: int) -> None:
    listener = await listen(Simulator(DIALECTS), host=host, port=port)
    sys.stdout.write(f"listening on http://{host}:{listener.port}\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    listener.close()


@contextmanager
def simulator() -> Iterator[str]:
    """Run one in a thread of this process on a free port; yields its base URL. For tests."""
    loop = uvloop.new_event_loop()
    listener = loop.run_until_complete(listen(Simulator(DIALECTS), host="127.0.0.1", port=0))
    thread = threading.Thread(target=loop.run_forever, name="simulator", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.port}"
    finally:
        asyncio.run_coroutine_threadsafe(shut(listener), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


async def shut(listener: Listener) -> None:
    """Close the listener and wait until the calls that it cancels have ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    listener.close()
    await asyncio.gather(*others, return_exceptions=True)
    # The transports report their end in the loop's next turn.
    await asyncio.sleep(0.01)
