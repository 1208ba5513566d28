"""Parity: figures against closed forms, the gates, and the whole measurement on small networks."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_manifest, small_network
from PIL import Image

from echoir.evaluate import restore_whole
from echoir.export.proof.figures import AgainstTruth, SetFigures, SquaredError, WorstTile, channel_shift, code_error
from echoir.export.proof.parity import measure_parity, seam_band, windows
from echoir.export.proof.results import GATES, Gate, ParityReport, default_gate, psnr_of_codes
from echoir.export.reference import PyTorchSession
from echoir.export.sources import TorchSource
from echoir.forms import FORMS
from echoir.metrics import to_8bit
from echoir.runtime.errors import ArtifactError, ImageError
from echoir.runtime.manifest import CheckpointRecord, Manifest, Precision
from echoir.samples import SHIPPED, open_samples, proof_samples

HASH = "0" * 64


class Altered:
    """A session that spoils what another one gives."""

    def __init__(self, session: PyTorchSession, alter: Any) -> None:
        self.session, self.alter = session, alter

    def run(self, tiles: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.alter(self.session.run(tiles))  # type: ignore[no-any-return]

    def close(self) -> None: ...

    def __enter__(self) -> Altered:
        return self

    def __exit__(self, *exception: object) -> None: ...


@pytest.fixture(scope="module")
def source() -> TorchSource:
    torch.manual_seed(0)
    network = small_network().eval()
    with torch.no_grad():  # nearer to a denoiser than a random network is: a small correction
        network.output.weight *= 0.1
    return TorchSource(network, network.describe("denoise", "tiny"), CheckpointRecord("denoise", HASH))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two smooth pictures of 3 x 2 and 1 x 1 tiles."""
    y, x = np.mgrid[0:40, 0:70] / 70
    for name, size in (("large", (40, 70)), ("small", (20, 20))):
        pixels = np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x * y)], axis=2)[: size[0], : size[1]]
        Image.fromarray(to_8bit(pixels)).save(tmp_path / f"{name}.png")
    return tmp_path


def manifest(precision: Any = "fp32", io: Any = "float") -> Manifest:
    return make_manifest(io=io, tile=(32, 32), overlap=8, precision=Precision(precision))


def measure(
    source: TorchSource, pictures: Path, *, alter: Any = lambda x: x, precision: str = "fp32", io: Any = "float"
) -> ParityReport:
    # One thread: the pictures are too small to share, and waiting threads of a busy machine spin.
    session = Altered(PyTorchSession(source.module, io=io, threads=1), alter)
    return measure_parity(manifest(precision, io), session, source, open_samples(pictures, "denoise"))


# Figures


def test_squared_errors_pool_their_pixels() -> None:
    zero = np.zeros((4, 4, 3), np.float32)
    coarse, fine = SquaredError.between(zero, zero + np.float32(0.1)), SquaredError.between(zero[:2], zero[:2] + 0.2)
    assert coarse.psnr == pytest.approx(20, abs=1e-4)
    assert (coarse + fine).mse == pytest.approx((16 * 0.01 + 8 * 0.04) / 24, rel=1e-5)


def test_squared_error_of_equal_or_no_pixels_is_not_a_number_in_json() -> None:
    image = np.ones((3, 3, 3), np.float32)
    assert SquaredError.between(image, image).psnr == math.inf
    assert SquaredError.between(image, image).to_json() == {"psnr": None, "mse": 0.0}
    assert SquaredError.between(image, image, np.zeros((3, 3), bool)).to_json() == {"psnr": None, "mse": None}


def test_worst_tile_is_where_the_difference_was_put() -> None:
    a, b = np.zeros((8, 12, 3), np.float32), np.zeros((8, 12, 3), np.float32)
    b[5, 9] = 0.5
    tiles = [(slice(y, y + 4), slice(x, x + 4)) for y in (0, 4) for x in (0, 4, 8)]
    worst = WorstTile.among("a", a, b, tiles)
    assert (worst.top, worst.left, worst.height, worst.width) == (4, 8, 4, 4)
    assert worst.error.mse == pytest.approx(0.25 / 16)


def test_code_error_and_shift_count_in_8_bit_codes() -> None:
    a = np.full((2, 2, 3), 0.5, np.float32)
    b = a + np.array([2, 0, -1], np.float32) / 255
    assert code_error(b, a) == 2
    assert channel_shift(b, a) == pytest.approx((2, 0, -1), abs=1e-4)


