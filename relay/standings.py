"""Where limits stand now, as the relay counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from django.utils.html import format_html
from django.utils.safestring import SafeString

from apikeys.rules import counted_one
from relay import internal
from relay.call import LimitRule
from relay_site.display import count, short, usd, usd_short


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one limit stands now."""

    rule: LimitRule
    spent: int
    ends_at: float | None  # Unix seconds; None = never, or no period

    @property
    def of_team(self) -> bool:
        return self.rule.scope == "team"

    @property
    def name(self) -> str:
        per = {"": "calls at a time", "total": f"{self.rule.metric} in total"}
        text = per.get(self.rule.per, f"{self.rule.metric} per {self.rule.per}")
        return text + (f" for {self.rule.models}" if self.rule.models else "") + (", strict" * self.rule.strict)

    @property
    def share(self) -> float:
        return min(1.0, self.spent / self.rule.amount) if self.rule.amount else 1.0

    def said(self, amount: int) -> str:
        return usd(amount) if self.rule.metric == "cost" else count(amount)

    @property
    def used(self) -> str:
        return self.said(self.spent)

    @property
    def amount(self) -> str:
        return self.said(self.rule.amount)

    @property
    def glance(self) -> str:
        """Used and amount, rounded, for a list: money says by its sign that it is cost."""
        if self.rule.metric == "cost":
            name = self.name.removeprefix("cost ")
            return f"{usd_short(self.spent)} of {usd_short(self.rule.amount).removesuffix('.00')} {name}"
        return f"{short(self.spent)} of {short(self.rule.amount)} {self.name}"

    @property
    def left(self) -> str:
        return self.said(max(0, self.rule.amount - self.spent))

    @property
    def resets(self) -> str:
        if self.ends_at is None:
            return "never" if self.rule.per else "-"
        return (
            f"{datetime.fromtimestamp(self.ends_at, UTC).astimezone(ZoneInfo(self.rule.time_zone)):%Y-%m-%d %H:%M %Z}"
        )

    @property
    def bar(self) -> SafeString:
        tone = "b-over" if self.share >= 1 else "b-near" if self.share >= 0.8 else ""
        return format_html(
            '<span class="b-bar {}" title="{} of {}"><i style="width: {}%"></i></span>',
            tone,
            self.used,
            self.amount,
            f"{self.share * 100:.1f}",
        )


def standings(rules: Sequence[LimitRule], *, now: float) -> list[Standing]:
    """Return where these limits stand, as the relay counts them; raises `internal.RelayUnreachable`."""
    ready = [counted_one(rule) for rule in rules]
    names = [limit.counter(now)[0] for limit in ready]
    spent = internal.counters(names) if names else {}
    ends = [limit.period(now).end for limit in ready]
    return [
        Standing(rule, spent.get(name, 0), end if rule.per not in {"", "total"} else None)
        for rule, name, end in zip(rules, names, ends, strict=True)
    ]
