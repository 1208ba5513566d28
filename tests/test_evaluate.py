"""Evaluation: the field's conventions, and the command on pictures of known quality."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import echoir

from echoir.checkpoint import save_checkpoint
from echoir.evaluate import evaluate, mean, restore_whole
from echoir.metrics import luma, psnr
from echoir.networks.echoir import EchoIR
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
    network = EchoIR.from_preset("tiny").eval()
    image = np.random.default_rng(0).random((11, 13, 3), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(restore_whole(network, image), expected)
    assert partial(restore_whole, network)(image).shape == image.shape


@pytest.fixture
def identity_network(tmp_path: Path) -> Path:
    """A checkpoint whose correction is zero, so its figures are those of the input."""
    network = EchoIR.from_preset("tiny")
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
    lines = [line.split() for line in result.out.splitlines()[1:]]
    assert [line[:2] for line in lines] == [["sigma", "10"], ["sigma", "40"]]
    # Gaussian noise of s codes is 20 log10(255 / s) dB; rounding adds 1/12 to the variance.
    assert float(lines[0][2]) == pytest.approx(20 * np.log10(255 / np.sqrt(100 + 1 / 12)), abs=0.3)
    assert lines[0][2] == lines[0][3]
    with table.open() as file:
        assert [row["picture"] for row in csv.DictReader(file)][:3] == [
            "sigma 10/a.png",
            "sigma 10/b.png",
            "sigma 10/mean",
        ]


@pytest.mark.parametrize("fixture", ["identity", "identity_uint8"])
def test_the_command_takes_an_artifact_too(tmp_path: Path, fixture: str, request: pytest.FixtureRequest) -> None:
    identity: Artifact = request.getfixturevalue(fixture)
    Image.fromarray(np.full((24, 24, 3), 128, np.uint8)).save(tmp_path / "a.png")
    result = echoir("evaluate", identity.model_path, "--data", str(tmp_path), "--sigma", "10")
    assert result.code == 0, result.err
    assert len(result.out.splitlines()) == 2
