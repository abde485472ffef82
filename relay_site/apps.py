"""Django's admin, with our site as the default one."""

from __future__ import annotations

from django.contrib.admin.apps import AdminConfig


class BatonAdminConfig(AdminConfig):
    default_site = "relay_site.site.BatonAdminSite"
