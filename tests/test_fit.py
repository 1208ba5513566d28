"""The tile that fits: least waste by trying all, free sides in every session, and what is refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Io, make_artifact, make_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import echoir

from echoir.export.build import build_artifact
from echoir.runtime import Restorer
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.contract import Device
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError
from echoir.runtime.fit import SIZES, best_tile, fits, waste
from echoir.runtime.manifest import Engine, Manifest, Model
from echoir.runtime.sessions import open_session
from echoir.runtime.tiling import tile_starts

Array = np.ndarray[Any, np.dtype[Any]]
DEVICES = [
    "cpu",
    pytest.param("openvino", marks=pytest.mark.skipif(find_spec("openvino") is None, reason="echoir[openvino]")),
]


@settings(deadline=None, max_examples=150)
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    most=st.integers(64, 20_000),
    overlap=st.integers(0, 20),
    multiple=st.tuples(st.sampled_from([1, 4, 8]), st.sampled_from([2, 8, 16])),
)
def test_no_other_tile_sends_fewer_pixels_through(
    size: tuple[int, int], most: int, overlap: int, multiple: tuple[int, int]
) -> None:
    height, width = best_tile(*size, most=most, overlap=overlap, multiple=multiple)

    def pixels(tile: tuple[int, int]) -> int:
        count = 1
        for side, length in zip(size, tile, strict=True):
            count *= len(tile_starts(side, length, overlap))
        return count * tile[0] * tile[1]

    assert (height % multiple[0], width % multiple[1]) == (0, 0)
    sides = [range(step, 224, step) for step in multiple]
    every = [(h, w) for h in sides[0] for w in sides[1] if min(h, w) > overlap]
    allowed = [tile for tile in every if tile[0] * tile[1] <= most]
    if allowed:
        assert height * width <= most
        assert pixels((height, width)) == min(map(pixels, allowed))
    else:
        assert (height, width) == min(every)


@pytest.mark.parametrize("most", [512 * 512, 1100 * 1100])
def test_free_sides_waste_less_than_tiles_of_256_at_every_size(most: int) -> None:
    free, fixed = make_manifest(overlap=32, most=most), make_manifest(tile=(256, 256), overlap=32)
    for size in SIZES.values():
        count, (height, width), cost = waste(free, *size)
        assert height * width <= most
        assert cost == count * height * width / (size[0] * size[1])
        assert cost < waste(fixed, *size)[2]
        assert cost <= (1.16 if most < 1_000_000 else 1.08)


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    most=st.sampled_from([4096, 64 * 80, 10_000]),
    overlap=st.integers(0, 30),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
def test_an_identity_of_free_sides_returns_the_input_bit_for_bit(
    size: tuple[int, int], most: int, overlap: int, dtype: Any
) -> None:
    shapes = []

    class Same:
        def run(self, tiles: Array) -> Array:
            shapes.append(tiles.shape[2:])
            return tiles.copy()

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3)).astype(dtype)
    restorer = Restorer(Same(), make_manifest(most=most), overlap=overlap)  # type: ignore[arg-type]
    np.testing.assert_array_equal(restorer(image), image)
    ((height, width),) = set(shapes)  # equal tiles
    assert (height % 8, width % 8) == (0, 0)
    assert height * width <= most
    assert len(shapes) == restorer.tiles(*size)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("io", ["float", "uint8"])
@pytest.mark.parametrize("batch", [None, 1])
def test_a_session_takes_what_the_manifest_leaves_free_and_no_more(
    device: Device, io: Io, batch: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    artifact = make_artifact(tmp_path, io=io, batch=batch, most=64 * 96, gain=0.5)

    def tiles(height: int, width: int) -> Array:
        shape = (2, 3, height, width) if io == "float" else (2, height, width, 3)
        return np.full(shape, 200 if io == "uint8" else 0.75, np.uint8 if io == "uint8" else np.float32)

    with open_session(artifact, threads=1, device=device) as session:
        for height, width in ((64, 96), (8, 8), (16, 384), (64, 96)):
            np.testing.assert_allclose(session.run(tiles(height, width)), tiles(height, width) * 0.5, rtol=1e-6)
        for height, width in ((64, 104), (60, 64), (64, 65)):  # too many, and no multiples of 8
            with pytest.raises(ValueError, match="tiles must be"):
                session.run(tiles(height, width))


def test_a_manifest_of_fixed_sides_does_not_open_a_model_of_free_ones(tmp_path: Path) -> None:
    free, fixed = make_artifact(tmp_path, "free", most=4096), make_artifact(tmp_path, "fixed")
    for one, other in ((free, fixed), (fixed, free)):
        path = tmp_path / "mixed.onnx"
        path.write_bytes(one.model_path.read_bytes())
        with pytest.raises(ArtifactError, match="wrong tile, batch or layout"):
            open_session(write_artifact(other.manifest, path))


def test_a_manifest_with_a_bound_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tile\.most: found 1000, needed at least 4096"):
        make_artifact(tmp_path, most=1000)
    engine: dict[str, Any] = {
        "model": Model("tensorrt"),
        "onnx_sha256": "0" * 64,
        "engine": Engine("10.9", ("8.7",), 1.0),
    }
    (tmp_path / "x.engine").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="an engine has one shape"):
        write_artifact(make_manifest(most=4096, **engine), tmp_path / "x.engine")


def test_a_manifest_of_format_2_has_fixed_tiles(tmp_path: Path) -> None:
    values = json.loads(make_artifact(tmp_path).manifest.to_json())
    del values["tile"]["most"], values["tile"]["margin"], values["network"]["forms"]
    read = Manifest.from_json(json.dumps(values | {"format": 2}))
    assert (read.tile.most, read.network.forms, read.format) == (None, (), 4)
    with pytest.raises(ArtifactError, match=r"network\.forms: found nothing"):
        Manifest.from_json(json.dumps(values | {"format": 3}))


def test_what_has_free_sides_becomes_no_engine(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, most=4096)
    with pytest.raises(ArtifactError, match="an engine has one tile; export with --fit"):
        build_artifact(artifact, tmp_path, "tensorrt-rtx")


def test_inspect_and_bench_say_what_tiles_cost(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, tile=(256, 256), overlap=32)
    text = echoir("inspect", artifact.model_path, "--full").out
    assert "6 tiles of 256 x 256" in text
    assert "481 x 321       481 x 321                      6 tiles of 256 x 256         2.55" in text
    timed = ("--iterations", 2, "--warmup", 0, "--threads", 1, "--no-profile", "--json", tmp_path / "b.json")
    result = echoir("bench", "-m", artifact.model_path, *timed)
    assert "1920 x 1080                    45 tiles of 256 x 256        1.42 " in result.out
    assert json.loads((tmp_path / "b.json").read_text())["pictures"]["1080p"]["waste"] == pytest.approx(
        1.4222, abs=1e-4
    )


def test_pictures_of_a_mosaic_are_a_quarter_for_its_network(tmp_path: Path) -> None:
    network = Descriptor("Raw", "demosaic", 1, input="RGGB", scale=2)
    manifest = make_manifest(tile=(64, 64), overlap=8, network=network)
    restorer = Restorer(None, manifest)  # type: ignore[arg-type]
    for name, (height, width) in SIZES.items():
        even = height // 2 * 2, width // 2 * 2
        found = fits(manifest)[name]
        assert (found.tiles, found.input, found.output) == (restorer.tiles(*even, 1), even, even)


@settings(deadline=None, max_examples=30)
@given(
    size=st.tuples(st.integers(1, 120), st.integers(1, 120)), overlap=st.integers(4, 24), phase=st.sampled_from([1, 4])
)
def test_free_sides_and_a_network_that_enlarges(size: tuple[int, int], overlap: int, phase: int) -> None:
    class Twice:
        def run(self, tiles: Array) -> Array:
            height, width = tiles.shape[2:]
            assert (height % 8, width % 8) == (0, 0)
            assert height * width <= 4096
            return tiles.repeat(2, axis=2).repeat(2, axis=3)

    network = Descriptor("Grow", "sr", 1, scale=2, multiple=(8, 8), phase=(phase, phase))
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    restorer = Restorer(Twice(), make_manifest(most=4096, network=network), overlap=overlap)  # type: ignore[arg-type]
    np.testing.assert_array_equal(restorer(image), image.repeat(2, axis=0).repeat(2, axis=1))


def make_tiles(folder: Path, *tiles: tuple[int, int], **changes: Any) -> Path:
    for index, (height, width) in enumerate(tiles):
        place = folder / f"{height}x{width}"
        place.mkdir(parents=True)
        make_artifact(place, tile=(height, width), overlap=8, bias=2 * (index + 1) / 255, **changes)
    return folder


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_of_several_artifacts_each_picture_takes_the_one_that_wastes_least(tmp_path: Path, strength: float) -> None:
    """Each adds a number of its own, so that the pixels say which one it was."""
    numbers = {(128, 64): 2, (64, 128): 4, (64, 64): 6}
    folder = make_tiles(tmp_path / "several", *numbers)
    with Restorer.open(folder, strength=strength, threads=1) as restorer:
        expected = {(60, 128): (64, 128), (128, 64): (128, 64), (10, 10): (64, 64), (64, 184): (64, 128)}
        for size, tile in expected.items():
            picture = np.full((*size, 3), 100, np.uint8)
            picture[0, 0] = 0  # not constant
            restored = restorer(picture)
            assert restored[-1, -1, 0] == 100 + numbers[tile] * strength, size
            costs = {one: waste(make_manifest(tile=one, overlap=8), *size)[2] for one in numbers}
            assert costs[tile] == min(costs.values())
            assert restorer.tiles(*size) == waste(make_manifest(tile=tile, overlap=8), *size)[0]
        assert len(restorer.models) == 3
    with pytest.raises(ValueError, match="closed"):
        restorer(np.zeros((60, 128, 3), np.uint8))


def test_artifacts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    folder = make_tiles(tmp_path / "mixed", (64, 64))
    make_tiles(folder, (64, 128), io="uint8")
    with pytest.raises(ArtifactError, match=r"input: found .* do not belong together"):
        Restorer.open(folder)


def test_a_command_for_one_artifact_names_those_of_several_tiles(tmp_path: Path) -> None:
    folder = make_tiles(tmp_path / "several", (64, 64), (64, 128))
    result = echoir("inspect", folder)
    assert result.code == 4
    assert f"2 artifacts of different tiles in {folder}" in result.err
    assert str(folder / "64x128") in result.err
    one = make_tiles(tmp_path / "one", (64, 64))  # of two sizes of picture that one tile fits
    assert Artifact.open(one).manifest.tile.height == 64


def test_a_folder_that_cannot_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(ArtifactError, match=r"unreadable.*Permission denied"):
        Restorer.open(tmp_path)
