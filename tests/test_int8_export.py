"""``echoir-export --precision int8`` as a user types it: files, exit codes, messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import small_network
from PIL import Image
from running import Result, echoir

from echoir.calibration import calibrate
from echoir.calibration.graph import Graph
from echoir.calibration.sensitivity import Group
from echoir.checkpoint import save_checkpoint
from echoir.export import pipeline, quantized
from echoir.export.quantized import Int8, verdict
from echoir.export.sources import TorchSource
from echoir.metrics import to_8bit
from echoir.runtime import Artifact

SIDE = 32


def scene(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48] / 48
    waves = [np.sin(2 * np.pi * (rng.uniform(-2, 2) * x + rng.uniform(-2, 2) * y + rng.uniform())) for _ in range(3)]
    return to_8bit(0.5 + 0.45 * np.stack(waves, axis=2))


def write(folder: Path, pictures: list[np.ndarray[Any, Any]]) -> Path:
    folder.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network small enough to calibrate in seconds, whose correction is as large as noise of sigma 25."""
    torch.manual_seed(0)
    network = small_network()
    image = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        network.output.weight.mul_(0.1 / (network(image) - image).std())
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    save_checkpoint(path, network, "denoise", "tiny", {})
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pictures") / "gate", [scene(100)])


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pictures") / "calibration", [scene(seed) for seed in range(10)])


@pytest.fixture(scope="module")
def export(weights: Path, pictures: Path) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        fixed = ["--weights", weights, "--target", "onnx", "--tile", SIDE, "--overlap", 8, "--threads", 1]
        return echoir("export", "--precision", "int8", *fixed, "--data", pictures, *arguments)

    return run


def by_kind(graph: Graph) -> list[Group]:
    """Four groups in place of fifty, for speed."""
    kinds = sorted({layer.kind for layer in graph.layers})
    return [Group(kind, tuple(layer for layer in graph.layers if layer.kind == kind)) for kind in kinds]


@dataclass
class Exported:
    """A real export, and what its search found."""

    folder: Path
    int8: Int8


@pytest.fixture(scope="module")
def export_once(export: Callable[..., Result], calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("export") / "toy"
    found: list[Int8] = []

    def spy(*arguments: Any, **options: Any) -> Int8:
        found.append(quantized.prepare(*arguments, **options))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized, "groups", by_kind)
        patch.setattr(calibrate, "groups", by_kind)
        patch.setattr(pipeline, "prepare", spy)
        result = export("--calibration", calibration, "--max-drop", 0.5, "-o", folder)
    assert result.code == 0, result.err
    assert "% of multiply-accumulates for" in result.out
    assert "kept higher: " in result.out
    assert "on this CPU takes" in result.out
    return Exported(folder, found[0])


@pytest.fixture
def exported(export_once: Exported) -> Path:
    return export_once.folder


def test_the_folder_holds_the_proof(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "toy-int8.onnx", "toy-int8.json", "toy-int8.golden.npz", "parity.json", "report.html", "sensitivity.json"
    }  # fmt: skip
    assert [path.name for path in exported.parent.iterdir()] == ["toy"]  # what the search remembered is gone


def test_the_manifest_says_what_is_int8_and_what_it_rests_on(exported: Path) -> None:
    manifest = Artifact.open(exported).manifest
    search = json.loads((exported / "sensitivity.json").read_text())
    assert manifest.precision.name == "int8"
    assert set(manifest.precision.int8) == {
        layer for group in search["groups"] if group["int8"] for layer in group["layers"]
    }
    higher = manifest.precision.higher
    kept = {layer for group in search["groups"] if not group["int8"] for layer in group["layers"]}
    assert kept <= {*higher.get("float16", ()), *higher["float32"]}
    assert not set(manifest.precision.int8) & {*higher.get("float16", ()), *higher["float32"]}
    calibration = manifest.calibration
    assert calibration is not None
    assert calibration.fingerprint == search["fingerprint"]
    assert calibration.share == pytest.approx(sum(group["share"] for group in search["groups"] if group["int8"]))
    assert calibration.drop <= 0.8 * calibration.budget == 0.8 * 0.5
    assert manifest.parity is not None
    truth = manifest.parity["figures"]["against_truth"]
    assert truth["worst_image"] == "00.png"
    assert truth["delta_psnr_min"] == truth["delta_psnr"]  # of one picture
    assert manifest.parity["gate"]["max_drop"] == 0.5


