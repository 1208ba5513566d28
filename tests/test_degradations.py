"""What the tasks undo, checked against what physics or arithmetic says about it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoir.degradations import COLOUR_MATRIX, TASKS, _develop, _linear, _tone, camera_noise, rain, shake_kernel


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=10, deadline=None)
@given(height=st.integers(9, 50), width=st.integers(9, 50), seed=st.integers(0, 99))
def test_every_degradation_keeps_size_and_type_and_repeats_itself(
    task: str, height: int, width: int, seed: int
) -> None:
    clean = np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)
    degrade = TASKS[task].degrade
    degraded = degrade(clean, np.random.default_rng(seed))
    assert degraded.shape == clean.shape
    assert degraded.dtype == np.float32
    np.testing.assert_array_equal(degraded, degrade(clean, np.random.default_rng(seed)))


@pytest.mark.parametrize("task", TASKS)
def test_another_seed_degrades_otherwise(task: str) -> None:
    clean = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    first, second = (TASKS[task].degrade(clean, np.random.default_rng(seed)) for seed in range(2))
    assert not np.array_equal(first, second)


@given(length=st.floats(0.1, 40), seed=st.integers(0, 999))
def test_a_shake_kernel_is_a_centred_average_no_wider_than_its_path(length: float, seed: int) -> None:
    kernel = shake_kernel(length, np.random.default_rng(seed))
    side = kernel.shape[0]
    assert kernel.shape == (side, side)
    assert side % 2 == 1
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1)
    y, x = np.mgrid[:side, :side] - side // 2
    assert abs((kernel * y).sum()) < 1e-9  # bilinear splatting keeps first moments
    assert abs((kernel * x).sum()) < 1e-9
    assert side // 2 <= length + 2


def test_blur_averages_light_not_codes() -> None:
    """A fine chequerboard of black and white blurs to half the light, which is code 188, not 128."""
    board = ((np.indices((96, 96)).sum(0) % 2)[..., None] * np.float32(0.96)).repeat(3, -1)  # below saturation
    shake = TASKS["deblur"].degrade
    means = [shake(board, np.random.default_rng(seed)).mean() for seed in range(8)]
    light = 0.5 * ((0.96 + 0.055) / 1.055) ** 2.4
    expected = 1.055 * light ** (1 / 2.4) - 0.055
    assert max(means) == pytest.approx(expected, abs=0.02)


def test_a_camera_gives_even_colours_back() -> None:
    """Taken back to the sensor and developed again, a plain colour is what it was: nothing but noise is added."""
    colour = np.full((12, 14, 3), [0.5, 0.3, 0.4], np.float32)
    gains = np.array([2.1, 1.0, 1.7])
    sensor = _linear(colour) @ np.linalg.inv(COLOUR_MATRIX).T / gains
    for phase in ((0, 0), (0, 1), (1, 0), (1, 1)):
        np.testing.assert_allclose(_develop(sensor, phase, gains, COLOUR_MATRIX), colour, atol=1e-6)


def test_the_tone_curve_is_srgb() -> None:
    values = np.array([0.0, 0.02, 0.04045, 0.5, 1.0])
    np.testing.assert_allclose(_linear(values), [0, 0.02 / 12.92, 0.04045 / 12.92, 0.21404114, 1], rtol=1e-6)
    np.testing.assert_allclose(_tone(_linear(values)), values, atol=1e-6)


def test_camera_noise_is_unbiased_and_correlated_between_neighbours() -> None:
    clean = np.full((128, 128, 3), 0.5, np.float32)
    correlations = []
    for seed in range(6):
        noise = camera_noise(clean, np.random.default_rng(seed)) - clean
        assert abs(noise.mean()) < 0.01
        left, right = noise[:, :-1, 0].ravel(), noise[:, 1:, 0].ravel()
        correlations.append(np.corrcoef(left, right)[0, 1])
    # Red is measured at one pixel in four and interpolated between: white noise would give 0.
    assert np.median(correlations) > 0.25


def test_rain_only_brightens() -> None:
    clean = np.full((64, 64, 3), 100 / 255, np.float32)
    for seed in range(5):
        assert (rain(clean, np.random.default_rng(seed)) >= clean - 1e-6).all()