def test_seam_band_is_where_a_naive_count_finds_two_tiles() -> None:
    height, width, m = 40, 70, manifest()
    naive = np.zeros((height, width), int)
    starts = {"rows": (0, 8), "columns": (0, 19, 38)}  # spread evenly, at least 8 shared
    for top in starts["rows"]:
        for left in starts["columns"]:
            for y in range(top, top + 32):
                for x in range(left, left + 32):
                    naive[y, x] += 1
    tiles = windows(height, width, m, 8)
    assert [(t.start, s.start) for t, s in tiles] == [(y, x) for y in (0, 8) for x in (0, 19, 38)]
    assert np.array_equal(seam_band(height, width, tiles), naive > 1)


def test_psnr_of_codes_matches_a_simulation() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 0.9, 400_000)
    for psnr in (90.0, 60.0, 55.0, 40.0, 30.0):
        other = values + rng.normal(0, 10 ** (-psnr / 20), values.shape)
        codes = np.rint(255 * values), np.rint(255 * other)
        measured = 10 * np.log10(255**2 / np.mean((codes[0] - codes[1]) ** 2))
        assert psnr_of_codes(psnr) == pytest.approx(measured, abs=0.15)


# The reference


def test_pytorch_session_is_the_network(source: TorchSource) -> None:
    tiles = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    with torch.inference_mode():
        expected = source.module(torch.from_numpy(tiles)).numpy()
    with PyTorchSession(source.module) as session:
        assert np.array_equal(session.run(tiles), expected)
    whole = restore_whole(source.module, np.ascontiguousarray(tiles[0].transpose(1, 2, 0)))
    assert np.allclose(whole, expected[0].transpose(1, 2, 0), atol=1e-6)


def test_pytorch_session_of_codes_clips_and_rounds(source: TorchSource) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    with torch.inference_mode():
        floats = source.module(torch.from_numpy(codes.transpose(0, 3, 1, 2) / np.float32(255))).numpy()
    restored = PyTorchSession(source.module, io="uint8").run(codes)
    assert restored.dtype == np.uint8
    assert np.array_equal(restored, np.stack([to_8bit(image.transpose(1, 2, 0)) for image in floats]))


# The measurement


def test_the_network_itself_passes_and_differs_nowhere(source: TorchSource, pictures: Path) -> None:
    report = measure(source, pictures)
    assert report.passed
    assert report.figures is not None
    assert report.figures.error.total == 0
    assert report.figures.truth.delta_psnr == 0
    assert report.figures.code_error == 0
    # One picture is a single tile: no seam there, and PyTorch pads tile and whole image differently.
    large, small = report.figures.images
    assert large.whole is not None
    assert small.whole is not None
    assert 0 < large.whole.seam_share < 1
    assert small.whole.seam.count == 0


def test_tiles_of_one_tile_image_equal_the_whole(source: TorchSource, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "tile.png")
    report = measure(source, tmp_path)
    assert report.figures is not None
    assert report.figures.whole is not None
    assert report.figures.whole.engine.psnr > 120


