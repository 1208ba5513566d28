"""Images as callers have them: what is taken as it is, and what the refusals say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_artifact
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echoir.runtime import Frame, Restorer
from echoir.runtime.artifact import Artifact
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ClosedSessionError, ImageError
from echoir.runtime.inputs import parts

Array = np.ndarray[Any, np.dtype[Any]]
NETWORK = Descriptor("none", "denoise", 1)
COLOUR = np.array([[[200, 100, 40]]], np.uint8)


@pytest.fixture(scope="module")
def halving(tmp_path_factory: pytest.TempPathFactory) -> Restorer:
    """Halves every pixel: alpha must not be halved."""
    return Restorer.open(make_artifact(tmp_path_factory.mktemp("half"), gain=0.5).model_path)


@pytest.fixture(scope="module")
def red_only(tmp_path_factory: pytest.TempPathFactory) -> Restorer:
    """Darkens the first channel alone, so the order of colours shows."""

    class Session:
        def run(self, tiles: Array) -> Array:
            return tiles * np.array([0.5, 1, 1], np.float32)[:, None, None]

        def close(self) -> None: ...

        def __enter__(self) -> Session:
            return self

        def __exit__(self, *exception: object) -> None: ...

    return Restorer(Session(), Artifact.open(make_artifact(tmp_path_factory.mktemp("red")).model_path).manifest)


def test_bgr_gets_what_rgb_gets(red_only: Restorer) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    np.testing.assert_array_equal(red_only(bgr, colour="BGR")[:, :, ::-1], red_only(rgb))
    np.testing.assert_array_equal(red_only(bgr, colour="BGR")[..., :2], bgr[..., :2])


@pytest.mark.parametrize("colour", ["RGB", "BGR"])
def test_alpha_comes_back_as_it_is(red_only: Restorer, colour: Any) -> None:
    image = np.random.default_rng(1).integers(0, 255, (40, 50, 4), np.uint8)
    restored = red_only(image, colour=colour)
    np.testing.assert_array_equal(restored[..., 3], image[..., 3])
    np.testing.assert_array_equal(restored[..., :3], red_only(image[..., :3], colour=colour))


def test_one_channel_keeps_its_axis(halving: Restorer) -> None:
    gray = np.random.default_rng(2).integers(0, 255, (70, 90), np.uint8)
    np.testing.assert_array_equal(halving(gray[..., None]), halving(gray)[..., None])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_one_size_are_restored_together(halving: Restorer, channels: int) -> None:
    images = np.random.default_rng(3).integers(0, 255, (3, 70, 90, channels), np.uint8)
    told: list[tuple[int, int]] = []
    restored = halving(images, on_tiles=lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(restored, np.stack([halving(image) for image in images]))
    tiles = 3 * halving.tiles(70, 90)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (tiles, tiles)


def test_float64_is_computed_as_float32_and_comes_back_as_float64(halving: Restorer) -> None:
    image = np.random.default_rng(4).random((40, 30, 3))
    restored = halving(image)
    assert restored.dtype == np.float64
    np.testing.assert_array_equal(restored, halving(image.astype(np.float32)).astype(np.float64))


def test_out_is_filled_whatever_its_strides(halving: Restorer) -> None:
    image = np.random.default_rng(5).integers(0, 255, (40, 30, 4), np.uint8)
    out = np.zeros((40, 60, 4), np.uint8)[:, ::2]
    assert halving(image, out=out) is out
    np.testing.assert_array_equal(out, halving(image))
    with pytest.raises(ImageError, match="shares memory"):
        halving(image[:20], out=image[10:30])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_up_to_255_are_refused(halving: Restorer, kind: Any) -> None:
    with pytest.raises(ImageError, match=r"goes up to 200; divide it by its white"):
        halving((COLOUR * np.ones((20, 20, 1))).astype(kind))


@given(st.floats(0, 4, width=32))
def test_floats_near_1_are_taken(brightest: float) -> None:
    image = np.full((2, 2), brightest, np.float32)
    assert len(parts(image, None, "RGB", NETWORK)[1]) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "None was given; cv2.imread gives None for a file that it cannot read"),
        ("photo.png", r"got the path 'photo.png'; read it first \(echoir.runtime.open_picture\)"),
        (Path("a/b.png"), "got the path 'a/b.png'"),
        ([np.zeros((8, 8, 3), np.uint8)] * 2, r"a list of 2; .* numpy.stack\(images\)"),
        (Image.new("RGB", (8, 8)), r"got Image; numpy.asarray"),
        (np.zeros((8, 8, 3), bool), r"got bool; image.astype\('uint8'\) \* 255"),
        (np.zeros((8, 8, 3), np.float16), r"got float16; image.astype\('float32'\)"),
        (np.zeros((8, 8, 3), np.int64), r"got int64; image.astype\('uint8'\) where"),
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one pixel"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_give(halving: Restorer, given: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        halving(given)
    with pytest.raises(ImageError, match=message):
        list(halving.stream([given]))


def test_another_order_of_colours_is_refused(halving: Restorer) -> None:
    with pytest.raises(ImageError, match="colour is 'RGB' or 'BGR', got 'YUV'"):
        halving(COLOUR, colour="YUV")  # type: ignore[arg-type]


def test_a_stream_takes_images_with_their_times_in_either_order_of_colours(red_only: Restorer) -> None:
    image = np.repeat(np.repeat(COLOUR, 20, 0), 30, 1)
    given = [image, (image, 1.5), (image, np.int64(2)), Frame(image, 3.0, data="mine")]
    frames = [(f.image.copy(), f.time, f.data) for f in red_only.stream(given, colour="BGR")]
    assert [frame[1:] for frame in frames] == [(None, None), (1.5, None), (2, None), (3.0, "mine")]
    for restored, *_ in frames:
        np.testing.assert_array_equal(restored, red_only(image, colour="BGR"))


def test_a_closed_session_says_so(tmp_path: Path) -> None:
    with Restorer.open(make_artifact(tmp_path).model_path) as restorer:
        pass
    with pytest.raises(ClosedSessionError, match="the session is closed; open the artifact again"):
        restorer(np.zeros((8, 8, 3), np.uint8))
