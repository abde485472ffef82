"""The admin site: unfold's, with Baton's own pages beside the models'."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from unfold.sites import UnfoldAdminSite


class BatonAdminSite(UnfoldAdminSite):
    index_title = "Dashboard"
    enable_nav_sidebar = True

    def extra_urls(self) -> list[URLPattern]:
        from relay import explain_page, views

        return [
            path("demo/remove/", self.admin_view(views.remove_demo), name="remove_demo"),
            path("explain/", self.admin_view(explain_page.explain_page), name="explain"),
            path("live/", self.admin_view(views.live_page), name="live"),
            path("reports/usage/", self.admin_view(views.usage_report_page), name="usage_report"),
            path("accounts/account/<int:account_id>/test/", self.admin_view(views.test_account), name="test_account"),
            path("accounts/account/<int:account_id>/end-rest/", self.admin_view(views.end_rest), name="end_rest"),
        ]

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        from relay import views

        return super().index(request, {**views.dashboard_context(request), **(extra_context or {})})
