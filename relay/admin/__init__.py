"""The admin's pages of the relay, and what it adds to those of accounts and keys."""

from __future__ import annotations

from relay.admin import clients, finance, prices, records, system, upstreams

__all__ = ["clients", "finance", "prices", "records", "system", "upstreams"]
