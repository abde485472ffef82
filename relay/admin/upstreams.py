"""What the relay adds to the accounts' pages: calls today, limits, ending rests."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import action, display

from accounts.admin import AccountAdmin
from accounts.models import Account
from apikeys.admin import LimitInline
from relay import internal
from relay.reports import calls_today
from relay_site.display import count


@admin.register(Account)
class RelayedAccountAdmin(AccountAdmin):
    list_display = (*AccountAdmin.list_display, "calls")
    inlines = (LimitInline,)
    actions = ("end_rests", "restore")

    def attach(self, accounts: list[Any]) -> None:
        super().attach(accounts)
        calls = calls_today("account", [row.pk for row in accounts], now=timezone.now())
        for row in accounts:
            row.calls_today = calls.get(row.pk, 0)

    @display(description="Calls today")
    def calls(self, account: Any) -> SafeString:
        url = reverse("admin:relay_usagerecord_changelist")
        query = f"account={account.pk}&day=today"
        return format_html('<a class="b-link" href="{}?{}">{}</a>', url, query, count(account.calls_today))

    @action(description="End rest", permissions=["change"])
    def end_rests(self, request: HttpRequest, queryset: QuerySet[Account]) -> None:
        accounts = list(queryset)
        try:
            for account in accounts:
                internal.clear_rest(account.pk)
        except internal.RelayUnreachable as error:
            self.message_user(request, str(error), messages.ERROR)
        else:
            names = ", ".join(account.name for account in accounts)
            self.message_user(request, f"May be called again: {names}.", messages.SUCCESS)
