"""Evaluation: the field's conventions, and the command on pictures of known quality."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import small_network
from PIL import Image, PngImagePlugin
from running import echoir

from echoir.checkpoint import save_checkpoint
from echoir.evaluate import evaluate, mean, restore_whole
from echoir.forms import FORMS
from echoir.metrics import luma, psnr
from echoir.runtime.artifact import Artifact
from echoir.samples import Sample


def sample(offset: float) -> Sample:
    truth = np.full((16, 16, 3), 0.4, np.float32)
    return Sample("one.png", truth + np.float32(offset), truth)


def test_scores_are_those_of_rounded_clipped_8_bit_images() -> None:
    degraded = sample(10 / 255)
    (score,) = evaluate(lambda image: image - np.float32(6.2 / 255), [degraded], "denoise")
    assert score.input_psnr == pytest.approx(20 * np.log10(255 / 10))
    assert score.psnr == pytest.approx(20 * np.log10(255 / 4))  # 3.8 codes round to 4


def test_rain_is_judged_on_luma() -> None:
    one = sample(0)
    tinted = one.truth + np.float32([20, 0, 0]) / 255
    (score,) = evaluate(lambda _: tinted, [one], "derain")
    assert score.psnr == pytest.approx(psnr(luma(np.rint(tinted * 255) / 255), luma(one.truth)), abs=1e-6)


def test_the_mean_is_over_pictures() -> None:
    scores = [next(evaluate(lambda image: image, [sample(k / 255)], "denoise")) for k in (1, 4)]
    assert mean(scores).psnr == pytest.approx((scores[0].psnr + scores[1].psnr) / 2)


def test_restore_whole_is_the_network_on_the_whole_image() -> None:
    network = small_network().eval()
    image = np.random.default_rng(0).random((11, 13, 3), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(restore_whole(network, image), expected)
    assert partial(restore_whole, network)(image).shape == image.shape


@pytest.fixture
def identity_network(tmp_path: Path) -> Path:
    """A checkpoint whose correction is zero, so its figures are those of the input."""
    network = small_network()
    torch.nn.init.zeros_(network.output.weight)
    path = tmp_path / "identity.safetensors"
    save_checkpoint(path, network, "denoise", "tiny", {})
    return path


def test_the_command_prints_a_row_per_level_and_writes_every_picture(tmp_path: Path, identity_network: Path) -> None:
    folder = tmp_path / "clean"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.full((24, 24, 3), 128, np.uint8)).save(folder / f"{name}.png")
    table = tmp_path / "figures.csv"
    arguments = ["evaluate", str(identity_network), "--data", str(folder), "--csv", str(table)]
    result = echoir(*arguments, "--sigma", "10", "--sigma", "40")
    assert result.code == 0, result.err
    lines = [line.split()[1:] for line in result.out.splitlines()[1:]]
    assert [line[:2] for line in lines] == [["sigma", "10"], ["sigma", "40"]]
    # Gaussian noise of s codes is 20 log10(255 / s) dB; rounding adds 1/12 to the variance.
    assert float(lines[0][2]) == pytest.approx(20 * np.log10(255 / np.sqrt(100 + 1 / 12)), abs=0.3)
    assert lines[0][2] == lines[0][3]
    with table.open() as file:
        assert [row["picture"] for row in csv.DictReader(file)][:3] == [
            "rgb sigma 10/a.png",
            "rgb sigma 10/b.png",
            "rgb sigma 10/mean",
        ]


def test_every_form_is_measured_and_clean_pictures_have_no_level(tmp_path: Path, identity_network: Path) -> None:
    Image.fromarray(np.full((24, 24, 3), 128, np.uint8)).save(tmp_path / "a.png")
    arguments = [
        "evaluate",
        str(identity_network),
        "--data",
        str(tmp_path),
        "--form",
        "all",
        "--sigma",
        "10",
        "--sigma",
        "20",
    ]
    result = echoir(*arguments)
    assert result.code == 0, result.err
    labels = [line[:20].split() for line in result.out.splitlines()[1:]]
    assert {label[0] for label in labels} == set(FORMS)
    assert [label for label in labels if label[0] == "clean"] == [["clean"]]
    assert len(labels) == 2 * (len(FORMS) - 1) + 1
    result = echoir(*arguments[:4], "--form", "round")
    assert (result.code, "no form 'round': there are rgb, " in result.err) == (2, True)


@pytest.mark.parametrize("fixture", ["identity", "identity_uint8"])
def test_the_command_takes_an_artifact_too(tmp_path: Path, fixture: str, request: pytest.FixtureRequest) -> None:
    identity: Artifact = request.getfixturevalue(fixture)
    Image.fromarray(np.full((24, 24, 3), 128, np.uint8)).save(tmp_path / "a.png")
    result = echoir("evaluate", identity.model_path, "--data", str(tmp_path), "--sigma", "10")
    assert result.code == 0, result.err
    assert len(result.out.splitlines()) == 2


def evaluated(model: Path, folder: Path) -> float:
    """Input PSNR of a folder of pairs."""
    result = echoir("evaluate", model, "--data", folder)
    assert result.code == 0, result.err
    return float(result.out.splitlines()[1].split()[1])


@pytest.mark.parametrize("suffixes", [(".tif", ".png"), (".jpg", ".tif"), (".png", ".jpg")])
def test_orientation_is_one_thing_in_every_format(
    tmp_path: Path, identity: Artifact, suffixes: tuple[str, str]
) -> None:
    """Both pictures of a pair carry the same tag, so that they lie on each other however it is read."""
    tags = Image.Exif()
    tags[0x0112] = 6
    ramp = np.broadcast_to(np.linspace(0, 240, 64)[:, None, None], (64, 64, 3))
    for name, offset, suffix in (("input", 15, suffixes[0]), ("target", 0, suffixes[1])):
        (tmp_path / name).mkdir()
        options = {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}
        Image.fromarray((ramp + offset).astype(np.uint8)).save(tmp_path / name / f"a{suffix}", exif=tags, **options)
    assert evaluated(identity.model_path, tmp_path) == pytest.approx(20 * np.log10(255 / 15), abs=0.1)


def test_16_bit_pairs_are_measured_at_their_tones(tmp_path: Path, identity: Artifact) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile comes with scikit-image, pip install '.[dev]'")
    ramp = np.linspace(0, 60000, 64 * 64).reshape(64, 64).astype(np.uint16)
    for name, offset in (("lq", 20 * 257), ("gt", 0)):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", ramp + np.uint16(offset), photometric="minisblack")
    assert evaluated(identity.model_path, tmp_path) == pytest.approx(20 * np.log10(255 / 20), abs=0.01)


def test_what_restore_refuses_is_refused_here_too(tmp_path: Path, identity: Artifact) -> None:
    Image.new("CMYK", (32, 32)).save(tmp_path / "a.jpg")
    for command in (("restore", tmp_path, "-m", identity.model_path, "-o", tmp_path / "out"),
                    ("evaluate", identity.model_path, "--data", tmp_path)):  # fmt: skip
        result = echoir(*command)
        assert result.code == 3
        assert "a.jpg: cmyk with 4 channels" in result.err


def test_a_png_with_50_megabytes_of_text_is_read(tmp_path: Path, identity: Artifact) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("log", "x" * 50_000_000, zip=True)
    Image.fromarray(np.full((32, 32, 3), 128, np.uint8)).save(tmp_path / "a.png", pnginfo=text)
    assert echoir("evaluate", identity.model_path, "--data", tmp_path).code == 0
