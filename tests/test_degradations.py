"""What the tasks undo, checked against what physics, arithmetic or libjpeg says about it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import zoom
from skimage import data
from torch import Tensor

from echoir.degradations import TASKS, Draw, blur
from echoir.degradations.camera import COLOUR_MATRIX, _developed, _mixed, _processed, camera_noise, linear, tone
from echoir.degradations.chroma import Siting, double, halve, subsample, to_rgb, to_ycc
from echoir.degradations.filters import separable
from echoir.degradations.jpeg import Sampling, jpeg
from echoir.degradations.noise import FAMILIES, Family, Pair, correlated, grayscale, noise, untouched
from echoir.degradations.rain import rain
from echoir.runtime.streams.chroma import double_columns

NOISE = noise.__globals__  # the module's names: the function hides it in its package


def crops(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    pixels: np.ndarray = data.astronaut()[:128, 128:288]
    return pixels


def as_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=8, deadline=None)
@given(height=st.integers(5, 12), width=st.integers(5, 12), count=st.integers(1, 24), seed=st.integers(0, 99))
def test_every_degradation_keeps_sizes_and_repeats_itself(
    task: str, height: int, width: int, count: int, seed: int
) -> None:
    clean = crops(count, 4 * height, 4 * width, seed)
    made = TASKS[task].degrade(clean, Draw((seed,)))
    again = TASKS[task].degrade(clean, Draw((seed,)))
    for part, same in zip(made, again, strict=True):
        assert part.shape == clean.shape
        assert part.dtype == torch.float32
        assert part.isfinite().all()
        assert torch.equal(part, same)


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"sr", "demosaic", "defocus"}))  # those leave nothing to chance
def test_another_seed_degrades_otherwise(task: str) -> None:
    first, second = (TASKS[task].degrade(crops(8), Draw((seed,)))[0] for seed in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("sampling", "pillows", "least"), [("444", 0, 48.0), ("422", 1, 45.0), ("420", 2, 45.0)])
@pytest.mark.parametrize("quality", [60, 90])
def test_the_batched_jpeg_is_libjpegs(
    photograph: np.ndarray, sampling: Sampling, pillows: int, least: float, quality: int
) -> None:
    stream = io.BytesIO()
    Image.fromarray(photograph).save(stream, "JPEG", quality=quality, subsampling=pillows)
    real = np.asarray(Image.open(stream)).astype(float)
    ours = 255 * jpeg(as_tensor(photograph), torch.full((1, 1, 1, 1), float(quality)), sampling)[0].permute(1, 2, 0)
    apart = 10 * np.log10(255**2 / np.square(ours.numpy() - real).mean())
    lost = 10 * np.log10(255**2 / np.square(photograph - real).mean())
    assert apart > least
    assert apart > lost + 6  # far nearer to it than the picture it was made from


def test_each_picture_of_a_batch_has_its_own_quality(photograph: np.ndarray) -> None:
    image = as_tensor(photograph)
    quality = torch.tensor([60.0, 95.0]).view(2, 1, 1, 1)
    both = jpeg(image.expand(2, -1, -1, -1), quality, "420")
    for index in range(2):
        assert torch.equal(both[index : index + 1], jpeg(image, quality[index : index + 1], "420"))


@pytest.mark.parametrize("siting", ["center", "left"])
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 99))
def test_chroma_is_brought_back_as_the_pixel_code_of_streams_does(
    siting: Siting, rows: int, columns: int, seed: int
) -> None:
    plane = torch.rand(1, 1, rows, columns, generator=torch.Generator().manual_seed(seed))
    wide = np.empty((rows, 2 * columns), np.float32)
    double_columns(plane[0, 0].numpy(), wide, siting != "center")
    np.testing.assert_allclose(double(plane, -1, siting)[0, 0], wide, atol=1e-6)
    np.testing.assert_allclose(double(plane.mT, -2, siting)[0, 0].T, wide, atol=1e-6)


def test_bicubic_doubling_keeps_a_smooth_wave() -> None:
    wave = torch.sin(torch.arange(64) / 5).view(1, 1, 1, 64)
    for siting, shift in (("center", 0.25), ("left", 0.0)):
        places = torch.arange(128) / 2 - shift
        wide = double(wave, -1, siting, "bicubic")[0, 0, 0]  # type: ignore[arg-type]
        torch.testing.assert_close(wide[8:-8], torch.sin(places / 5)[8:-8], atol=0.01, rtol=0)


@pytest.mark.parametrize("siting", ["center", "left"])
def test_halving_keeps_a_ramp_where_its_samples_are_sited(siting: Siting) -> None:
    ramp = torch.arange(32.0).view(1, 1, 1, 32)
    expected = torch.arange(16) * 2 + (0.5 if siting == "center" else 0.0)
    torch.testing.assert_close(halve(ramp, -1, siting)[0, 0, 0][1:], expected[1:])


def test_subsampling_leaves_luma_alone_and_colours_come_back() -> None:
    rgb = crops(2)
    torch.testing.assert_close(to_rgb(to_ycc(rgb)), rgb, atol=1e-6, rtol=0)
    made = to_ycc(to_rgb(subsample(to_ycc(rgb), True, "center")))
    torch.testing.assert_close(made[:, 0], to_ycc(rgb)[:, 0], atol=1e-6, rtol=0)
    assert (made[:, 1:] - to_ycc(rgb)[:, 1:]).abs().max() > 0.1


def test_a_gray_picture_has_gray_noise_and_a_gray_truth() -> None:
    degraded, truth = grayscale(crops(4), Draw((0,)))
    for part in (degraded, truth):
        assert (part - part[:, :1]).abs().max() < 1e-6
    assert not torch.allclose(degraded, truth)


def test_untouched_pictures_are_their_own_truth() -> None:
    degraded, truth = untouched(crops(16), Draw((0,)))
    assert torch.equal(degraded, truth)


def test_every_family_gets_about_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {family.__name__: 0 for family in FAMILIES}

    def counting(family: Family) -> Family:
        def count(clean: Tensor, draw: Draw) -> Pair:
            counts[family.__name__] += len(clean)
            return clean, clean

        return count

    monkeypatch.setitem(NOISE, "FAMILIES", {counting(family): share for family, share in FAMILIES.items()})
    noise(torch.zeros(20_000, 3, 1, 1), Draw((0,)))
    assert sum(FAMILIES.values()) == pytest.approx(1)
    for family, share in FAMILIES.items():
        assert counts[family.__name__] / 20_000 == pytest.approx(share, abs=0.015)


def test_correlated_noise_has_the_level_it_was_drawn_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOISE, "_levels", lambda count, draw: torch.full((count, 1, 1, 1), 20.0))
    clean = torch.full((12, 3, 96, 96), 0.5)
    difference = correlated(clean, Draw((0,)))[0] - clean
    assert 255 * float(difference.std()) == pytest.approx(20, rel=0.03)
    neighbours = (difference[..., 1:] * difference[..., :-1]).mean() / difference.square().mean()
    assert neighbours > 0.3


def test_blur_averages_light_not_codes() -> None:
    """A fine chequerboard of black and white blurs to half the light, which is code 188, not 128."""
    board = 0.96 * ((torch.arange(96)[:, None] + torch.arange(96)) % 2).float().expand(24, 3, 96, 96)
    blurred = blur.motion_blur(board, Draw((0,)))[0]
    light = 0.5 * ((0.96 + 0.055) / 1.055) ** 2.4
    expected = 1.055 * light ** (1 / 2.4) - 0.055
    assert float(blurred.mean((1, 2, 3)).median()) == pytest.approx(expected, abs=0.02)


def test_a_path_is_centred_and_as_long_as_it_is_said_to_be() -> None:
    path = blur._path(200, Draw((1,)))
    assert path.shape == (200, blur.MOMENTS, 2)
    assert path.mean(1).abs().max() < 1e-6
    walked = path.diff(dim=1).norm(dim=-1).sum(1)
    assert walked.max() <= 1
    assert walked.median() > 0.85


def test_some_pictures_stay_sharp() -> None:
    smooth = torch.from_numpy(zoom(np.random.default_rng(0).random((40, 3, 6, 6)), (1, 1, 8, 8), order=1)).float()
    degraded, truth = blur.motion_blur(smooth, Draw((0,)))
    apart = (degraded - truth).square().mean((1, 2, 3)).sqrt()
    assert 1 <= int((apart < 3 / 255).sum()) <= 15


def test_a_camera_gives_even_colours_back() -> None:
    """Taken back to the sensor and developed again, a plain colour is what it was: nothing but noise is added."""
    colour = torch.tensor([0.5, 0.3, 0.4]).view(1, 3, 1, 1).expand(1, 3, 12, 14)
    gains = torch.tensor([2.1, 1.0, 1.7]).view(1, 3, 1, 1)
    matrix = torch.tensor(COLOUR_MATRIX)[None]
    sensor = _mixed(torch.linalg.inv(matrix), linear(colour)) / gains
    for phase in ((0, 0), (0, 1), (1, 0), (1, 1)):
        torch.testing.assert_close(_developed(sensor, phase, gains, matrix), colour.contiguous(), atol=1e-5, rtol=0)


def test_the_tone_curve_is_srgb() -> None:
    values = torch.tensor([0.0, 0.02, 0.04045, 0.5, 1.0])
    expected = torch.tensor([0, 0.02 / 12.92, 0.04045 / 12.92, 0.21404114, 1])
    torch.testing.assert_close(linear(values), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(tone(linear(values)), values, rtol=0, atol=1e-6)


def test_camera_noise_is_unbiased_and_correlated_between_neighbours() -> None:
    clean = torch.full((12, 3, 96, 96), 0.5)
    difference = camera_noise(clean, Draw((0,)))[0] - clean
    assert difference.mean((1, 2, 3)).abs().max() < 0.01
    red = difference[:, 0]
    left, right = (part - part.mean((1, 2), keepdim=True) for part in (red[..., :-1], red[..., 1:]))
    correlation = (left * right).sum((1, 2)) / (left.square().sum((1, 2)) * right.square().sum((1, 2))).sqrt()
    # Red is measured at one pixel in four and interpolated between: white noise would give 0.
    assert correlation.median() > 0.25


def test_a_cameras_processing_leaves_less_of_noise_in_colour_than_in_luma() -> None:
    noise = torch.randn(64, 3, 48, 48, generator=torch.Generator().manual_seed(0)) / 50
    before, after = to_ycc(noise), to_ycc(_processed(noise, Draw((0,))))
    kept = after.square().mean((2, 3)) / before.square().mean((2, 3))
    assert kept[:, 1:].mean() < 0.5 < kept[:, 0].median()
    assert kept[:, 1:].max() < 1.01, "colour is never sharpened"
    assert kept[:, 0].max() > 1.1, "luma is, at times"


def test_a_cameras_processing_leaves_blotches_and_takes_what_is_fine() -> None:
    place = torch.arange(64.0)
    wave = {step: torch.cos(2 * torch.pi * place / step).expand(1, 3, 64, 64) / 50 for step in (2, 64)}
    kept = {
        step: to_ycc(_processed(one.repeat(48, 1, 1, 1), Draw((0,))))[:, 0].std((1, 2)) for step, one in wave.items()
    }
    shares = {step: kept[step] / to_ycc(wave[step])[0, 0].std() for step in wave}
    torch.testing.assert_close(shares[64], torch.ones(48), atol=0.02, rtol=0)
    assert shares[2].min() < 0.2


@given(st.integers(1, 3), st.integers(9, 14), st.integers(9, 14))
def test_separable_filters_are_those_of_each_plane(count: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height * width)
    image = torch.randn(count, 3, height, width, generator=generator)
    across, down = torch.randn(count, 3, 9, generator=generator), torch.randn(count, 1, 9, generator=generator)
    out = separable(image, across, down)
    for i in range(count):
        for c in range(3):
            kernel = down[i, 0, :, None] * across[i, c, None, :]
            expected = torch.nn.functional.conv2d(image[i, c][None, None], kernel[None, None])[0, 0]
            torch.testing.assert_close(out[i, c], expected, atol=1e-4, rtol=1e-4)


def test_rain_only_brightens() -> None:
    clean = torch.full((12, 3, 64, 64), 100 / 255)
    degraded, _ = rain(clean, Draw((0,)))
    assert (degraded >= clean - 1e-6).all()
    assert (degraded.amax((1, 2, 3)) > 110 / 255).sum() >= 8
