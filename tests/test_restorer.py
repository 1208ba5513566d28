"""From image to tiles and back: exact, bounded in memory, and never a broken picture."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import FunctionSession, make_artifact, make_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoir.runtime import Restorer
from echoir.runtime.artifact import Artifact
from echoir.runtime.errors import ArtifactError, ImageError, RejectedOutputError
from echoir.runtime.manifest import UINT8_NHWC, Precision, TensorSpec
from echoir.runtime.tiling import tile_starts, tile_weights

Array = np.ndarray[Any, np.dtype[Any]]


def pixels(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    if dtype == np.float32:
        return rng.random(shape, np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([np.uint8, np.uint16]),
    st.booleans(),
    st.integers(0, 15),
    st.integers(1, 5),
)
def test_an_identity_network_returns_the_input_bit_for_bit(
    height: int, width: int, dtype: Any, gray: bool, overlap: int, batch: int
) -> None:
    image = pixels((height, width) if gray else (height, width, 3), dtype, height * width)
    session = FunctionSession(lambda tiles: tiles.copy())
    restored = Restorer(session, make_manifest(tile=(16, 24)), overlap=overlap, batch=batch)(image)
    assert restored.dtype == dtype
    np.testing.assert_array_equal(restored, image)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (2, 1), (63, 64), (64, 64), (65, 64), (1, 300), (300, 1), (150, 201)]
)
@pytest.mark.parametrize("batch", [None, 3])
def test_an_identity_model_in_onnx_runtime_returns_the_input_bit_for_bit(
    tmp_path: Path, shape: tuple[int, int], batch: int | None
) -> None:
    with Restorer.open(make_artifact(tmp_path, batch=batch).model_path) as restorer:
        for dtype in (np.uint8, np.uint16):
            image = pixels((*shape, 3), dtype)
            np.testing.assert_array_equal(restorer(image), image)
    (tmp_path / "uint8").mkdir()
    with Restorer.open(make_artifact(tmp_path / "uint8", io="uint8", batch=batch).model_path) as restorer:
        image = pixels((*shape, 3), np.uint8)
        np.testing.assert_array_equal(restorer(image), image)


def test_every_code_survives_white_included(identity: Artifact) -> None:
    with Restorer.open(identity.model_path) as restorer:
        for dtype, side in ((np.uint8, 16), (np.uint16, 256)):
            image = np.arange(side * side, dtype=dtype).reshape(side, side)
            np.testing.assert_array_equal(restorer(image), image)


def test_float_pixels_are_neither_rounded_nor_clipped(tmp_path: Path) -> None:
    image = pixels((100, 90, 3), np.float32)
    with Restorer.open(make_artifact(tmp_path, gain=3.0, bias=-1.0).model_path) as restorer:
        restored = restorer(image)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, image * 3 - 1, rtol=0, atol=1e-6)
    assert restored.min() < -0.9
    assert restored.max() > 1.9


def test_integers_are_rounded_and_clipped(gain: Artifact, tmp_path: Path) -> None:
    image = pixels((70, 80, 3), np.uint8)
    with Restorer.open(gain.model_path) as restorer:
        np.testing.assert_allclose(restorer(image), image / 2, rtol=0, atol=0.5)
    with Restorer.open(make_artifact(tmp_path, gain=4.0, bias=-1.0).model_path) as restorer:
        np.testing.assert_array_equal(restorer(image), np.clip(image.astype(int) * 4 - 255, 0, 255))


def test_a_tile_sees_its_own_pixels_reflected_at_the_border() -> None:
    image = pixels((5, 7, 3), np.uint8)
    seen: list[Array] = []

    def keep(tiles: Array) -> Array:
        seen.append(tiles.copy())
        return tiles

    Restorer(FunctionSession(keep), make_manifest(tile=(16, 24)))(image)
    expected = np.pad(image, ((0, 11), (0, 17), (0, 0)), mode="reflect").transpose(2, 0, 1)[None] / np.float32(255)
    np.testing.assert_array_equal(seen, [expected])


@pytest.mark.parametrize(("height", "width", "overlap"), [(37, 61, 6), (16, 25, 0), (40, 24, 15), (50, 70, 13)])
def test_overlapping_tiles_are_averaged_with_their_weights(height: int, width: int, overlap: int) -> None:
    """Against a loop over pixels, in double precision, of a session whose result depends on the place in the tile."""
    image = pixels((height, width, 3), np.float32)
    ramp = np.linspace(0, 1, 16 * 24, dtype=np.float32).reshape(16, 24)
    restorer = Restorer(FunctionSession(lambda tiles: tiles + ramp), make_manifest(tile=(16, 24)), overlap=overlap)

    ys, xs = tile_starts(height, 16, overlap), tile_starts(width, 24, overlap)
    vertical, horizontal = tile_weights(height, 16, ys), tile_weights(width, 24, xs)
    expected = np.zeros((height, width, 3))
    for y0, wy in zip(ys, vertical, strict=True):
        for x0, wx in zip(xs, horizontal, strict=True):
            for y in range(16):
                for x in range(24):
                    expected[y0 + y, x0 + x] += float(wy[y]) * float(wx[x]) * (image[y0 + y, x0 + x] + ramp[y, x])
    np.testing.assert_allclose(restorer(image), expected, rtol=0, atol=2e-6)


def test_gray_goes_through_as_three_equal_channels_and_comes_back_as_their_mean() -> None:
    def tint(tiles: Array) -> Array:
        assert (tiles[:, :1] == tiles).all()
        return tiles * np.float32([1.0, 0.5, 0.0]).reshape(1, 3, 1, 1)

    image = pixels((20, 30), np.uint8)
    restored = Restorer(FunctionSession(tint), make_manifest(tile=(16, 24)))(image)
    np.testing.assert_allclose(restored, image / 2, rtol=0, atol=0.5)


def test_batches_never_exceed_what_is_asked_and_progress_counts_tiles() -> None:
    session = FunctionSession(lambda tiles: tiles)
    restorer = Restorer(session, make_manifest(tile=(16, 24), overlap=4), batch=2)
    calls: list[tuple[int, int]] = []
    restorer(pixels((40, 64, 3), np.uint8), on_tiles=lambda done, total: calls.append((done, total)))
    assert session.batches == [2, 1] * 3
    assert calls == [(done, 9) for done in (2, 3, 5, 6, 8, 9)]
    assert restorer.tiles(40, 64) == 9


def test_strips_come_from_top_to_bottom_and_rows_are_read_once_per_strip() -> None:
    image = pixels((100, 30, 3), np.uint8)
    asked: list[tuple[int, int]] = []

    def read_rows(y0: int, y1: int) -> Array:
        asked.append((y0, y1))
        return image[y0:y1]

    restorer = Restorer(FunctionSession(lambda tiles: tiles.copy()), make_manifest(tile=(16, 24), overlap=4))
    strips = list(restorer.strips(read_rows, 100, 30))
    np.testing.assert_array_equal(np.concatenate(strips), image)
    assert asked == [(start, start + 16) for start in tile_starts(100, 16, 4)]


def test_memory_is_bounded_by_a_strip_whatever_the_height() -> None:
    restorer = Restorer(FunctionSession(lambda tiles: tiles), make_manifest(tile=(64, 64)))
    noise = pixels((64, 512, 3), np.uint8)

    def peak(height: int) -> int:
        tracemalloc.start()
        rows = sum(len(strip) for strip in restorer.strips(lambda y0, y1: noise[: y1 - y0], height, 512))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows == height
        return used

    peak(256)
    assert peak(4096) < 1.1 * peak(256)


def test_one_restorer_serves_several_threads_without_mixing_images(identity: Artifact) -> None:
    images = [pixels((90 + i, 100, 3), np.uint8, i) for i in range(12)]
    with Restorer.open(identity.model_path, threads=1, batch=2) as restorer, ThreadPoolExecutor(4) as pool:
        for image, restored in zip(images, pool.map(restorer, images), strict=True):
            np.testing.assert_array_equal(restored, image)


# What must never become a file.


def broken(function: Callable[[Array], Array], *, io: Any = "float", precision: Any = "fp32") -> Restorer:
    return Restorer(
        FunctionSession(function), make_manifest(io=io, tile=(16, 24), precision=Precision(precision)), overlap=0
    )


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_one_bad_pixel_rejects_the_output_and_names_the_tile(value: float, kind: str) -> None:
    count = 0

    def spoil(tiles: Array) -> Array:
        nonlocal count
        count += 1
        tiles = tiles.copy()
        if count == 4:
            tiles[0, 1, 3, 5] = value
        return tiles

    message = f"the model returned {kind} pixels of the tile at row 16, column 24: .*fp16.*try the fp32 artifact"
    with pytest.raises(RejectedOutputError, match=message) as caught:
        broken(spoil, precision="fp16")(pixels((32, 48, 3), np.uint8))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("io", ["float", "uint8"])
@pytest.mark.parametrize("value", [0, 1])
def test_a_constant_output_is_rejected(io: str, value: int) -> None:
    with pytest.raises(RejectedOutputError, match="the one value"):
        broken(lambda tiles: np.full_like(tiles, value), io=io)(pixels((16, 24, 3), np.uint8))


@pytest.mark.parametrize("io", ["float", "uint8"])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_constant_image_may_stay_constant(io: str, value: int) -> None:
    image = np.full((40, 50, 3), value, np.uint8)
    np.testing.assert_array_equal(broken(lambda tiles: tiles, io=io)(image), image)


@pytest.mark.parametrize("sigma", [2, 50])
def test_noise_around_white_may_become_white_in_8_bits(sigma: float, rng: np.random.Generator) -> None:
    noisy = np.clip(255 + rng.normal(0, sigma, (32, 48, 3)), 0, 255).astype(np.uint8)
    assert (broken(lambda tiles: np.full_like(tiles, 255), io="uint8")(noisy) == 255).all()


def test_a_session_that_returns_another_shape_is_refused() -> None:
    with pytest.raises(ArtifactError, match="output"):
        broken(lambda tiles: tiles[:, :, :8])(pixels((16, 24, 3), np.uint8))
    with pytest.raises(ArtifactError, match="output"):
        broken(lambda tiles: tiles.astype(np.float64))(pixels((16, 24, 3), np.uint8))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_an_8_bit_model_refuses_deeper_images(identity_uint8: Artifact, dtype: Any) -> None:
    with Restorer.open(identity_uint8.model_path) as restorer, pytest.raises(ImageError, match="depth would be lost"):
        restorer(pixels((20, 20, 3), dtype))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 2), np.uint8), r"\[H, W, 3\], \[H, W\].*got shape \(8, 8, 2\)$"),
        (np.zeros((3, 8, 9), np.uint8), r"channels first: numpy.moveaxis\(image, -3, -1\)"),
        (np.zeros(8, np.uint8), r"\[H, W, 3\], \[H, W\].*got shape \(8,\)"),
        (np.zeros((0, 8, 3), np.uint8), "at least one pixel"),
        (np.zeros((8, 8, 3), np.int16), "uint8, uint16, float32 or float64, got int16"),
        (np.full((8, 8, 3), np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_images_that_cannot_be_restored_are_refused(image: Array, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        broken(lambda tiles: tiles)(image)


@pytest.mark.parametrize(
    ("options", "field"), [({"overlap": 16}, "overlap"), ({"overlap": -1}, "overlap"), ({"batch": 0}, "batch")]
)
def test_settings_the_tile_does_not_allow_are_refused(options: dict[str, int], field: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        Restorer(FunctionSession(lambda tiles: tiles), make_manifest(tile=(16, 24)), **options)
    assert caught.value.field == field


def test_layouts_may_differ_between_input_and_output() -> None:
    manifest = make_manifest(tile=(16, 24), output=TensorSpec("restored", **UINT8_NHWC))
    to_codes = FunctionSession(lambda tiles: np.rint(tiles.transpose(0, 2, 3, 1) * 255).astype(np.uint8))
    image = pixels((30, 40, 3), np.uint8)
    np.testing.assert_array_equal(Restorer(to_codes, manifest)(image), image)


def test_leaving_the_context_closes_the_session() -> None:
    session = FunctionSession(lambda tiles: tiles)
    with Restorer(session, make_manifest()):
        assert not session.closed
    assert session.closed


def test_importing_the_runtime_is_light() -> None:
    heavy = "numpy onnxruntime pyvips PIL torch onnx rich"
    code = f"import sys, echoir.runtime; sys.exit(bool(set(sys.modules) & set('{heavy}'.split())))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_restoring_imports_no_training_stack(identity: Artifact) -> None:
    code = (
        "import sys, numpy; from echoir.runtime import Restorer; "
        f"Restorer.open({str(identity.model_path)!r})(numpy.eye(9, dtype='uint8')); "
        "sys.exit(bool(set(sys.modules) & {'torch', 'onnx', 'pyvips', 'echoir.networks.echoir', 'echoir.export'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
