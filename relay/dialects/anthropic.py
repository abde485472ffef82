"""Anthropic's Messages format."""

from __future__ import annotations

from typing import ClassVar

from relay.dialects.base import Dialect


class Anthropic(Dialect):
    name: ClassVar = "anthropic"
    family: ClassVar = "claude"
    keep_alive: ClassVar = b'event: ping\ndata: {"type": "ping"}\n\n'


Anthropic.__abstractmethods__ = frozenset()
