"""Resizing as the field does it, and pictures as other networks take them, through parity and calibration."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from echoir.calibration.sampler import sample
from echoir.data import read_float
from echoir.export.proof.parity import as_output, measure_parity
from echoir.export.proof.report import render
from echoir.export.proof.summary import lines
from echoir.export.quantized import fit, practice
from echoir.export.sources import TorchSource
from echoir.fitting import fitted
from echoir.metrics import luma, psnr, to_8bit
from echoir.resize import resize
from echoir.runtime.descriptor import CHANNELS, Descriptor, Planes
from echoir.runtime.errors import ImageError
from echoir.runtime.manifest import CheckpointRecord
from echoir.samples import SHIPPED, open_samples

PUBLISHED = {2: 33.66, 3: 30.39, 4: 28.42}  # bicubic on Set5, Y in dB: Dong et al. 2016 (SRCNN), table 2


# Resizing.


@given(st.integers(4, 40), st.integers(4, 40), st.sampled_from([Fraction(1, 4), Fraction(1, 3), Fraction(1, 2), 2, 3]))
@settings(deadline=None, max_examples=40)
def test_a_straight_line_stays_one_away_from_the_border(height: int, width: int, scale: Fraction | int) -> None:
    """A kernel whose shares sum to one and whose first moment is zero keeps it: pixel centres are where they belong."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    made = resize(2 * y - x, scale)
    rows, columns = ((np.arange(size) + 0.5) / float(scale) - 0.5 for size in made.shape)
    reach = 2 / min(float(scale), 1)
    inside = np.ix_(*(
        (at >= reach) & (at <= size - 1 - reach) for at, size in ((rows, height), (columns, width))
    ))  # fmt: skip
    np.testing.assert_allclose(made[inside], (2 * rows[:, None] - columns)[inside], atol=2e-4)


@pytest.mark.parametrize("scale", [Fraction(1, 4), Fraction(1, 2), Fraction(1, 3)])
def test_inside_it_is_pytorchs_antialiased_bicubic(scale: Fraction) -> None:
    image = np.random.default_rng(0).random((48, 72, 3), np.float32)
    mine = resize(image, scale)
    theirs = nn.functional.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1))[None],
        scale_factor=float(scale),
        mode="bicubic",
        antialias=True,
        recompute_scale_factor=True,
    )[0].numpy()
    assert mine.shape == (48 * scale, 72 * scale, 3)
    np.testing.assert_allclose(mine[3:-3, 3:-3], theirs.transpose(1, 2, 0)[3:-3, 3:-3], atol=2e-6)


def test_a_border_is_mirrored_with_its_first_pixel_repeated() -> None:
    image = np.random.default_rng(0).random((8, 8), np.float32)
    wide = np.pad(image, 8, mode="symmetric")
    np.testing.assert_allclose(resize(image, Fraction(1, 2)), resize(wide, Fraction(1, 2))[4:-4, 4:-4], atol=1e-6)


@pytest.mark.parametrize("scale", PUBLISHED)
def test_bicubic_on_set5_is_what_papers_say(scale: int) -> None:
    folder = Path(os.environ.get("ECHOIR_DATA", "/nowhere")) / "sr" / "set5"
    if not folder.is_dir():
        pytest.skip("no Set5 at $ECHOIR_DATA/sr/set5")
    figures = []
    for path in sorted(folder.iterdir()):
        truth = to_8bit(luma(read_float(path))) / np.float32(255)
        height, width = (size // scale * scale for size in truth.shape)
        truth = truth[:height, :width]
        small = to_8bit(resize(truth, Fraction(1, scale))) / np.float32(255)
        inner = (slice(scale, -scale),) * 2
        figures.append(psnr(to_8bit(resize(small, scale))[inner], to_8bit(truth)[inner], 255))
    assert np.mean(figures) == pytest.approx(PUBLISHED[scale], abs=0.015)


# Pictures for other networks.


class Mixes(nn.Module):
    """One strided mixture of channels, then its pixels spread: any scale and channels, and nothing else."""

    def __init__(self, given: int, made: int, scale: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(given, made * scale**2, 3, padding=1)
        self.spread = nn.PixelShuffle(scale)
        with torch.no_grad():
            self.mix.weight.zero_()
            self.mix.weight[:, :, 1, 1] = 1 / given
            self.mix.bias.zero_()  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> Tensor:
        spread: Tensor = self.spread(self.mix(image))
        return spread


def network(planes: Planes, made: Planes, scale: int) -> Descriptor:
    task = "sr" if planes != "RGGB" and scale > 1 else "denoise"
    return Descriptor("Mixes", task, 1, scale=scale, input=planes, output=made)


KINDS: list[tuple[Planes, Planes, int]] = [
    ("RGB", "RGB", 4), ("RGB", "RGB", 3), ("RGB", "RGB", 1), ("gray", "gray", 2), ("gray", "gray", 1),
    ("gray", "RGB", 1), ("RGB", "gray", 1), ("RGGB", "RGB", 2), ("RGB pair", "RGB", 1), ("RGB pair", "gray", 2),
]  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    y, x = np.mgrid[0:61, 0:90] / 90
    pixels = np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x * y)], axis=2)
    Image.fromarray(to_8bit(pixels)).save(tmp_path / "waves.png")
    return tmp_path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: " ".join(map(str, kind)))
