"""The relay's URLs: the API, and a native 404 for every other path under its roots."""

from __future__ import annotations

from typing import Any

from django.urls import URLPattern, URLResolver, path, re_path

from relay.api import api
from relay.api.common import failed, method_not_served, not_served, unreadable
from relay.consumers import LiveConsumer

urlpatterns: list[URLPattern | URLResolver] = [
    path("", api.urls),
    re_path(r"^(?P<root>api|claude|gemini|openai|azure|v1|v1beta|v1beta1|v1alpha|internal)(/.*)?$", not_served),
]
websocket_urlpatterns: list[Any] = [path("ws/live/", LiveConsumer.as_asgi())]
# Asked by the slim entry; Django's own handler has the site's.
handler400, handler404, handler405, handler500 = unreadable, not_served, method_not_served, failed
