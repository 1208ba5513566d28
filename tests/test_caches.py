"""What is kept for another time: whole files, within a limit, those used last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from echoir.runtime.caches import cache_folder, keep, recall


def test_what_is_kept_is_recalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cache_folder("kind") / "a"
    assert path == tmp_path / "echoir/kind/a"
    assert recall(path) is None
    assert keep(path, b"content", 100)
    assert recall(path) == b"content"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + b"x", b""):
        path.write_bytes(damaged)
        assert recall(path) is None


def test_above_the_limit_the_least_recently_used_go(tmp_path: Path) -> None:
    for second, name in enumerate("abc"):
        assert keep(tmp_path / name, bytes(0), 100)
        os.utime(tmp_path / name, (second, second))
    assert recall(tmp_path / "a") is not None  # used: now the newest
    assert keep(tmp_path / "d", bytes(0), 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]
    assert not keep(tmp_path / "e", bytes(101), 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert not keep(tmp_path / "file" / "a", b"content", 100)
    assert recall(tmp_path / "file" / "a") is None