@pytest.mark.parametrize("io", ["float", "uint8"])
def test_parity_measures_any_network_and_shows_it(pictures: Path, kind: tuple[Planes, Planes, int], io: Any) -> None:
    planes, made, scale = kind
    descriptor = network(planes, made, scale)
    torch.manual_seed(0)
    source = TorchSource(
        Mixes(CHANNELS[planes], CHANNELS[made], scale), descriptor, CheckpointRecord("mixes", "0" * 64)
    )
    manifest = make_manifest(io=io, network=descriptor, tile=(16, 24), overlap=4)
    samples = open_samples(pictures, descriptor.task, network=descriptor)
    report = measure_parity(manifest, source.session(io=io, threads=1), source, samples)
    assert report.figures is not None
    (image,) = report.figures.images
    assert image.error.total == 0
    factor = scale // (2 if planes == "RGGB" else 1)
    step = factor * (2 if planes == "RGGB" else 1)
    assert (image.height, image.width) == (61 // step * step, 90 // step * step)
    assert image.whole is not None
    assert image.whole.pytorch.psnr > 90 or io == "uint8"  # a local network but for one pixel's reach
    assert 5 < image.truth.degraded_psnr < 60
    assert image.truth.engine_psnr > 5
    assert "reduced" not in report.conditions["degradation"] or factor > 1
    assert "waves.png" in render(report)
    assert any("waves.png" in line for line in lines(report))


def test_the_shipped_pictures_are_reduced_and_enlarged_again_as_a_figure_to_beat() -> None:
    descriptor = network("RGB", "RGB", 4)
    samples = open_samples(SHIPPED, "sr", network=descriptor, limit=1)
    assert samples.describe() == {"kind": "clean pictures", "reduced": "4 times, bicubic", "seed": 0, "pictures": 1}
    (sample_,) = samples
    assert sample_.truth.shape == (*(4 * n for n in sample_.degraded.shape[:2]), 3)
    np.testing.assert_array_equal(to_8bit(sample_.degraded) / np.float32(255), sample_.degraded)
    baseline = as_output(sample_.degraded, descriptor)
    assert 22 < psnr(to_8bit(baseline), to_8bit(sample_.truth), 255) < 35


def pair(folder: Path, low: tuple[int, int], high: tuple[int, int]) -> Path:
    for name, size in (("input", low), ("target", high)):
        (folder / name).mkdir()
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name / "a.png")
    return folder


def test_the_truth_of_a_pair_is_larger_by_the_scale(tmp_path: Path) -> None:
    (sample_,) = open_samples(pair(tmp_path, (20, 30), (40, 60)), "sr", network=network("RGB", "RGB", 2))
    assert (sample_.degraded.shape, sample_.truth.shape) == ((20, 30, 3), (40, 60, 3))


def test_a_pair_of_another_scale_is_refused_with_both_sizes(tmp_path: Path) -> None:
    samples = open_samples(pair(tmp_path, (20, 30), (40, 60)), "sr", network=network("RGB", "RGB", 4))
    with pytest.raises(ImageError, match=r"30 x 20 and 60 x 40; the network enlarges 4 times, and so must the pair"):
        next(iter(samples))


def test_an_unknown_task_that_enlarges_nothing_needs_pairs_and_one_that_nobody_told_takes_pictures(
    pictures: Path,
) -> None:
    with pytest.raises(ImageError, match="dehaze needs pairs"):
        open_samples(pictures, "dehaze", network=network("RGB", "RGB", 1))
    (sample_,) = open_samples(pictures, "restore", network=network("RGB", "RGB", 1))
    np.testing.assert_array_equal(sample_.degraded, sample_.truth)


def test_a_mosaic_has_red_first() -> None:
    image = np.arange(8 * 6 * 3, dtype=np.float32).reshape(8, 6, 3)
    sensor, truth = fitted(image, image, network("RGGB", "RGB", 2))
    np.testing.assert_array_equal(truth, image)
    for y in range(8):
        for x in range(6):
            assert sensor[y, x] == image[y, x, (y % 2) + (x % 2)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: " ".join(map(str, kind)))
def test_calibration_tiles_are_what_the_network_takes(kind: tuple[Planes, Planes, int]) -> None:
    planes, made, scale = kind
    descriptor = network(planes, made, scale)
    rng = np.random.default_rng(0)
    smooth = [resize(rng.random((9, 12, 3), np.float32), 16).clip(0, 1) for _ in range(4)]
    sources = [(Path(f"{i}.png"), None) for i in range(4)]
    task = practice(descriptor.task, descriptor)
    tiles = sample(
        sources, descriptor.task, task, lambda path: smooth[int(path.stem)], side=16, fit=fit(descriptor),
        calibration=4, sensitivity=4,
    )  # fmt: skip
    module = Mixes(CHANNELS[planes], CHANNELS[made], scale)
    for tile in (*tiles.calibration, *tiles.sensitivity):
        assert tile.degraded.shape == (1, CHANNELS[planes], 16, 16)
        with torch.no_grad():
            assert module(torch.from_numpy(tile.degraded)).shape == tile.truth.shape
