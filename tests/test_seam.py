"""The seam gate: tiles against whole pictures, and the least overlap, for networks whose reach is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import make_artifact
from onnx import TensorProto, helper
from running import Result, echoir
from torch import Tensor, nn

from echoir.data import list_pictures
from echoir.export.proof.overlap import find_overlap, measure_seam, shared_of
from echoir.export.proof.seam import Seam
from echoir.export.sources import TorchSource, open_source
from echoir.runtime import Restorer
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import BackendError
from echoir.runtime.fit import best_tile
from echoir.runtime.manifest import Manifest, Tile
from echoir.samples import SHIPPED, Samples, as_they_are


class Box(nn.Module):
    """The mean over a square of so many pixels each way, with zeros outside; enlarged by repeating pixels."""

    def __init__(self, reach: int, scale: int = 1, planes: int = 3) -> None:
        super().__init__()
        self.mean = nn.Conv2d(planes, planes, 2 * reach + 1, padding=reach, groups=planes, bias=False)
        nn.init.constant_(self.mean.weight, (2 * reach + 1) ** -2)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.mean(x)
        return made.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


class Balanced(Box):
    """The same, less a part of the mean of everything that it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 0.1 * x.mean(dim=(2, 3), keepdim=True)


class Windows(nn.Module):
    """Means over windows of 8 x 8 from the corner, after a square mean."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.box = Box(reach)

    def forward(self, x: Tensor) -> Tensor:
        made = nn.functional.avg_pool2d(x, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
        both: Tensor = self.box(0.5 * x + 0.5 * made)
        return both


def source(module: nn.Module, **fields: Any) -> TorchSource:
    return TorchSource(module, Descriptor("Known", "restore", 0, **fields))


def samples(network: Descriptor) -> Samples:
    """The shipped pictures, as they are."""
    return Samples(tuple(list_pictures([SHIPPED])), as_they_are, "clean pictures", network=network)


def found(source: TorchSource, tile: tuple[int, int], **settings: Any) -> Tile | float:
    return find_overlap(source, samples(source.descriptor), Tile(*tile, 0), threads=1, **settings)


def measured(source: TorchSource, tile: Tile, **settings: Any) -> Seam:
    seam = measure_seam(source, samples(source.descriptor), tile, threads=1, **settings)
    assert seam is not None
    return seam


@pytest.mark.parametrize(("reach", "scale"), [(0, 1), (1, 1), (4, 1), (4, 3), (12, 1)])
def test_the_least_overlap_is_twice_what_a_network_reaches(reach: int, scale: int) -> None:
    known = source(Box(reach, scale), scale=scale)
    tile = found(known, (64, 48))
    assert tile == Tile(64, 48, 2 * reach, margin=reach)
    assert measured(known, tile).band.psnr > 120  # which is exact, in float32


def test_the_least_overlap_of_windows_is_what_their_phase_allows() -> None:
    # A mean that reaches 3 pixels into the next window depends on all of it: 8 pixels are needed, and less is wrong.
    known = source(Windows(3), multiple=(8, 8), phase=(8, 8))
    assert found(known, (64, 64)) == Tile(64, 64, 8, margin=3)


@pytest.mark.parametrize(("given", "made"), [("gray", "gray"), ("RGGB", "RGB")])
def test_other_planes(given: Any, made: Any) -> None:
    class Mosaic(Box):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)

    module = Box(2, planes=1) if given == "gray" else Mosaic(2, planes=4)
    known = source(module, input=given, output=made, scale=1 if given == "gray" else 2)
    assert found(known, (48, 48)) == Tile(48, 48, 4, margin=2)


def test_a_network_that_looks_at_everything_never_gets_there_and_is_only_reported() -> None:
    known = source(Balanced(2))
    best = found(known, (64, 64))
    assert isinstance(best, float)
    assert 20 < best < 55
    seam = measured(known, Tile(64, 64, 16, margin=4))
    assert seam.failures == []
    assert "the network looks at its whole tile, which no overlap cures" in seam.sentence
    assert measured(known, Tile(64, 64, 16, margin=4), least=55).failures  # unless somebody asks for it


def test_what_stands_out_where_tiles_meet_is_said_and_fails_a_network_that_is_local() -> None:
    seam = measured(source(Box(8)), Tile(64, 64, 4))
    assert seam.band.psnr < 45
    assert seam.elsewhere.psnr > seam.band.psnr + 10
    assert seam.failures == []  # nobody said that it is local
    assert "tiles show where they meet: give a larger --overlap, or auto" in seam.sentence
    (reason,) = measured(source(Box(8), local=True), Tile(64, 64, 4)).failures
    assert "elsewhere, the gate is 55 dB: give a larger --overlap, or auto" in reason


def test_a_wrong_phase_is_seen() -> None:
    """The same tiles for engine and reference: parity alone would never tell."""
    right = source(Windows(0), multiple=(8, 8), phase=(8, 8), local=True)
    wrong = source(Windows(0), multiple=(8, 8), phase=(8, 8), local=True)
    object.__setattr__(wrong.descriptor, "phase", (1, 1))  # past the probe, which refuses it
    tile = Tile(64, 64, 20, margin=10)
    assert measured(right, tile).failures == []
    assert measured(wrong, tile).failures


def test_figures_are_those_of_a_loop_over_pixels() -> None:
    """Two convolutions by hand, blended by hand."""
    reach, side, overlap = 3, 32, 6
    seam = measured(source(Box(reach)), Tile(side, side, overlap))
    size = 2 * side - overlap
    inner = slice(side // 4, size - side // 4)
    fade = np.concatenate([np.ones(side - overlap), (np.arange(overlap)[::-1] + 0.5) / overlap])
    errors: list[float] = []
    for sample in list(samples(Descriptor("Known", "restore", 0)))[:2]:
        top, left = ((length - size) // 2 for length in sample.degraded.shape[:2])
        picture = sample.degraded[top : top + size, left : left + size].astype(np.float64)
        tiled = np.zeros_like(picture)
        for y in (0, side - overlap):
            for x in (0, side - overlap):
                weights = np.outer(fade if y == 0 else fade[::-1], fade if x == 0 else fade[::-1])
                tiled[y : y + side, x : x + side] += weights[..., None] * box(
                    picture[y : y + side, x : x + side], reach
                )
        square = np.square(tiled - box(picture, reach))[inner, inner]
        line = np.abs(np.arange(size) + 0.5 - size / 2)[inner] < 8
        errors += square[line[:, None] | line].ravel().tolist()
    assert seam.band.psnr == pytest.approx(-10 * np.log10(np.mean(errors)), abs=0.01)


def box(picture: np.ndarray[Any, Any], reach: int) -> np.ndarray[Any, Any]:
    padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2, axis=(0, 1))
    means: np.ndarray[Any, Any] = views.mean(axis=(3, 4))
    return means


def test_what_tiles_share_is_what_the_phase_allows() -> None:
    assert [shared_of(64, overlap, 8) for overlap in (0, 1, 8, 9)] == [0, 8, 8, 16]
    assert [shared_of(60, overlap, 8) for overlap in (0, 4, 5)] == [4, 4, 12]
    assert shared_of(64, 33, 1) == 33


# The command, and the artifact.

MINE = """
import torch
from torch import nn
from echoir.runtime.descriptor import Descriptor

