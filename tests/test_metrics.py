"""Metrics against closed forms and against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

from echoir.metrics import luma, psnr, ssim, to_8bit


@given(offset=st.floats(1e-3, 1.0), peak=st.sampled_from([1.0, 255.0, 65535.0]))
def test_psnr_of_a_constant_offset_has_a_closed_form(offset: float, peak: float) -> None:
    image = np.zeros((4, 5, 3))
    assert psnr(image, image + offset * peak, peak) == pytest.approx(-20 * math.log10(offset), abs=1e-9)


def test_psnr_agrees_with_scikit_image_and_does_not_wrap_8_bit_codes() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(2))
    assert psnr(a, b, 255) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255))


def test_equal_images_are_infinitely_close_and_unequal_shapes_are_refused() -> None:
    assert psnr(np.ones((2, 2)), np.ones((2, 2))) == math.inf
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(np.ones((2, 2)), np.ones((2, 3)))


def test_ssim_is_one_for_equal_images_and_follows_its_formula_for_constants() -> None:
    image = np.random.default_rng(0).random((16, 16, 3))
    assert ssim(image, image) == pytest.approx(1)
    # Without variance only the luminance term is left: (2ab + c1) / (a^2 + b^2 + c1), c1 = (0.01 L)^2.
    a, b, c1 = 0.2, 0.6, 1e-4
    constant = ssim(np.full((16, 16), a), np.full((16, 16), b))
    assert constant == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


def test_luma_is_the_y_of_rgb2ycbcr() -> None:
    image = np.random.default_rng(0).random((5, 7, 3))
    np.testing.assert_allclose(luma(image) * 255, rgb2ycbcr(image)[..., 0], atol=1e-9)


def test_to_8bit_clips_and_rounds() -> None:
    values = np.array([-0.1, 0.0, 0.49 / 255, 0.51 / 255, 1.0, 1.7])
    assert to_8bit(values).tolist() == [0, 0, 0, 1, 255, 255]