def test_the_report_shows_the_search(exported: Path) -> None:
    page = (exported / "report.html").read_text()
    for group in json.loads((exported / "sensitivity.json").read_text())["groups"]:
        assert group["name"] in page
    assert "budget 0.5 dB" in page
    assert page.count("<svg") == page.count("</svg>") == 3, "where the budget went, layers, and the errors' histogram"


def test_a_gate_on_the_artifact_as_shipped_has_the_last_word(
    export: Callable[..., Result],
    export_once: Exported,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A search that was too sure of itself is not believed."""
    monkeypatch.setattr(pipeline, "prepare", lambda *_, **__: export_once.int8)
    result = export("--calibration", calibration, "--max-drop", 1e-5, "-o", tmp_path / "toy")
    assert result.code == 5
    assert "PSNR against ground truth changes by" in result.err
    assert (tmp_path / "toy.failed" / "report.html").is_file()
    assert not (tmp_path / "toy").exists()


def test_a_budget_that_nothing_fits_says_so(
    export: Callable[..., Result],
    export_once: Exported,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice = export_once.int8.choice
    nothing = replace(choice, costs=tuple(replace(cost, int8=False) for cost in choice.costs))
    monkeypatch.setattr(TorchSource, "graph", lambda *_, **__: export_once.int8.plain)
    monkeypatch.setattr(quantized, "calibrate", lambda *_, **__: export_once.int8.calibrated)
    monkeypatch.setattr(quantized, "choose", lambda *_, **__: nothing)
    result = export("--calibration", calibration, "-o", tmp_path / "toy")
    assert result.code == 5
    assert "no layer fits a budget of 0.1 dB in INT8" in result.err
    assert "--precision fp16" in result.err


# Folders that will not do


def noise(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", [], "no picture"),
        ("one", [scene(0)], "needs 9 different pictures and has 1"),
        ("black", [np.zeros((48, 48, 3))] * 12, "12 constant (00.png)"),
        ("noise", [noise(seed) for seed in range(12)], "12 random noise"),
        ("small", [scene(seed)[:20, :20] for seed in range(12)], "12 smaller than 32 x 32"),
        ("copies", [scene(0)] * 12, "11 a copy of another"),
    ],
)
def test_bad_calibration_folders_end_with_3_and_the_reason(
    export: Callable[..., Result], tmp_path: Path, name: str, content: Any, message: str
) -> None:
    result = export("--calibration", write(tmp_path / name, content), "-o", tmp_path / "toy")
    assert result.code == 3
    assert message in result.err
    assert not (tmp_path / "toy").exists()


def test_an_unreadable_picture_is_named(export: Callable[..., Result], tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures", [scene(seed) for seed in range(10)])
    (folder / "03.png").write_bytes(b"not a picture")
    result = export("--calibration", folder, "-o", tmp_path / "toy")
    assert result.code == 3
    assert "03.png: no PNG, JPEG, TIFF, WebP or BMP picture" in result.err


def test_the_gate_wants_other_pictures(export: Callable[..., Result], pictures: Path, tmp_path: Path) -> None:
    result = export("--calibration", pictures.parent, "-o", tmp_path / "toy")
    assert result.code == 3
    assert "calibration never saw" in result.err


def test_int8_and_calibration_belong_together(export: Callable[..., Result], calibration: Path, tmp_path: Path) -> None:
    result = export("-o", tmp_path / "toy")
    assert result.code == 2
    assert "give --calibration DIR" in result.err
    result = echoir("export", "--precision", "fp16", "--calibration", calibration, "-o", tmp_path / "toy")
    assert result.code == 2
    assert "--calibration is for --precision int8" in result.err


def test_the_verdict_names_what_is_faster() -> None:
    assert "INT8 is slower here, use fp32 on a CPU" in verdict({"int8": 20, "fp16": 15, "fp32": 10})
    assert "slower" not in verdict({"int8": 5, "fp16": 15, "fp32": 10})
    assert "2.00 times fp32's" in verdict({"int8": 20, "fp16": 25, "fp32": 10})
