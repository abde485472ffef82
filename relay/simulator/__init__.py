"""An upstream that stands for the vendors in demo, tests and bench: see docs/simulator.md. Never a fallback."""

from __future__ import annotations