def test_an_offset_is_found_in_every_figure(source: TorchSource, pictures: Path) -> None:
    def brighten_red(tiles: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return tiles + np.array([3, 0, 0], np.float32)[:, None, None] / 255

    report = measure(source, pictures, alter=brighten_red)
    assert report.figures is not None
    assert report.figures.error.psnr == pytest.approx(20 * math.log10(255 / 3) + 10 * math.log10(3), abs=1e-2)
    assert report.figures.channel_shift == pytest.approx((3, 0, 0), abs=1e-3)
    assert report.figures.code_error == 3
    assert not report.passed
    assert "the gate is 90 dB" in report.failures[0]


@pytest.mark.parametrize(("precision", "passes"), [("fp32", False), ("fp16", True)])
def test_an_error_of_70_db_passes_as_fp16_alone(
    source: TorchSource, pictures: Path, precision: str, passes: bool
) -> None:
    rng = np.random.default_rng(0)
    spoil = 10 ** (-70 / 20)
    report = measure(
        source,
        pictures,
        alter=lambda tiles: tiles + np.float32(spoil) * rng.standard_normal(tiles.shape, np.float32),
        precision=precision,
    )
    assert report.passed is passes


def test_8_bit_models_are_compared_after_rounding(source: TorchSource, pictures: Path) -> None:
    report = measure(source, pictures, io="uint8")
    assert report.figures is not None
    assert report.figures.error.total == 0
    assert report.gate.min_psnr == pytest.approx(70, abs=0.1)
    off_by_one = measure(source, pictures, io="uint8", alter=lambda codes: np.where(codes < 255, codes + 1, codes))
    assert off_by_one.figures is not None
    assert off_by_one.figures.error.psnr == pytest.approx(20 * math.log10(255), abs=0.3)
    assert not off_by_one.passed


def test_the_worst_pictures_are_shown_worst_first(source: TorchSource, tmp_path: Path) -> None:
    for i in range(8):
        Image.fromarray(np.full((20, 20, 3), 20 * (i + 1), np.uint8)).save(tmp_path / f"{i}.png")
    report = measure(source, tmp_path, alter=lambda tiles: tiles * np.float32(1.01))
    assert [exhibit.figures.name for exhibit in report.exhibits] == [f"{i}.png" for i in (7, 6, 5, 4, 3, 2)]


def test_an_exhibit_is_cut_around_the_worst_tile(source: TorchSource, tmp_path: Path) -> None:
    manifest_ = make_manifest(tile=(32, 32), overlap=0)
    pixels = np.zeros((16, 640, 3), np.uint8)
    pixels[:, -10:] = 200  # the error grows with the value: the last tile is the worst
    Image.fromarray(pixels).save(tmp_path / "strip.png")
    session = Altered(PyTorchSession(source.module, threads=1), lambda tiles: tiles * np.float32(1.01))
    report = measure_parity(manifest_, session, source, open_samples(tmp_path, "denoise", sigma=1))
    (exhibit,) = report.exhibits
    assert exhibit.figures.worst_tile.left == 608
    assert exhibit.window == (slice(0, 16), slice(128, 640))
    assert exhibit.before.shape == exhibit.after.shape == exhibit.difference.shape == (16, 512, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5])
def test_nan_infinite_and_constant_output_fail_the_gate(source: TorchSource, pictures: Path, value: float) -> None:
    report = measure(source, pictures, alter=lambda tiles: np.full_like(tiles, value))
    assert report.figures is None
    assert not report.passed
    assert {name for name, _ in report.rejected} == {"large.png", "small.png"}
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["gate"]["passed"] is False


def test_a_change_against_truth_fails_either_way() -> None:
    for delta in (-0.03, 0.03):
        figures = SetFigures((_figures(delta),))
        assert len(Gate(min_psnr=None, max_drop=0.02).failures(figures)) == 1
        assert Gate(min_psnr=None, max_drop=0.04).failures(figures) == []


def test_each_form_must_pass_alone_and_a_clean_picture_only_near_pytorch() -> None:
    gate = Gate(min_psnr=None, max_drop=0.02)
    mixed = [replace(_figures(0.0), label="rgb"), replace(_figures(-0.03), label="jpeg420")]
    (reason,) = gate.failures(SetFigures(tuple(mixed)))
    assert "-0.0300 dB (jpeg420)" in reason
    spoilt = replace(_figures(-0.5), label="clean", clean=True)
    assert gate.failures(SetFigures((mixed[0], spoilt))) == []


def test_another_checkpoint_is_refused(source: TorchSource, pictures: Path) -> None:
    other = TorchSource(source.module, source.descriptor, CheckpointRecord("denoise", "1" * 64))
    with pytest.raises(ArtifactError, match=r"checkpoint\.sha256"):
        measure(other, pictures)


def test_a_reference_that_fails_on_a_picture_is_named_as_the_culprit(source: TorchSource, pictures: Path) -> None:
    module = copy.deepcopy(source.module)
    broken = TorchSource(module, source.descriptor, source.record)
    with torch.no_grad():
        module.output.weight[:] = math.nan  # after it was probed
    with pytest.raises(ArtifactError, match="checkpoint"):
        measure_parity(manifest(), PyTorchSession(source.module), broken, open_samples(pictures, "denoise"))


def test_gates_are_the_documented_ones() -> None:
    assert {"fp32": Gate(90.0, None), "fp16": Gate(55.0, 0.02), "int8": Gate(40.0, 0.10)} == GATES
    assert default_gate(manifest("fp16", "uint8")) == Gate(52.4, 0.02)
    assert default_gate(manifest("int8", "uint8")) == Gate(39.9, 0.10)


