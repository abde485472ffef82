"""Baton, and a path that says what only the cyclic collector would have freed since it was last asked."""

from __future__ import annotations

import gc
import json
from collections import Counter

from relay.slim import Receive, Scope, Send
from relay_site.asgi import application as baton

PATH = "/collected"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http" or scope["path"] != PATH:
        await baton(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(collect()).encode()})


def collect() -> dict[str, int]:
    """How many objects of each type were in rings that nothing else led to; none are freed behind our back later."""
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    found = Counter(type(item).__qualname__ for item in gc.garbage)
    gc.set_debug(0)
    gc.garbage.clear()
    gc.collect()
    return dict(found)
