"""Wiring of the site: settings, URLs, servers. No logic."""
