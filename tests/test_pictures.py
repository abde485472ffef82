"""The pictures of the documentation: all there, and small."""

from __future__ import annotations

from django.conf import settings

from relay.management.commands.take_pictures import PICTURES

FOLDER = settings.BASE_DIR / "docs" / "images"
MOST_BYTES = 2 * 1024 * 1024


def test_every_picture_is_there_and_all_of_them_are_small() -> None:
    sizes = {path.stem: path.stat().st_size for path in FOLDER.glob("*.png")}
    assert {picture.name for picture in PICTURES} - sizes.keys() == set()
    assert sum(sizes.values()) < MOST_BYTES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in FOLDER.glob("*.png"))


def test_no_two_pictures_have_one_name() -> None:
    assert len({picture.name for picture in PICTURES}) == len(PICTURES)
