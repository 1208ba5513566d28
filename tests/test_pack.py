"""Packed pictures come out where they went in: clean ones nearly, pairs to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import echoir

from echoir.data import list_pictures, read_rgb
from echoir.metrics import psnr
from echoir.pack import data_folders
from echoir.runtime.errors import ImageError


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    wave = np.linspace(0, 6, 64)
    smooth = np.rint(127 + 120 * np.sin(wave[:, None, None] + wave[None, :, None] * [1, 2, 3])).astype(np.uint8)
    clean, pairs = tmp_path / "clean", tmp_path / "pairs"
    for path in (clean / "a.png", clean / "below" / "b.png", pairs / "target" / "c.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth).save(path)
    Image.fromarray(smooth).save(clean / "kept.jpg", quality=50)
    (pairs / "input").mkdir()
    Image.fromarray(rng.integers(0, 256, smooth.shape, dtype=np.uint8)).save(pairs / "input" / "c.png")
    return [clean, pairs]


def test_pictures_and_pairs_come_back(tmp_path: Path, folders: list[Path]) -> None:
    result = echoir("pack", *folders, "-o", tmp_path / "all.zip")
    assert result.code == 0, result.err
    assert result.out.startswith(f"{tmp_path / 'all.zip'}: 4 pictures, ")
    before = list_pictures(folders)
    after = list_pictures(data_folders((str(tmp_path / "all.zip"),)))
    assert [picture.clean.stem for picture in before] == [picture.clean.stem for picture in after]
    for old, new in zip(before, after, strict=True):
        if old.degraded is None:
            assert psnr(read_rgb(old.clean), read_rgb(new.clean), 255) > 40
        else:
            assert new.degraded is not None
            np.testing.assert_array_equal(read_rgb(old.degraded), read_rgb(new.degraded))
            np.testing.assert_array_equal(read_rgb(old.clean), read_rgb(new.clean))
    jpeg = next(picture.clean for picture in after if picture.clean.stem == "kept")
    assert jpeg.read_bytes() == (folders[0] / "kept.jpg").read_bytes()


def test_the_same_pictures_give_the_same_file(tmp_path: Path, folders: list[Path]) -> None:
    for name in ("one.zip", "two.zip"):
        assert echoir("pack", *folders, "-o", tmp_path / name).code == 0
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_lossy_pairs_are_smaller(tmp_path: Path, folders: list[Path]) -> None:
    assert echoir("pack", folders[1], "-o", tmp_path / "whole.zip").code == 0
    assert echoir("pack", folders[1], "-o", tmp_path / "lossy.zip", "--lossy-pairs", "--quality", "80").code == 0
    assert (tmp_path / "lossy.zip").stat().st_size < (tmp_path / "whole.zip").stat().st_size


def test_another_file_is_no_pack(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ImageError, match=r"text\.zip: not a file that echoir pack wrote"):
        data_folders((str(tmp_path / "text.zip"),))
