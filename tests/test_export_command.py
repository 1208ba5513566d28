"""``echoir-export`` and ``echoir parity`` as a user types them: files, exit codes, messages."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import pytest
import torch
from builders import small_network
from PIL import Image

from echoir import cli
from echoir.checkpoint import load_checkpoint, save_checkpoint
from echoir.export import build, pipeline, tiles
from echoir.export.build import engines
from echoir.export.pipeline import Export
from echoir.export.proof import summary
from echoir.export.proof.golden import read_golden
from echoir.export.proof.results import Gate, ParityReport
from echoir.export.request import Request
from echoir.export.sources import Source, checkpoint_source
from echoir.forms import FORMS
from echoir.metrics import to_8bit
from echoir.networks.upsampler import EchoUpsampler
from echoir.runtime import Artifact, Restorer
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import BackendError, ImageError
from echoir.runtime.files import sha256_file, staged
from echoir.runtime.tiling import reflect

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; gives exit code, standard output, standard error."""

    def run_(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.run(cli.cli, [str(argument) for argument in arguments], name="echoir")
        captured = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, captured.out, captured.err

    return run_


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network small enough to export in seconds."""
    torch.manual_seed(0)
    network = small_network()
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    save_checkpoint(path, network, "denoise", "tiny", {})
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture of 2 x 1 tiles."""
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[0:32, 0:48] / 48
    Image.fromarray(to_8bit(np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x * y)], axis=2))).save(folder / "wave.png")
    return folder


@pytest.fixture(scope="module")
def arguments(weights: Path, pictures: Path) -> list[object]:
    return [
        "export",
        "--weights",
        weights,
        "--target",
        "onnx",
        "--tile",
        32,
        "--overlap",
        8,
        "--data",
        pictures,
        "--threads",
        1,
    ]


def without_tile(arguments: list[object]) -> list[object]:
    place = arguments.index("--tile")
    return arguments[:place] + arguments[place + 2 :]


