"""Parts of a plan: every picture in exactly one, on whatever machine."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from running import echoir

from echoir.runtime.artifact import Artifact
from echoir.runtime.plans import Job, part_of

NAMES = st.lists(
    st.text("abcé/ .", min_size=1).filter(lambda name: name.strip("/. ")), min_size=1, max_size=40, unique=True
)


@given(NAMES, st.integers(1, 9), st.randoms())
def test_every_picture_is_in_exactly_one_part(names: list[str], count: int, mixer: random.Random) -> None:
    jobs = [Job(Path("in", f"x{name}.png"), Path("out", f"x{name}.png")) for name in names]
    parts = [part_of(jobs, "out", index, count) for index in range(1, count + 1)]
    assert sorted((job for part in parts for job in part), key=str) == sorted(jobs, key=str)
    mixed = mixer.sample(jobs, len(jobs))
    assert [set(part_of(mixed, "out", index, count)) for index in range(1, count + 1)] == [set(part) for part in parts]


def test_a_part_is_the_same_wherever_the_folders_are_and_whatever_else_is_in_them() -> None:
    names = [f"{index:03}.png" for index in range(200)]

    def part(at: str, names: list[str]) -> set[str]:
        jobs = [Job(Path(at, "in", name), Path(at, "out", name)) for name in names]
        return {job.source.name for job in part_of(jobs, f"{at}/out/", 2, 3)}

    whole = part("/mnt/farm", names)
    assert 40 < len(whole) < 95
    assert part("shots", names) == whole
    assert part("/data", names[::2]) == whole & set(names[::2])


def test_the_parts_of_a_folder_are_the_folder_and_resume(identity: Artifact, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(9):
        Image.fromarray(np.full((9, 9, 3), index * 20, np.uint8)).save(tmp_path / "in" / f"{index}.png")
    arguments = ("restore", tmp_path / "in", "-m", identity.model_path, "-o", tmp_path / "out")
    counts = []
    for index in (1, 2, 3):
        assert echoir(*arguments, "--shard", f"{index}/3", "--quiet").code == 0
        counts.append(len(list((tmp_path / "out").glob("*.png"))))
    assert counts[-1] == 9
    assert counts == sorted(set(counts)), "each part did something"
    assert echoir(*arguments).out == "restored 0, skipped 9, failed 0\n"
    assert echoir(*arguments, "--shard", "1/3").out == f"restored 0, skipped {counts[0]}, failed 0\n"


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "1/0", "-1/4", "a/b", "1/4/2", ""])
def test_what_is_no_part_is_refused(part: str, identity: Artifact, tmp_path: Path) -> None:
    result = echoir("restore", tmp_path, "-m", identity.model_path, "-o", tmp_path / "out", "--shard", part)
    assert result.code == 2
    assert "is no part; the first of four is 1/4" in result.err


@pytest.mark.parametrize("on", ["slurm", "ray:", "rays", ""])
def test_what_is_no_farm_is_refused(on: str, identity: Artifact, tmp_path: Path) -> None:
    result = echoir("restore", tmp_path, "-m", identity.model_path, "-o", tmp_path / "out", "--on", on)
    assert result.code == 2
    assert "there are ray and ray:ADDRESS" in result.err


def test_the_options_of_a_farm_need_one(identity: Artifact, tmp_path: Path) -> None:
    result = echoir("restore", tmp_path, "-m", identity.model_path, "-o", tmp_path / "out", "--workers", 2)
    assert result.code == 2
    assert "go with --on ray" in result.err


def test_without_ray_what_installs_it_is_said(
    identity: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, None)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    result = echoir("restore", tmp_path / "a.png", "-m", identity.model_path, "-o", tmp_path / "out", "--on", "ray")
    assert result.code == 6
    assert "ray is not installed; run: pip install 'echoir[ray]'" in result.err
    assert not (tmp_path / "out").exists()
