"""The script of a call: what the vendor does beside answering well. One grammar for models, headers, credentials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# What each key wants, and what it does.
KEYS: dict[str, tuple[str, str]] = {
    # The answer
    "chunks": ("count", "number of text deltas"),
    "size": ("count", "bytes of text in each delta"),
    "say": ("text", "the text itself"),
    "text": ("text", "`unicode`: text with U+2028, U+2029, U+0085, CJK and emoji"),
    "model": ("text", "the model name in the answer"),
    "stop": ("text", "stop reason"),
    "thinking": ("count", "thinking tokens, as a thinking block"),
    "tools": ("count", "0: no tool call even if the request has tools"),
    "searches": ("count", "web searches by the vendor"),
    "fetches": ("count", "web fetches by the vendor"),
    # Usage
    "in": ("count", "input tokens reported"),
    "out": ("count", "output tokens reported"),
    "cache_read": ("count", "cache read tokens reported"),
    "cache_5m": ("count", "tokens written to the 5 minutes cache, reported"),
    "cache_1h": ("count", "tokens written to the 1 hour cache, reported"),
    "cache_30m": ("count", "tokens written to OpenAI's 30 minutes cache, reported"),
    "cache_12h": ("count", "tokens written to OpenAI's 12 hours cache, reported"),
    "audio_in": ("count", "audio input tokens reported (OpenAI, Gemini)"),
    "audio_out": ("count", "audio output tokens reported (OpenAI)"),
    "tool_use": ("count", "tokens that hosted tools fed to the model, reported (Gemini)"),
    "usage": ("text", "where usage stands: both, start, delta, zero, cache, none"),
    "tier": ("text", "service tier reported"),
    "speed": ("text", "speed reported"),
    "geo": ("text", "inference geography reported"),
    "compaction": ("text", "IN+OUT: a compaction iteration outside the totals"),
    "advisor": ("text", "MODEL+IN+OUT: an advisor iteration outside the totals"),
    "fallback": ("text", "MODEL: the named model served after a declined hop"),
    "expires": ("count", "seconds that a new access token lives (token endpoints)"),
    # Time
    "first": ("seconds", "seconds before the headers"),
    "wait": ("seconds", "seconds between headers and first event"),
    "delay": ("seconds", "seconds before each delta"),
    "pings": ("count", "a ping before each n-th delta"),
    # Faults; POS = before, first, opened, 0, 1, 2 ... or end
    "error": ("text", "STATUS or NAME, optionally xN: an error answer (to the first N calls)"),
    "retry_after": ("seconds", "seconds, as header of an error answer"),
    "should_retry": ("text", "true or false, as header of an error answer"),
    "resets": ("seconds", "seconds until the rate limit's reset, as the vendor's headers of an error answer"),
    "kind": ("text", "error type instead of the status's own"),
    "code": ("text", "error code"),
    "message": ("text", "error message"),
    "reject": ("text", "FIELD: 400 naming it where the request has this field"),
    "body": ("text", "html, empty, notjson, truncated: a body no client can read"),
    "fail": ("point", "STATUS or NAME@POS: an error event inside the stream"),
    "reset": ("point", "POS: TCP reset"),
    "cut": ("point", "POS: connection closed, the body unfinished"),
    "eof": ("point", "POS: the body ends cleanly, without the terminal event"),
    "hang": ("point", "POS: silence until the client leaves"),
    "pause": ("point", "SECONDS@POS: silence, then on"),
    "times": ("count", "the faults hit the first N calls of this model and credential only"),
    # Wire
    "frame": ("text", "joined by +: crlf, cr, mixed, multi, comments, nospace, noname, tail, bytes, utf8, burst"),
    "gzip": ("count", "1: gzip although nobody accepts it"),
    "content_type": ("text", "another content type"),
    "close": ("count", "1: connection: close"),
}
FAULTS = frozenset({"error", "body", "fail", "reset", "cut", "eof", "hang", "pause", "gzip", "content_type"})


class ScriptError(ValueError):
    """The script can't be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Script:
    values: Mapping[str, str] = field(default_factory=dict)

    def text(self, key: str, default: str = "") -> str:
        return self.values.get(key, default)

    def count(self, key: str, default: int = 0) -> int:
        return int(self.values.get(key, default))

    def seconds(self, key: str) -> float:
        return float(self.values.get(key, 0))

    def has(self, key: str) -> bool:
        return key in self.values

    def words(self, key: str) -> frozenset[str]:
        return frozenset(self.values.get(key, "").split("+")) - {""}

    def point(self, key: str) -> str:
        """Return where a fault strikes, "" for nowhere; one without a position strikes before the first event."""
        if key not in self.values:
            return ""
        value, at, position = self.values[key].rpartition("@")
        return position if at else (value or position if key in {"reset", "cut", "eof", "hang"} else "first")

    def argument(self, key: str) -> str:
        """Return what stands before the `@`."""
        return self.values.get(key, "").partition("@")[0]

    def without_faults(self) -> Script:
        return Script({key: value for key, value in self.values.items() if key not in FAULTS})

    def counts(self, key: str, number: int) -> tuple[str, list[int]]:
        """Return `WORD+1+2` as the word and so many counts; the word is "" where there is none."""
        parts = self.values[key].split("+")
        try:
            return "+".join(parts[:-number]), [int(part) for part in parts[-number:]]
        except ValueError:
            raise ScriptError(f"{key} wants {number} numbers at its end, not {self.values[key]!r}") from None

    def over(self, other: Script) -> Script:
        """Return both scripts, this one's values first."""
        return Script({**other.values, **self.values})


def split_name(name: str) -> tuple[str, Script]:
    """Return a model name or credential without its script, and the script: `NAME~key=value~key=value`."""
    plain, _, script = name.partition("~")
    return plain, parse(script, separator="~")


def parse(text: str, *, separator: str = ",") -> Script:
    """Return the script; raises ScriptError for a key that nobody knows: a typo must not look like health."""
    values: dict[str, str] = {}
    for part in text.split(separator):
        key, _, value = part.strip().partition("=")
        if not key:
            continue
        if key not in KEYS:
            raise ScriptError(f"unknown script key {key!r}; known: {', '.join(KEYS)}")
        values[key] = value or "1"
    status, times, count = values.get("error", "").rpartition("x")
    if times and count.isdigit():
        values.update(error=status, times=count)
    return check(Script(values))


POINTS = frozenset({"before", "first", "opened", "end"})
# Keys that take one word, or several joined by +, of a closed list.
WORDS = {
    "text": {"unicode"},
    "usage": {"both", "start", "delta", "zero", "cache", "none"},
    "body": {"html", "empty", "notjson", "truncated"},
    "frame": {"crlf", "cr", "mixed", "multi", "comments", "nospace", "noname", "tail", "bytes", "utf8", "burst"},
}


def check(script: Script) -> Script:
    """Return the script; raises ScriptError for a value that its key can't mean."""
    for key, value in script.values.items():
        wanted = KEYS[key][0]
        try:
            _ = int(value) if wanted == "count" else float(value) if wanted == "seconds" else 0
        except ValueError:
            raise ScriptError(f"{key} wants a number, not {value!r}") from None
        if wanted == "point" and script.point(key) not in POINTS and not script.point(key).isdigit():
            raise ScriptError(
                f"{key} wants a position (before, first, opened, a number, end), not {script.point(key)!r}"
            )
        unknown = script.words(key) - WORDS.get(key, script.words(key))
        if unknown:
            raise ScriptError(f"{key} wants {', '.join(sorted(WORDS[key]))}, not {', '.join(sorted(unknown))}")
    return script
