"""The site's pages, and the relay's paths: the slim entry serves those, Django's own handler finds them here too."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index"), name="index"),
    path("admin/", admin.site.urls),
    path("", include("relay.urls")),
]