def test_the_shipped_pictures_come_whole_and_a_crop_in_every_other_form() -> None:
    samples = list(proof_samples(None, "denoise"))
    labels = [sample.label for sample in samples]
    assert labels[:4] == ["rgb sigma 25"] * 4
    assert {label.split(" ")[0] for label in labels[4:]} == set(FORMS) - {"rgb"}
    assert len(labels) == 4 + len(FORMS) - 1
    assert {sample.truth.shape for sample in samples[4:]} == {(256, 256, 3)}
    assert [sample.clean for sample in samples] == [label == "clean" for label in labels]
    assert len({sample.name for sample in samples}) == len(samples)


def test_forms_and_levels_multiply_and_what_is_asked_for_is_all_there_is(pictures: Path) -> None:
    several = proof_samples(pictures, "denoise", forms=("gray", "clean"), sigmas=(15.0, 50.0))
    assert [part.label for part in several.parts] == ["gray sigma 15", "gray sigma 50", "clean"]
    assert several.describe()["parts"] == {"gray sigma 15": 2, "gray sigma 50": 2, "clean": 2}
    one = proof_samples(pictures, "denoise")
    assert [sample.name for sample in one] == ["large.png", "small.png"]
    assert one.describe() == open_samples(pictures, "denoise").describe()


# Pictures


def test_noise_is_the_same_for_a_picture_whatever_the_limit(pictures: Path) -> None:
    all_of_them, first = open_samples(pictures, "denoise"), open_samples(pictures, "denoise", limit=1)
    assert (len(all_of_them), len(first)) == (2, 1)
    assert np.array_equal(next(iter(all_of_them)).degraded, next(iter(first)).degraded)


def test_noise_has_the_level_asked_for(tmp_path: Path) -> None:
    Image.fromarray(np.full((200, 200, 3), 128, np.uint8)).save(tmp_path / "grey.png")
    (sample,) = open_samples(tmp_path, "denoise", sigma=40)
    assert np.std(sample.degraded - sample.truth) * 255 == pytest.approx(40, rel=0.01)


def test_pairs_are_taken_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given, wanted = (rng.integers(0, 256, (20, 20, 3), np.uint8) for _ in range(2))
    for folder, pixels in (("input", given), ("target", wanted)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    (sample,) = open_samples(tmp_path, "derain")
    assert np.array_equal(to_8bit(sample.degraded), given)
    assert np.array_equal(to_8bit(sample.truth), wanted)
    with pytest.raises(ImageError, match="--sigma"):
        open_samples(tmp_path, "denoise", sigma=25)
    (tmp_path / "target" / "a.png").rename(tmp_path / "target" / "b.png")
    with pytest.raises(ImageError, match=r"no picture for a\.png"):
        open_samples(tmp_path, "derain")


def test_clean_pictures_are_degraded_as_the_task_is_trained(pictures: Path) -> None:
    rainy = False
    for sample, again in zip(open_samples(pictures, "derain"), open_samples(pictures, "derain"), strict=True):
        assert (sample.degraded >= sample.truth - 1e-6).all()  # rain only brightens
        rainy |= bool((sample.degraded > sample.truth).any())
        assert np.array_equal(sample.degraded, again.degraded)
    assert rainy


def test_only_denoising_has_a_noise_level(pictures: Path) -> None:
    with pytest.raises(ImageError, match="deblur has none; drop --sigma"):
        open_samples(pictures, "deblur", sigma=25)


def test_an_unknown_task_needs_pairs(pictures: Path) -> None:
    with pytest.raises(ImageError, match="dehaze needs pairs"):
        open_samples(pictures, "dehaze")


def test_pictures_too_small_for_ssim_are_named(source: TorchSource, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((10, 40, 3), np.uint8)).save(tmp_path / "flat.png")
    with pytest.raises(ImageError, match=r"flat\.png: 40x10"):
        measure(source, tmp_path)


def test_shipped_pictures_are_large_enough_for_seams_and_licensed() -> None:
    paths = [picture.clean for picture in open_samples(SHIPPED, "denoise").pictures]
    readme = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert len(paths) >= 4
    for path in paths:
        assert f"`{path.name}`" in readme
        with Image.open(path) as image:
            assert min(image.size) > 256
    assert sum(path.stat().st_size for path in paths) < 1_000_000


def _figures(delta: float) -> Any:
    from echoir.export.proof.figures import ImageFigures

    error = SquaredError(1e-9, 1)
    truth = AgainstTruth(20, 30, 30 + delta, 0.9, 0.9)
    return ImageFigures("a", 1, 1, error, 0, (0, 0, 0), WorstTile("a", 0, 0, 1, 1, error), truth, None)
