"""Crops: where they come from, and that they depend on nothing but their number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echoir.data import CropKey, Crops, Picture, _reflected, list_images, list_pictures, split
from echoir.degradations import TASKS, Task
from echoir.runtime.errors import ImageError

UNTOUCHED = Task(lambda clean, rng: clean)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def clean(tmp_path: Path) -> list[Picture]:
    rng = np.random.default_rng(0)
    for index in range(4):
        save(tmp_path / "clean" / f"{index}.png", rng.integers(0, 256, (40, 40, 3)))
    return list_pictures([tmp_path / "clean"])


@pytest.fixture
def pairs(tmp_path: Path) -> list[Picture]:
    """Inputs that are exactly 20 codes brighter than their targets."""
    rng = np.random.default_rng(1)
    for index in range(3):
        target = rng.integers(0, 200, (32, 48, 3))
        save(tmp_path / "pairs" / "target" / f"{index}.png", target)
        save(tmp_path / "pairs" / "input" / f"{index}.png", target + 20)
    return list_pictures([tmp_path / "pairs"])


def test_a_crop_depends_on_its_number_alone(clean: list[Picture]) -> None:
    first, again = (Crops(clean, TASKS["denoise"], seed=3) for _ in range(2))
    again[CropKey(0, 16)]
    for a, b in zip(first[CropKey(7, 16)], again[CropKey(7, 16)], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[CropKey(7, 16)][1], first[CropKey(8, 16)][1])


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_smaller_than_the_crop_is_reflected(clean: list[Picture], task: str) -> None:
    degraded, crop = Crops(clean, TASKS[task], seed=0)[CropKey(0, 64)]
    assert degraded.shape == crop.shape == (3, 64, 64)
    assert degraded.dtype == crop.dtype == torch.float32


@given(size=st.integers(1, 9), before=st.integers(0, 20), after=st.integers(0, 20))
def test_places_outside_are_reflected_as_numpy_pads(size: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(size), (before, after), mode="reflect")
    np.testing.assert_array_equal(_reflected(np.arange(-before, size + after), size), expected)


def test_both_pictures_of_a_pair_are_cut_turned_and_mirrored_alike(pairs: list[Picture]) -> None:
    crops = Crops(pairs, UNTOUCHED, seed=0)
    for number in range(12):
        degraded, target = crops[CropKey(number, 16)]
        assert torch.allclose(degraded - target, torch.tensor(20 / 255), atol=1e-6)


def test_an_additive_task_puts_a_pairs_difference_on_clean_pictures(clean: list[Picture], pairs: list[Picture]) -> None:
    crops = Crops([*clean, *pairs], Task(lambda clean, rng: clean, additive=True), seed=0, pairs=0.0)
    for number in range(4):
        degraded, target = crops[CropKey(number, 16)]
        assert torch.allclose(degraded, (target + 20 / 255).clamp(max=1), atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_pairs_make_up_their_share(clean: list[Picture], pairs: list[Picture], share: float) -> None:
    crops = Crops([*clean, *pairs], UNTOUCHED, seed=0, pairs=share)
    from_pairs = sum(not torch.equal(*crops[CropKey(number, 8)]) for number in range(200))
    assert from_pairs / 200 == pytest.approx(share, abs=0.08)


def test_rain_is_never_turned(tmp_path: Path) -> None:
    down = np.broadcast_to(np.arange(32)[:, None, None] * 8, (32, 32, 3))
    save(tmp_path / "one.png", down)
    crops = Crops(list_pictures([tmp_path]), TASKS["derain"], seed=0)
    for number in range(8):
        assert (crops[CropKey(number, 16)][1].diff(dim=1) > 0).all()


def test_a_pair_of_two_sizes_is_named(tmp_path: Path) -> None:
    save(tmp_path / "input" / "a.png", np.zeros((8, 8, 3)))
    save(tmp_path / "target" / "a.png", np.zeros((8, 9, 3)))
    with pytest.raises(ImageError, match=r"a\.png and .*a\.png differ in size"):
        Crops(list_pictures([tmp_path]), UNTOUCHED, 0)[CropKey(0, 8)]


def test_an_input_without_its_target_is_named(tmp_path: Path) -> None:
    save(tmp_path / "input" / "a.png", np.zeros((8, 8, 3)))
    save(tmp_path / "target" / "b.png", np.zeros((8, 8, 3)))
    with pytest.raises(ImageError, match=r"no picture for a\.png"):
        list_pictures([tmp_path])


def test_folders_without_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not a folder"):
        list_images([tmp_path / "missing"])
    with pytest.raises(ImageError, match="no picture"):
        list_images([tmp_path])
    (tmp_path / "text.png").write_text("no picture at all")
    with pytest.raises(ImageError, match=r"text\.png: cannot be read as a picture"):
        Crops(list_pictures([tmp_path]), UNTOUCHED, 0)[CropKey(0, 8)]


def test_split_is_disjoint_and_fixed_by_the_seed() -> None:
    paths = [Path(str(i)) for i in range(20)]
    training, held = split(paths, 5, seed=1)
    assert len(held) == 5
    assert set(training) | set(held) == set(paths)
    assert not set(training) & set(held)
    assert split(paths, 5, seed=1) == (training, held)
    assert split(paths, 5, seed=2) != (training, held)
