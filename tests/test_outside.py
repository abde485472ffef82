"""Journals shipped by commands: after a restored backup, from another machine, from relays that died."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from relay.models import Quarantine, RollUpMark, UsageRecord
from relay.segments import is_done
from tests.journals import a_dead_folder, a_journal, a_ledger, a_record, eventually, write

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    with override_settings(RELAY_DATA_DIR=tmp_path, REDIS_URL=""):
        yield tmp_path / "journal"


def run(command: str, *arguments: str) -> dict[str, int]:
    call_command(command, *arguments, "--json", stdout=(out := StringIO()))
    answer: dict[str, int] = json.loads(out.getvalue())
    return answer


def statuses() -> dict[str, str]:
    return {str(pk): status for pk, status in UsageRecord.objects.values_list("pk", "status")}


def test_a_restored_backup_gets_its_missing_hour_back(root: Path) -> None:
    kept, lost, dead = a_record(), [a_record() for _ in range(5)], a_record()
    folder = a_dead_folder(root, ("end", dead))
    with a_journal(root) as journal, a_ledger(journal):
        write(journal, ("end", kept), *[("end", record) for record in lost])
        eventually(lambda: is_done(folder) and journal.waiting == 0)
        UsageRecord.objects.exclude(pk=kept.id).delete()
        RollUpMark.objects.all().delete()
        since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        assert run("ship_journal", "--since", since) == {"folders": 2, "records": 6, "alive": 1}
        assert run("ship_journal", "--since", since)["records"] == 0
    assert statuses() == {record.id: "ok" for record in [kept, dead, *lost]}
    assert RollUpMark.objects.exists()


def test_since_reads_only_what_was_written_since(root: Path) -> None:
    old, new = a_dead_folder(root, ("end", a_record())), a_dead_folder(root, ("end", a_record()))
    run("recover")
    UsageRecord.objects.all().delete()
    for path in old.glob("*.journal"):
        os.utime(path, (0, 0))
    assert run("ship_journal", "--since", "2020-01-01")["records"] == 1
    assert run("ship_journal")["records"] == 1
    assert is_done(new)


def test_a_folder_from_another_machine_is_booked_and_ended(root: Path, tmp_path: Path) -> None:
    ended, cut = a_record(), a_record(status="interrupted", usage_source="none")
    there = a_dead_folder(tmp_path / "there", ("open", cut), ("end", ended))
    here = tmp_path / "usb" / there.name
    shutil.copytree(there, here)
    (here / "cursor").write_text('{"shipped":[9,9]}')  # what it says of the other machine's database
    assert run("ship_journal", str(here)) == {"folders": 1, "records": 2, "alive": 0}
    assert statuses() == {ended.id: "ok", cut.id: "interrupted"}
    assert run("ship_journal", str(tmp_path / "usb")) == {"folders": 1, "records": 0, "alive": 0}


def test_recover_books_the_dead_and_leaves_the_living_alone(root: Path) -> None:
    ended, cut, living = a_record(), a_record(status="interrupted"), a_record(status="interrupted")
    a_dead_folder(root, ("open", cut), ("end", ended))
    with a_journal(root) as journal:
        write(journal, ("open", living))
        assert run("recover") == {"folders": 2, "records": 2, "alive": 1}
    assert statuses() == {ended.id: "ok", cut.id: "interrupted"}


def test_what_was_in_quarantine_and_is_booked_now_is_resolved(root: Path) -> None:
    record = a_record()
    a_dead_folder(root, ("end", record))
    for call in (record.id, a_record().id, "nonsense"):
        Quarantine.objects.create(record_id=call, error="e", entry=b"{}")
    run("ship_journal")
    assert list(Quarantine.objects.exclude(resolved_at=None).values_list("record_id", flat=True)) == [record.id]


@pytest.mark.parametrize("arguments", [["/nonexistent"], ["--since", "yesterday"]])
def test_nonsense_is_refused_by_name(root: Path, arguments: list[str]) -> None:
    with pytest.raises(CommandError, match=arguments[-1]):
        run("ship_journal", *arguments)
