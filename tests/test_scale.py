"""Scale, channels, phase: tiles of any network against the whole array, restored by the simplest of loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from builders import FunctionSession, make_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoir.runtime import Restorer
from echoir.runtime.descriptor import CHANNELS, Descriptor, Planes
from echoir.runtime.errors import ArtifactError, ImageError
from echoir.runtime.tiling import tile_axis

Array = np.ndarray[Any, np.dtype[Any]]
PICTURES: dict[Planes, tuple[int, ...]] = {"gray": (1, 3), "RGB": (1, 3), "RGGB": (1, 4), "RGB pair": (6,)}


@dataclass(frozen=True)
class Pointwise:
    """A network whose pixels do not know their neighbours, but their place in a grid of the phase.

    Pixel (y, x) of the input becomes ``scale`` x ``scale`` pixels, each another mixture of its channels; a pattern of
    the phase's period is added. So tiles that start anywhere but at multiples of the phase give another picture.
    """

    descriptor: Descriptor

    def mixture(self) -> Array:
        scale, given, made = self.descriptor.scale, CHANNELS[self.descriptor.input], CHANNELS[self.descriptor.output]
        shape = (made, scale, scale, given)
        return np.random.default_rng(1).integers(1, 9, shape).astype(np.float32) / np.float32(16 * given)

    def pattern(self) -> Array:
        return np.random.default_rng(2).integers(0, 9, self.descriptor.phase).astype(np.float32) / np.float32(32)

    def __call__(self, tiles: Array) -> Array:
        """[N, C, h, w] -> [N, C', scale * h, scale * w]."""
        count, _, height, width = tiles.shape
        mixture, pattern = self.mixture(), self.pattern()
        made, scale = mixture.shape[:2]
        place = pattern[np.arange(height)[:, None] % len(pattern), np.arange(width) % pattern.shape[1]]
        output = np.empty((count, made, scale * height, scale * width), np.float32)
        for dy in range(scale):
            for dx in range(scale):
                output[:, :, dy::scale, dx::scale] = np.einsum("mc,nchw->nmhw", mixture[:, dy, dx], tiles) + place
        return output


def whole(network: Pointwise, image: Array) -> Array:
    """The whole picture through the network, float64 where 1 is white; [H, W] or [H, W, C] as it comes out."""
    peak = 1 if image.dtype == np.float32 else np.iinfo(image.dtype).max
    planes = (image / np.float64(peak)).astype(np.float32)
    if network.descriptor.input == "RGGB" and image.ndim == 2:
        planes = np.stack([planes[0::2, 0::2], planes[0::2, 1::2], planes[1::2, 0::2], planes[1::2, 1::2]], -1)
    elif network.descriptor.input == "RGB" and image.ndim == 2:
        planes = np.stack([planes] * 3, -1)
    planes = planes[..., None] if planes.ndim == 2 else planes
    if network.descriptor.input == "gray" and planes.shape[2] == 3:
        output = np.stack([network(planes[None, None, :, :, c])[0, 0] for c in range(3)], -1)
    else:
        output = network(planes.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)
    if image.ndim == 2 and network.descriptor.input == "RGB":
        output = output.mean(axis=2)
    return output[..., 0] if image.ndim == 2 and output.shape[-1] == 1 and output.ndim == 3 else output


@st.composite
def networks(draw: st.DrawFn) -> tuple[Descriptor, tuple[int, int], int]:
    """A network, a tile that it takes, and an overlap."""
    phase = draw(st.tuples(st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 4, 5])))
    multiple = draw(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 3, 4])))
    tile = tuple(
        one * -(-draw(st.integers(one_phase, 14)) // one) for one, one_phase in zip(multiple, phase, strict=True)
    )
    most = min(side - one for side, one in zip(tile, phase, strict=True))
    least = draw(st.integers(0, most))
    descriptor = Descriptor(
        "Pointwise",
        "denoise",
        1,
        scale=draw(st.integers(1, 4)),
        input=draw(st.sampled_from(list(PICTURES))),
        output=draw(st.sampled_from(["gray", "RGB"])),
        multiple=multiple,
        phase=phase,
        overlap=least,
    )
    return descriptor, tile, draw(st.integers(least, most))  # type: ignore[return-value]


def draw_picture(data: st.DataObject, descriptor: Descriptor, dtype: Any) -> Array:
    """A picture that the network takes, of any size."""
    channels = data.draw(st.sampled_from(PICTURES[descriptor.input]))
    if (descriptor.input, descriptor.output) == ("gray", "RGB"):
        channels = 1
    height, width = data.draw(st.integers(1, 33)), data.draw(st.integers(1, 33))
    if descriptor.input == "RGGB" and channels == 1:
        height, width = 2 * height, 2 * width
    shape = (height, width) if channels == 1 else (height, width, channels)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    if dtype == np.float32:
        return rng.random(shape, np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@settings(deadline=None, max_examples=150)
@given(networks(), st.integers(1, 5), st.sampled_from([np.uint8, np.uint16, np.float32]), st.data())
def test_tiles_make_the_picture_that_the_whole_array_makes(
    drawn: tuple[Descriptor, tuple[int, int], int], batch: int, dtype: Any, data: st.DataObject
) -> None:
    descriptor, tile, overlap = drawn
    network, image = Pointwise(descriptor), draw_picture(data, descriptor, dtype)
    manifest = make_manifest(network=descriptor, tile=tile, overlap=overlap)
    session = FunctionSession(network)
    restored = Restorer(session, manifest, batch=batch)(image)
    expected = whole(network, image)
    assert restored.dtype == dtype
    assert restored.shape == expected.shape
    assert max(session.batches) <= batch
    if dtype == np.float32:
        np.testing.assert_allclose(restored, expected, rtol=0, atol=2e-6)
        return
    peak = np.iinfo(dtype).max
    np.testing.assert_allclose(restored, np.clip(expected * peak, 0, peak), rtol=0, atol=0.5 + 4e-7 * peak)


@settings(deadline=None, max_examples=60)
@given(networks(), st.data())
def test_where_tiles_differ_they_are_averaged_with_their_weights(
    drawn: tuple[Descriptor, tuple[int, int], int], data: st.DataObject
) -> None:
    """A session whose result depends on the place in the tile alone, against a sum over tiles in double precision."""
    descriptor, tile, overlap = drawn
    image = draw_picture(data, descriptor, np.float32)
    made, scale = CHANNELS[descriptor.output], descriptor.scale
    ramp = np.random.default_rng(3).random((made, scale * tile[0], scale * tile[1]), np.float32)
    session = FunctionSession(lambda tiles: np.repeat(ramp[None], len(tiles), axis=0))
    restored = Restorer(session, make_manifest(network=descriptor, tile=tile, overlap=overlap))(image)

    mosaic = 2 if descriptor.input == "RGGB" and image.ndim == 2 else 1
    size = image.shape[0] // mosaic, image.shape[1] // mosaic
    down, across = (
        tile_axis(one, side, overlap, phase, scale)
        for one, side, phase in zip(size, tile, descriptor.phase, strict=True)
    )
    expected = np.zeros((scale * size[0], scale * size[1], made))
    for y, vertical in zip(down.starts, down.weights, strict=True):
        for x, horizontal in zip(across.starts, across.weights, strict=True):
            weights = np.outer(vertical.astype(float), horizontal)
            part = ramp[:, : len(vertical), : len(horizontal)].transpose(1, 2, 0)
            expected[scale * y :, scale * x :][: len(vertical), : len(horizontal)] += weights[..., None] * part
    if restored.ndim == 2:
        expected = expected.mean(axis=2)
    np.testing.assert_allclose(restored, np.broadcast_to(expected, restored.shape), rtol=0, atol=2e-6)


def enlarger(scale: int, **fields: Any) -> Restorer:
    """Repeats every pixel."""
    descriptor = Descriptor("Repeat", "sr", 1, scale=scale, **fields)
    session = FunctionSession(lambda tiles: tiles.repeat(scale, axis=2).repeat(scale, axis=3))
    return Restorer(session, make_manifest(network=descriptor, tile=(16, 16), overlap=4))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_alpha_is_enlarged_with_the_picture(scale: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8)
    image[..., 3] = np.linspace(0, 255, 30).astype(np.uint8)
    restored = enlarger(scale)(image)
    np.testing.assert_array_equal(restored[..., :3], image[..., :3].repeat(scale, 0).repeat(scale, 1))
    centres = (np.arange(30 * scale) + 0.5) / scale - 0.5  # of the pixels, in those of the image
    expected = np.interp(centres, np.arange(30), image[0, :, 3])
    assert np.abs(restored[..., 3] - expected).max() <= 0.5 + 1e-4
    opaque = np.full((5, 4, 4), 255, np.uint8)
    assert (enlarger(scale)(opaque)[..., 3] == 255).all()


def test_several_pictures_orders_of_colour_and_given_arrays() -> None:
    images = np.random.default_rng(0).random((3, 18, 25, 3))
    expected = images.repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(enlarger(2)(images), expected, atol=1e-6)
    out = np.empty_like(expected)
    assert enlarger(2)(images, colour="BGR", out=out) is out
    np.testing.assert_allclose(out, expected, atol=1e-6)
    with pytest.raises(ImageError, match=r"out must be float64 \(3, 36, 50, 3\) for this image, got float64 \(3, 18"):
        enlarger(2)(images, out=np.empty_like(images))


def test_progress_counts_tiles_once_however_often_the_network_runs() -> None:
    told: list[tuple[int, int]] = []
    restorer = enlarger(2, input="gray", output="gray")
    restorer(np.zeros((16, 40, 3), np.uint8), on_tiles=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)
    assert sorted(told) == told


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"input": "gray", "output": "RGB"}, (8, 8, 3), r"takes gray pictures.*this picture is of 3 channels"),
        ({"input": "RGGB"}, (8, 8, 3), r"takes the mosaic of a sensor.*this picture is of 3 channels"),
        ({"input": "RGGB"}, (8, 7), "a mosaic repeats every 2 pixels, and this one is 7 x 8"),
        ({"input": "RGB pair"}, (8, 8, 3), "takes two pictures at once"),
        ({"input": "RGB pair"}, (8, 8), "takes two pictures at once.*this picture is gray"),
    ],
)
def test_pictures_that_a_network_does_not_take_are_refused(
    fields: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        enlarger(1, **fields)(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(("overlap", "allowed"), [(3, False), (4, True), (8, True), (9, False)])
def test_an_overlap_is_held_to_what_the_network_needs(overlap: int, allowed: bool) -> None:
    network = Descriptor("Windows", "denoise", 1, phase=(8, 8), overlap=4)
    manifest = make_manifest(network=network, tile=(16, 16))
    session = FunctionSession(lambda tiles: tiles)
    if allowed:
        assert Restorer(session, manifest, overlap=overlap).overlap == overlap
    else:
        with pytest.raises(ArtifactError, match=r"overlap: found .*, needed 4 to 8"):
            Restorer(session, manifest, overlap=overlap)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_frames_of_an_enlarging_network_go_out_enlarged_in_buffers_that_are_used_again(scale: int) -> None:
    images = [np.random.default_rng(i).integers(0, 255, (20, 30, 3), np.uint8) for i in range(20)]
    restored, buffers = [], set()
    for frame in enlarger(scale).stream(iter(images)):
        buffers.add(frame.image.ctypes.data)
        restored.append(frame.image.copy())
    for image, made in zip(images, restored, strict=True):
        np.testing.assert_array_equal(made, image.repeat(scale, 0).repeat(scale, 1))
    assert len(buffers) < 15


def test_frames_cannot_pass_where_the_network_changes_their_size() -> None:
    with pytest.raises(ValueError, match="no frame can pass unrestored"):
        enlarger(2).stream(iter([]), deadline=1.0)
    assert list(enlarger(2).stream(iter([]), deadline=1.0, policy="drop")) == []
