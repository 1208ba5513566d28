"""The walk of folders: each picture once, nothing hidden, and a word about what is not read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from echoir.runtime.folders import find_pictures, name_unread


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(folder: Path, **options: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_pictures(folder, **options).pictures]


def test_pictures_are_found_by_name_in_every_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/2.JPG", "a/10.tiff", "a/deep/x.webp", "notes.txt", "c.png.part")
    assert names(tmp_path) == ["b.png", "a/10.tiff", "a/2.JPG", "a/deep/x.webp"]


def test_hidden_files_and_folders_are_left_out_but_not_a_hidden_root(tmp_path: Path) -> None:
    touch(tmp_path / ".root", "a.png", "._a.png", ".hidden/b.png", ".echoir-0123.png")
    assert names(tmp_path / ".root") == ["a.png"]


def test_a_folder_is_no_picture_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "x.png/a.png")
    assert names(tmp_path) == ["x.png/a.png"]


def test_a_linked_folder_is_walked_once_and_at_its_own_place(tmp_path: Path) -> None:
    touch(tmp_path, "root/real/a.png", "other/b.png")
    for link, target in {
        "alias": "real",
        "beyond": "../other",
        "again": "../other",
        "loop": ".",
        "real/up": "..",
    }.items():
        (tmp_path / "root" / link).symlink_to(target)
    assert names(tmp_path / "root") == ["again/b.png", "real/a.png"]
    (tmp_path / "entry").symlink_to("root")
    assert names(tmp_path / "entry") == ["again/b.png", "real/a.png"]


def test_links_to_files_are_pictures_and_broken_ones_are_not_hidden(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "c.png").symlink_to("nowhere")
    (tmp_path / "d.png").symlink_to("d.png")
    assert names(tmp_path) == ["a.png", "b.png", "c.png", "d.png"]


def test_one_folder_can_be_left_out_however_it_is_spelt(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "out/a.png")
    (tmp_path / "link").symlink_to("out")
    for spelling in (
        tmp_path / "out",
        tmp_path / "link",
        tmp_path / "out/../out",
        Path(os.path.relpath(tmp_path / "out")),
    ):
        assert names(tmp_path, without=spelling) == ["a.png"]
    assert names(tmp_path, without=tmp_path / "absent") == ["a.png", "out/a.png"]


def test_types_that_are_not_read_are_counted(tmp_path: Path) -> None:
    found = find_pictures(touch(tmp_path, "a.heic", "b.HEIC", "c.gif", "d.txt", ".e.gif", "f.png"))
    assert name_unread(found.unread) == "2 .heic, 1 .gif"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_reported(tmp_path: Path) -> None:
    touch(tmp_path, "closed/a.png", "b.png")
    (tmp_path / "closed").chmod(0)
    found = find_pictures(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert [error.filename for error in found.unreadable] == [str(tmp_path / "closed")]
