"""People, roles, schedules and the audit trail: others' models, in the look of the rest."""

from __future__ import annotations

from typing import Any

from auditlog.admin import LogEntryAdmin as BaseLogEntryAdmin
from auditlog.models import LogEntry
from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as BaseGroupAdmin
from django.contrib.auth.admin import UserAdmin as BaseUserAdmin
from django.contrib.auth.models import Group, User
from django.http import HttpRequest
from django_celery_beat.admin import CrontabScheduleAdmin as BaseCrontabScheduleAdmin
from django_celery_beat.admin import PeriodicTaskAdmin as BasePeriodicTaskAdmin
from django_celery_beat.admin import PeriodicTaskForm, TaskSelectWidget
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from relay_site.model_admin import BatonModelAdmin, ReadOnlyAdmin

for model in (User, Group, LogEntry, AccessAttempt, AccessFailureLog, AccessLog):
    admin.site.unregister(model)
for model in (PeriodicTask, CrontabSchedule, IntervalSchedule, SolarSchedule, ClockedSchedule):
    admin.site.unregister(model)


@admin.register(User)
class UserAdmin(BaseUserAdmin, ModelAdmin):
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "roles", "is_active", "is_superuser", "last_login")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("groups")

    @admin.display(description="Roles")
    def roles(self, user: User) -> str:
        return ", ".join(group.name for group in user.groups.all()) or "-"


@admin.register(Group)
class GroupAdmin(BaseGroupAdmin, ModelAdmin):
    """The roles admin, operator and finance are renewed by every `migrate`: make groups of your own for others."""


@admin.register(LogEntry)
class LogEntryAdmin(BaseLogEntryAdmin, ReadOnlyAdmin):
    list_display = ("created", "resource_url", "action", "msg_short", "user_url")
    date_hierarchy = None
    empty_title = "No change yet"
    empty_text = "Every change of an account, key, limit, binding, team or price is kept here with its author."


@admin.register(AccessAttempt)
class AccessAttemptAdmin(ReadOnlyAdmin):
    list_display = ("attempt_time", "username", "ip_address", "failures_since_start")
    search_fields = ("username", "ip_address")
    fields = list_display
    empty_title = "No failed sign-in"

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Deleting the attempts lets a locked-out person in again."""
        return bool(BatonModelAdmin.has_delete_permission(self, request, obj))


class TaskChoice(UnfoldAdminSelectWidget, TaskSelectWidget):
    """The registered tasks, in the look of the rest."""


class TaskForm(PeriodicTaskForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["task"].widget = UnfoldAdminTextInputWidget()
        self.fields["regtask"].widget = TaskChoice()


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(BasePeriodicTaskAdmin, ModelAdmin):
    form = TaskForm
    date_hierarchy = None
    change_form_template = "admin/change_form.html"  # the package's own has a script in the page
    change_list_template = "admin/change_list.html"
    empty_title = "No task yet"
    empty_text = "Celery beat writes Baton's tasks here when it starts: make run starts it, or the beat process."


@admin.register(IntervalSchedule)
class IntervalScheduleAdmin(ModelAdmin):
    pass


@admin.register(CrontabSchedule)
class CrontabScheduleAdmin(BaseCrontabScheduleAdmin, ModelAdmin):
    pass
