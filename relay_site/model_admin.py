"""What all our model pages share: empty states that say what to do next, and deletion that can be taken back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.text import capfirst
from unfold.admin import ModelAdmin
from unfold.decorators import action


class BatonModelAdmin(ModelAdmin):
    """`empty_title` and `empty_text` are shown where the table holds no row at all."""

    empty_title: ClassVar[str] = "Nothing here yet"
    empty_text: ClassVar[str] = ""
    list_filter_submit = True
    warn_unsaved_form = True
    list_per_page = 50
    show_facets = admin.ShowFacets.NEVER  # a count for each choice of each filter

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Called by its name, in the browser's tabs too."""
        title = capfirst(self.opts.verbose_name_plural)
        response: HttpResponse = super().changelist_view(request, {"title": title, **(extra_context or {})})
        return response


class ReadOnlyAdmin(BatonModelAdmin):
    """Rows that only Baton writes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class DeletedFilter(admin.SimpleListFilter):
    """Deleted rows are hidden until asked for."""

    title = "deleted"
    parameter_name = "deleted"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Deleted")]

    def choices(self, changelist: Any) -> Iterator[Any]:
        for value, label in ((None, "Not deleted"), ("yes", "Deleted")):
            query = changelist.get_query_string({self.parameter_name: value} if value else {}, [self.parameter_name])
            yield {"selected": self.value() == value, "query_string": query, "display": label}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(deleted_at__isnull=self.value() != "yes")


class SoftDeleteAdmin(BatonModelAdmin):
    """Rows are marked as deleted and can be restored: records name them for ever."""

    delete_confirmation_template = "baton/delete_confirmation.html"
    delete_selected_confirmation_template = "baton/delete_confirmation.html"
    change_form_outer_before_template = "baton/deleted_notice.html"
    actions: tuple[str, ...] | None = ("restore",)

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[Any, Any], set[Any], list[Any]]:
        """Nothing but the rows themselves goes away, whatever points to them."""
        names = [str(row) for row in objs]
        denied = set() if self.has_delete_permission(request) else {self.opts.verbose_name}
        return names, {self.opts.verbose_name_plural: len(names)}, denied, []

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        self.mark(obj, timezone.now())

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        for row in queryset:
            self.mark(row, timezone.now())

    def mark(self, row: Any, deleted_at: datetime | None) -> None:
        """Row by row, so that the audit trail sees each."""
        row.deleted_at = deleted_at
        row.save(update_fields=["deleted_at"])

    @action(description="Restore", permissions=["delete"])
    def restore(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        rows = list(queryset.exclude(deleted_at=None))
        for row in rows:
            self.mark(row, None)
            self.log_change(request, row, "Restored.")
        if rows:
            self.message_user(request, f"Restored: {', '.join(str(row) for row in rows)}.", messages.SUCCESS)
        else:
            self.message_user(request, "Nothing to restore: none of these was deleted.", messages.WARNING)