@pytest.fixture(scope="module")
def exported(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real fp16 export."""
    folder = tmp_path_factory.mktemp("export") / "toy"
    with pytest.raises(SystemExit) as end:
        cli.run(cli.cli, [str(argument) for argument in [*arguments, "-o", folder]], name="echoir")
    assert end.value.code == 0
    return folder


@pytest.fixture
def instant(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export by copying the model made once, for tests of what happens around it."""
    nodes = Artifact.open(exported).manifest.precision.higher["float32"]

    def copy(source: Source, path: Path, **_: Any) -> tuple[str, ...]:
        shutil.copyfile(exported / "toy-fp16.onnx", path)
        return nodes

    monkeypatch.setattr(pipeline, "export_onnx", copy)


def test_export_writes_model_manifest_figures_and_report(exported: Path, weights: Path, pictures: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert names == {"toy-fp16.onnx", "toy-fp16.json", "toy-fp16.golden.npz", "parity.json", "report.html"}
    manifest = Artifact.open(exported).manifest
    assert manifest.checkpoint.sha256 == sha256_file(weights)
    assert (manifest.tile.height, manifest.tile.width, manifest.tile.overlap, manifest.tile.batch) == (32, 32, 8, 1)
    assert manifest.precision.name == "fp16"
    assert len(manifest.precision.higher["float32"]) > 0
    assert manifest.parity is not None
    written = json.loads((exported / "parity.json").read_text())
    assert written["artifact"]["sha256"] == sha256_file(exported / "toy-fp16.onnx")
    for part in ("conditions", "figures", "gate"):
        assert manifest.parity[part] == written[part]
    assert written["gate"] == {"min_psnr": 55.0, "max_drop": 0.02, "passed": True, "failures": []}
    assert written["figures"]["engine_against_pytorch"]["psnr_min"] > 55
    assert written["figures"]["against_whole"]["seam"]["psnr"] is not None
    assert written["images"][0]["name"] == "wave.png"
    assert written["images"][0]["sha256"] == sha256_file(pictures / "wave.png")
    conditions = written["conditions"]
    assert conditions["session"]["provider"] == "CPUExecutionProvider"
    assert conditions["session"]["onnxruntime"] == onnxruntime.__version__
    assert conditions["host"] == platform.node()
    assert datetime.fromisoformat(conditions["date"]).tzinfo is not None


def test_the_golden_tiles_are_what_pytorch_makes_of_their_inputs(exported: Path, weights: Path) -> None:
    artifact = Artifact.open(exported)
    tiles = read_golden(artifact)
    assert artifact.manifest.golden is not None
    assert len(tiles) == artifact.manifest.golden.tiles == len(FORMS)
    network = load_checkpoint(weights).network
    for tile in tiles:
        assert tile.given.shape == (32, 32, 3)
        batch = torch.from_numpy(tile.given.transpose(2, 0, 1).copy())[None]
        with torch.inference_mode():
            made = network(batch)[0].permute(1, 2, 0).numpy()
        assert np.abs(made - tile.expected).max() < (12 * tile.rounding) ** 0.5 / 2 + 1e-6


def test_exported_folder_restores(exported: Path) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    with Restorer.open(exported) as restorer:
        assert restorer(noisy).shape == noisy.shape


@pytest.mark.usefixtures("instant")
def test_an_earlier_export_is_replaced_only_by_force(run: Run, arguments: list[object], tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    assert run(*arguments, "-o", folder)[0] == 0
    (folder / "left-over.txt").write_text("old")
    code, _, error = run(*arguments, "-o", folder)
    assert code == 2
    assert "--force" in error
    assert (folder / "left-over.txt").is_file()
    code, output, _ = run(*arguments, "-o", folder, "--force")
    assert code == 0
    assert "gate passed" in output
    assert not (folder / "left-over.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_folder_of_something_else_is_never_replaced(run: Run, arguments: list[object], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    code, _, error = run(*arguments, "-o", tmp_path, "--force")
    assert code == 2
    assert "holds something else than an export" in error
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.usefixtures("instant")
def test_a_failed_gate_keeps_the_files_aside(run: Run, arguments: list[object], tmp_path: Path) -> None:
    for _ in range(2):  # the second takes the first one's place
        code, _, error = run(*arguments, "-o", tmp_path / "toy", "--min-psnr", 200)
        assert code == 5
        assert "the gate is 200 dB" in error
        assert "toy.failed" in error
        assert [path.name for path in tmp_path.iterdir()] == ["toy.failed"]
    gate = Artifact.open(tmp_path / "toy.failed").manifest.parity
    assert gate is not None
    assert gate["gate"]["passed"] is False
    assert (tmp_path / "toy.failed" / "report.html").is_file()


@pytest.mark.usefixtures("instant")
def test_progress_as_json_lines(run: Run, arguments: list[object], tmp_path: Path) -> None:
    _, _, error = run(*arguments, "-o", tmp_path / "toy", "--log-json")
    events = [json.loads(line) for line in error.splitlines()]
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "end"
    assert events[-1]["done"] == events[-1]["total"] == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--precision", "fp8"), "fp8"),
        (("--tile", "250"), "a multiple of network.multiple, 32"),
        (("--tile", "0"), "at least a pixel"),
        (("--tile", "large"), "'large' is not a size"),
        (("--batch", "0"), "neither a number of tiles nor 'dynamic'"),
        (("--data", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--overlap", "32", "--tile", "32"), "overlap"),
        (("--fit", "1920"), "is not a size such as 1920x1080"),
        (("--fit", "1920x1080", "--tile", "256"), "drop --tile"),
        (("--most", "9000"), "--most is for --fit and for --tile free"),
        (("--tile", "free", "--most", "9000"), "256 x 256 has more pixels"),
        (("--tile", "free", "--tile", "256"), "free is every tile already"),
        (("--tile", "256", "--tile", "250"), "a multiple of network.multiple, 32"),
        (("--tile", "free", "--target", "tensorrt"), "an engine has a fixed tile"),
        (("--tile", "free", "--precision", "int8", "--calibration", "."), "int8 has a fixed tile"),
    ],
)
def test_wrong_usage_ends_with_2(run: Run, tmp_path: Path, option: tuple[str, ...], message: str) -> None:
    code, _, error = run("export", "-o", tmp_path / "out", *option)
    assert code == 2
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_the_current_folder_is_not_replaced(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = run("export", "-o", ".")
    assert code == 2
    assert "the folder you are in" in error


def test_missing_weights_and_unwritable_output_are_named(run: Run, arguments: list[object], tmp_path: Path) -> None:
    code, _, error = run("export", "--weights", "no-such", "-o", tmp_path / "out")
    assert code == 4
    assert "no-such" in error
    (tmp_path / "file").write_text("")
    code, _, error = run(*arguments, "-o", tmp_path / "file" / "out")
    assert code == 3
    assert "cannot write" in error


def test_the_network_decides_what_a_tile_is_a_multiple_of(
    run: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(weights)
    for module in checkpoint.network.modules():
        if isinstance(module, EchoUpsampler):
            module.radius = 2
    monkeypatch.setattr(pipeline, "open_source", lambda *_: checkpoint_source(checkpoint))
    code, _, error = run("export", "--tile", 48, "-o", tmp_path / "out")
    assert code == 2
    assert "tile.height: found 48, needed a multiple of network.multiple, 32" in error


def test_free_sides_and_the_tile_that_fits_are_settled_by_the_network() -> None:
    network = Descriptor("none", "denoise", 1, multiple=(32, 32))
    free = Request(tile="free").settled(network)
    assert (free.tile, free.most, free.overlap) == ((256, 256), 256 * 512, 24)
    fits = Request(fit=(1080, 1920), most=2_100_000).settled(network)
    assert (fits.tile, fits.most) == ((1088, 1920), None)
    assert Request(fit=(481, 321)).settled(network).tile == (512, 352)
    own = Request(tile="free").settled(Descriptor("none", "denoise", 1, multiple=(32, 32), tile=(512, 512)))
    assert (own.tile, own.most) == ((512, 512), 512 * 512)  # the network's own tile is never too large


def test_a_network_whose_export_has_one_size_is_refused_free_sides() -> None:
    with pytest.raises(click.BadParameter, match="--tile free: found GRL, whose export has one size"):
        Request(tile="free").settled(Descriptor("GRL", "sr", 1, multiple=(32, 32)))


@pytest.mark.slow  # PyTorch takes a while over symbolic sizes; test_onnx_export.py has a small network
def test_an_export_of_free_sides_restores_any_size_in_the_tile_that_fits(
    run: Run, arguments: list[object], weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "free"
    free = [*without_tile(arguments), "--precision", "fp32", "--tile", "free", "--target", "auto"]
    code, output, error = run(*free, "--most", 65_536, "-o", folder)
    assert code == 0, error
    assert "left out engines: they have one tile" in output
    with Restorer.open(folder, threads=1) as restorer:
        assert (restorer.manifest.tile.most, restorer.tiles(250, 250), restorer.tiles(300, 400)) == (65_536, 1, 2)
        network = load_checkpoint(weights).network
        for height, width in ((48, 32), (16, 160), (250, 33)):  # one tile each; PyTorch pads as the tiler does
            noisy = np.random.default_rng(0).random((height, width, 3), np.float32)
            padded = noisy[reflect(height, -(-height // 16) * 16)][:, reflect(width, -(-width // 16) * 16)]
            with torch.inference_mode():
                expected = network(torch.from_numpy(padded.transpose(2, 0, 1).copy())[None])[0].permute(1, 2, 0).numpy()
            np.testing.assert_allclose(restorer(noisy), expected[:height, :width], atol=2e-5)


def test_targets() -> None:
    assert engines(("auto",)) == {"tensorrt": False, "tensorrt-rtx": False}
    assert engines(("onnx",)) == {}
    assert engines(("auto", "tensorrt")) == {"tensorrt": True, "tensorrt-rtx": False}


def test_names_come_from_weights_precision_and_io() -> None:
    assert Request().folder == Path("echoir-denoise-fp16")
    assert Request(weights="runs/my net.safetensors", io="uint8").name == "my net-fp16-uint8"


@pytest.mark.usefixtures("instant")
def test_auto_says_what_it_left_out_and_a_named_target_fails(
    run: Run, arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, target: str, **__: object) -> None:
        raise BackendError(f"{target} is not here; run: pip install it")

    monkeypatch.setattr(build, "build_engine", refuse)
    arguments = [*(argument for argument in arguments if argument not in ("--target", "onnx")), "-o", tmp_path / "toy"]
    code, output, _ = run(*arguments, "--target", "auto")
    assert code == 0
    assert "left out tensorrt: tensorrt is not here; run: pip install it" in output
    assert "left out tensorrt-rtx" in output
    shutil.rmtree(tmp_path / "toy")
    monkeypatch.setitem(build.MODULES, "tensorrt", ("json", "tensorrt"))  # installed, but it refuses
    code, _, error = run(*arguments, "--target", "tensorrt")
    assert code == 6
    assert "pip install it" in error
    assert list(tmp_path.iterdir()) == []


def test_a_named_target_that_is_not_installed_fails_at_once(
    run: Run, arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(build.MODULES, "tensorrt", ("no_such_module", "tensorrt"))
    monkeypatch.setattr(pipeline, "export_onnx", None)  # would fail if called
    code, _, error = run(*arguments, "--target", "tensorrt", "-o", tmp_path / "toy")
    assert code == 6
    assert "pip install 'echoir[tensorrt]'" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tensorrt
@pytest.mark.slow
@pytest.mark.usefixtures("instant")
def test_an_engine_names_the_onnx_it_was_built_from(run: Run, arguments: list[object], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    folder = tmp_path / "toy"
    code, output, _ = run(*arguments, "--target", "tensorrt-rtx", "--compute-capability", "8.9", "-o", folder)
    assert code == 0
    assert "toy-fp16-tensorrt-rtx.engine" in output
    assert "not run here" in output
    manifest = Artifact.open(folder / "toy-fp16-tensorrt-rtx.engine").manifest
    assert manifest.engine is not None
    assert manifest.engine.compute_capability == ("8.9",)
    assert manifest.onnx_sha256 == sha256_file(folder / "toy-fp16.onnx")
    assert manifest.parity is None
    assert Artifact.open(folder).manifest.model.backend == "onnxruntime"


def test_a_stage_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "a").write_text("old")
    for error, seen in ((ZeroDivisionError(), ZeroDivisionError), (OSError(28, "No space left"), ImageError)):
        with pytest.raises(seen), staged(folder):
            raise error
    assert (folder / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_what_a_killed_export_left_goes_with_the_next_of_its_name_but_not_what_is_in_use(tmp_path: Path) -> None:
    left, other, old = (tmp_path / name for name in (".kept.abcd_123", ".other.abcd_123", ".kept.old-abcd_123"))
    for folder in (left, other, old):
        folder.mkdir()
        (folder / "half.onnx").touch()
    with staged(tmp_path / "kept") as first:
        (first / "a").write_text("new")
        with staged(tmp_path / "kept") as second:  # at the same time
            assert first.is_dir()
            (second / "a").write_text("newer")
    assert (tmp_path / "kept" / "a").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"kept", other.name, old.name}


# echoir parity


def test_parity_repeats_what_the_export_measured(
    run: Run, exported: Path, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    measure = ["parity", "-m", exported, "--weights", weights, "--data", pictures, "--threads", 1]
    code, output, _ = run(*measure, "-o", tmp_path)
    assert code == 0
    assert "gate passed" in output
    again, first = (json.loads((folder / "parity.json").read_text()) for folder in (tmp_path, exported))
    assert again["figures"] == first["figures"]
    assert (tmp_path / "report.html").is_file()


def test_parity_ends_with_5_when_the_gate_fails(run: Run, exported: Path, weights: Path, pictures: Path) -> None:
    code, output, error = run(
        "parity", "-m", exported, "--weights", weights, "--data", pictures, "--threads", 1, "--min-psnr", 200
    )
    assert code == 5
    assert "gate FAILED" in output
    assert "the gate is 200 dB" in error


def test_parity_refuses_another_checkpoint(run: Run, exported: Path, pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, small_network(), "denoise", "tiny", {})
    code, _, error = run("parity", "-m", exported, "--weights", other, "--data", pictures)
    assert code == 4
    assert "checkpoint.sha256" in error
    assert "toy.safetensors" in error


def test_several_tiles_are_whole_exports_in_one_folder(
    run: Run, arguments: list[object], exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one export makes is tested above, and what a restorer does with several in test_fit.py."""
    folder, asked = tmp_path / "toy", list[Request]()

    def copy(request: Request, source: Source | None = None, **_: Any) -> Export:
        assert source is not None
        asked.append(request.settled(source.descriptor))
        shutil.rmtree(request.folder, ignore_errors=True)
        shutil.copytree(exported, request.folder)
        made = Artifact.open(request.folder)
        report = ParityReport(made.manifest, {}, None, (), Gate(None, None), ())
        return Export(request.folder, (made,), report, ())

    monkeypatch.setattr(tiles, "export_artifact", copy)
    monkeypatch.setattr(summary, "lines", lambda _: ["measured"])
    code, _, error = run(*arguments, "--tile", "32x64", "-o", folder)
    assert code == 0, error
    assert sorted(path.name for path in folder.iterdir()) == ["32x32", "32x64"]
    assert [(one.tile, one.fit, one.most) for one in asked] == [((32, 32), None, None), ((32, 64), None, None)]
    # Again with other ones: those before go, and only on demand.
    again = [*without_tile(arguments), "--fit", "64x32", "--fit", "62x30", "--fit", "32x32", "-o", folder]
    assert "holds an earlier export" in run(*again)[2]
    code, _, error = run(*again, "--force", "--most", 2048)
    assert code == 0, error
    assert sorted(path.name for path in folder.iterdir()) == ["32x32", "32x64"]
    assert [one.tile for one in asked[2:]] == [(32, 64), (32, 32)]
    assert run(*arguments, "--tile", "64x32", "--force", "-o", folder)[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["32x32", "64x32"]
    (folder / "notes.txt").write_text("mine")
    assert "holds something else" in run(*again, "--force")[2]
    # What one killed at its first tile leaves is no one else's.
    shutil.rmtree(folder)
    (folder / ".32x64.abcdef12").mkdir(parents=True)
    assert run(*again, "--force")[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["32x32", "32x64"]
