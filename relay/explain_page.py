"""The admin's page on selection: what would happen to this key and model now, account by account."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse

from accounts.kinds import entrances
from apikeys.models import ApiKey
from relay.explain import Unknown, explain_now

MAX_KEYS = 500


@permission_required(["apikeys.view_apikey", "accounts.view_account"], raise_exception=True)
def explain_page(request: HttpRequest) -> HttpResponse:
    """Ask for a key and a model; answer with the outcome and the reason for every account. Nothing is booked."""
    asked = {name: request.GET.get(name, "").strip() for name in ("key", "model", "dialect")}
    problem, found = "", None
    if asked["key"] and asked["model"]:
        try:
            found = explain_now(asked["key"], asked["model"], dialect=asked["dialect"])
        except Unknown as error:
            problem = str(error)
    elif asked["key"] or asked["model"]:
        problem = "Choose a key and name a model."
    context: dict[str, Any] = {
        **admin.site.each_context(request),
        "title": "Why there",
        "asked": asked,
        "found": found,
        "problem": problem,
        "keys": ApiKey.objects.alive().order_by("name").values_list("name", flat=True)[:MAX_KEYS],
        "dialects": sorted(entrances()),
        "records_url": reverse("admin:relay_usagerecord_changelist"),
    }
    return TemplateResponse(request, "baton/explain.html", context)