def build():
    mean = nn.Conv2d(3, 3, 9, padding=4, groups=3, bias=False)
    nn.init.constant_(mean.weight, 1 / 81)
    return mean, Descriptor("Mean", "restore", 243, tile=(64, 64), local=True)
"""


def export(folder: Path, weights: object, *options: object) -> Result:
    given = ("--weights", weights, "--limit", 1, "--target", "onnx", "--threads", 1, "-o", folder / "out")
    return echoir("export", *given, "--precision", "fp32", *options)


def test_auto_finds_the_overlap_and_the_artifact_restores_as_if_in_one_piece(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    made = export(tmp_path, f"{tmp_path}/mine.py:build", "--overlap", "auto")
    assert made.code == 0
    assert "overlap 8, the least: from 4 pixels inside its edge on, a tile is as in the whole picture" in made.out
    artifact = json.loads((tmp_path / "out" / "mine-fp32.json").read_text())
    assert (artifact["tile"]["overlap"], artifact["tile"]["margin"]) == (8, 4)
    seam = artifact["parity"]["seam"]
    assert (seam["overlap"], seam["margin"], seam["pictures"], seam["gate"]["passed"]) == (8, 4, 1, True)
    assert "Where tiles meet" in (tmp_path / "out" / "report.html").read_text()
    assert "seam" in echoir("inspect", tmp_path / "out").out
    picture = np.random.default_rng(0).random((150, 170, 3), np.float32)
    with Restorer.open(tmp_path / "out", threads=1) as restorer:
        np.testing.assert_allclose(restorer(picture), box(picture, 4), rtol=0, atol=1e-6)


def test_the_tile_that_fits_is_chosen_for_the_overlap_that_comes_out(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    given = ("--overlap", "auto", "--fit", "200x100", "--most", 4096)
    made = export(tmp_path, f"{tmp_path}/mine.py:build", *given)
    assert made.code == 0
    tile = json.loads((tmp_path / "out" / "mine-fp32.json").read_text())["tile"]
    assert (tile["overlap"], tile["margin"]) == (8, 4)
    best = best_tile(100, 200, most=4096, overlap=8)
    assert (tile["height"], tile["width"]) == best != best_tile(100, 200, most=4096, overlap=32)
    assert export(tmp_path, f"{tmp_path}/mine.py:build", *given, "--fit", "90x90", "--force").code == 0
    assert (tmp_path / "out" / "{}x{}".format(*best) / "parity.json").is_file()


def test_auto_that_finds_no_overlap_does_not_advise_auto(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    made = export(tmp_path, f"{tmp_path}/mine.py:build", "--overlap", "auto", "--tile", 12)
    assert made.code == 5
    assert "no overlap makes tiles of 12 x 12 as the whole picture: give a larger --tile" in made.err
    assert "or auto" not in made.err


def test_a_seam_that_shows_fails_the_export(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    made = export(tmp_path, f"{tmp_path}/mine.py:build", "--overlap", 2)
    assert made.code == 5
    assert "where they meet" in made.err
    assert (tmp_path / "out.failed" / "parity.json").is_file()
    assert export(tmp_path, f"{tmp_path}/mine.py:build", "--overlap", 2, "--min-seam", 20).code == 0


def test_an_onnx_of_one_size_has_no_whole_pictures(tmp_path: Path) -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64, 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 64, 64])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "fixed.onnx")
    made = export(tmp_path, tmp_path / "fixed.onnx")
    assert made.code == 0
    assert "tiles were not compared with whole pictures: fixed takes 64 x 64 pixels alone" in made.out
    refused = export(tmp_path, tmp_path / "fixed.onnx", "--overlap", "auto", "--force")
    assert refused.code == 6
    assert "--overlap auto compares tiles with whole pictures: fixed takes 64 x 64 pixels alone" in refused.err
    known = open_source(tmp_path / "fixed.onnx")
    with pytest.raises(BackendError, match="give a number"):
        find_overlap(known, samples(known.descriptor), Tile(64, 64, 0))


def test_an_overlap_that_is_none_is_refused(tmp_path: Path) -> None:
    refused = echoir("export", "--overlap", "much")
    assert refused.code == 2
    assert "'much' is neither a number of pixels nor 'auto'" in refused.err


def test_a_manifest_of_format_3_fades_over_all_that_tiles_share(tmp_path: Path) -> None:
    values = json.loads(make_artifact(tmp_path).manifest.to_json())
    del values["tile"]["margin"]
    assert Manifest.from_json(json.dumps(values | {"format": 3})).tile.margin == 0
    values["tile"]["margin"] = 5
    with pytest.raises(Exception, match=r"tile\.margin: found 5, needed at most 4, half of tile\.overlap"):
        Manifest.from_json(json.dumps(values))
