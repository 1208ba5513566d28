"""The forms in which pictures are measured: what their names say, by an independent decoder where one is."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from echoir.forms import FORMS, Pixels, _planes, _rounded
from echoir.metrics import psnr

SIGMA = 25.0


@pytest.fixture(scope="module")
def photograph() -> Pixels:
    pixels: Pixels = data.chelsea()[:121, 100:241].astype(np.float32) / np.float32(255)
    return pixels


@pytest.mark.parametrize("form", FORMS)
def test_every_form_repeats_itself_and_keeps_the_size(photograph: Pixels, form: str) -> None:
    made, again = (FORMS[form](photograph, SIGMA, np.random.default_rng(3)) for _ in range(2))
    for part, same in zip(made, again, strict=True):
        assert part.shape == photograph.shape
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, same)


@pytest.mark.parametrize("form", ["rgb", "gray", "clipped", "correlated"])
def test_noise_has_its_level(form: str) -> None:
    middle = np.full((200, 200, 3), 0.5, np.float32)
    degraded, truth = FORMS[form](middle, SIGMA, np.random.default_rng(0))
    assert 255 * float((degraded - truth).std()) == pytest.approx(SIGMA, rel=0.02)


@pytest.mark.parametrize("form", ["clipped", "jpeg444", "jpeg422", "jpeg420", "correlated"])
def test_files_hold_8_bit_codes(photograph: Pixels, form: str) -> None:
    degraded, _ = FORMS[form](photograph, SIGMA, np.random.default_rng(0))
    np.testing.assert_allclose(degraded, _rounded(degraded), atol=1e-6)


def test_gray_pictures_are_gray(photograph: Pixels) -> None:
    for part in FORMS["gray"](photograph, SIGMA, np.random.default_rng(0)):
        np.testing.assert_array_equal(part, part[..., :1].repeat(3, -1))


def test_halved_chroma_loses_most_of_its_noise(photograph: Pixels) -> None:
    """Four samples averaged: half the deviation, so the file is nearer to the truth than the noise was."""
    distances = {
        form: psnr(*FORMS[form](photograph, SIGMA, np.random.default_rng(0)))
        for form in ("jpeg444", "jpeg422", "jpeg420")
    }
    assert distances["jpeg444"] + 0.5 < distances["jpeg422"] < distances["jpeg420"] - 0.5


def test_clean_is_clean(photograph: Pixels) -> None:
    degraded, truth = FORMS["clean"](photograph, SIGMA, np.random.default_rng(0))
    np.testing.assert_array_equal(degraded, photograph)
    np.testing.assert_array_equal(truth, photograph)


def test_the_planes_are_those_of_swscale(photograph: Pixels) -> None:
    av = pytest.importorskip("av")
    pixels = np.rint(photograph[:120, :140] * 255).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    theirs = frame.reformat(format="yuv420p", dst_colorspace="ITU601", interpolation="AREA").to_ndarray()
    luma, blue, red = _planes(pixels)
    assert np.abs(theirs[:120].astype(int) - luma).max() <= 2
    chroma = theirs[120:].reshape(2, 60, 70)
    for ours, plane in zip((blue, red), chroma, strict=True):
        assert np.abs(plane.astype(int) - ours).mean() < 1.5
