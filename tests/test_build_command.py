"""What a device does without PyTorch: engines from an exported ONNX, golden tiles, and those for other tools."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from builders import make_artifact
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from running import echoir

from echoir.export import build
from echoir.export.engine import EngineInfo
from echoir.export.proof.golden import _as_stored, engine_tensors, make_golden, measure_golden, read_golden
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.errors import ArtifactError, BackendError
from echoir.runtime.files import sha256_file
from echoir.runtime.manifest import Manifest

Tiles = np.ndarray[Any, np.dtype[Any]]
ABSENT = ("torch", "PIL", "scipy", "skimage", "safetensors", "onnxscript", "onnxsim", "triton")


class Formula:
    """A session that computes what a function says."""

    def __init__(self, function: Callable[[Tiles], Tiles]) -> None:
        self.function = function

    def run(self, tiles: Tiles) -> Tiles:
        return self.function(tiles)

    def close(self) -> None: ...

    def __enter__(self) -> Formula:
        return self

    def __exit__(self, *exception: object) -> None: ...


def pictures(*sizes: tuple[int, int]) -> list[tuple[str, Tiles]]:
    rng = np.random.default_rng(5)
    return [(f"{h} x {w}", rng.normal(0.5, 0.3, (h, w, 3)).astype(np.float32)) for h, w in sizes]


def with_golden(folder: Path, sizes: tuple[tuple[int, int], ...] = ((64, 64), (40, 64)), **how: Any) -> Artifact:
    """An artifact that halves every pixel, and golden tiles of which a formula says the same."""
    artifact = make_artifact(folder, gain=0.5, **how)
    halves = (lambda codes: np.rint(codes / 2).astype(np.uint8)) if how.get("io") == "uint8" else (lambda x: x / 2)
    record = make_golden(artifact, Formula(halves), pictures(*sizes))
    values = {**artifact.manifest.__dict__, "golden": record}
    return write_artifact(Manifest(**values), artifact.model_path)


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); from echoir.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# Golden tiles


def test_an_engine_is_as_far_from_golden_tiles_as_it_was_put(tmp_path: Path) -> None:
    artifact = with_golden(tmp_path)
    rng = np.random.default_rng(0)
    for psnr, passed in ((80.0, False), (95.0, True)):
        off = Formula(lambda x, psnr=psnr: (x / 2 + 10 ** (-psnr / 20) * rng.standard_normal(x.shape)).astype("f"))
        report = measure_golden(artifact.manifest, off, read_golden(artifact))
        assert report.error.psnr == pytest.approx(psnr, abs=0.6)
        assert report.passed == passed, report.failures
    strict = measure_golden(artifact.manifest, off, read_golden(artifact), min_psnr=99.0)
    assert "the gate is 99 dB" in strict.failures[0]


def test_an_engine_that_gives_no_pixels_fails(tmp_path: Path) -> None:
    artifact = with_golden(tmp_path)
    report = measure_golden(artifact.manifest, Formula(lambda x: np.full_like(x, np.nan)), read_golden(artifact))
    assert not report.passed
    assert len(report.rejected) == 2
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["figures"] is None


@given(arrays.arrays(np.float32, (3, 4, 3), elements=st.floats(-2, 3, width=32)))
def test_an_output_is_stored_to_half_a_step(image: Tiles) -> None:
    codes, least, step = _as_stored(image)
    assert codes.dtype == np.uint16
    assert np.abs(least + step * codes.astype(float) - image).max() <= step / 2 * 1.0001


def test_codes_are_stored_as_they_are(tmp_path: Path) -> None:
    artifact = with_golden(tmp_path, io="uint8")
    for tile in read_golden(artifact):
        assert tile.given.dtype == tile.expected.dtype == np.uint8
        assert np.array_equal(tile.expected, np.rint(tile.given / 2))
        assert tile.rounding == 0


def test_golden_tiles_that_are_not_the_ones_kept_are_refused(tmp_path: Path) -> None:
    artifact = with_golden(tmp_path)
    path = tmp_path / "test.golden.npz"
    original = path.read_bytes()
    path.write_bytes(original[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"golden\.sha256.*edited, damaged or swapped"):
        read_golden(artifact)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"golden\.file.*copy them from where it was exported"):
        read_golden(artifact)


def test_artifacts_from_before_golden_tiles_still_open(tmp_path: Path) -> None:
    values = json.loads(make_artifact(tmp_path).manifest.to_json())
    del values["golden"], values["network"]["forms"], values["tile"]["most"]
    values["format"] = 2
    assert Manifest.from_json(json.dumps(values)).golden is None


# echoir parity without PyTorch


def test_without_torch_parity_says_which_proof_it_is(tmp_path: Path) -> None:
    with_golden(tmp_path)
    done = without_torch("parity", "-m", tmp_path, "-o", tmp_path / "figures")
    assert done.returncode == 0, done.stderr
    assert "against golden tiles: what PyTorch in float32 gave at the export" in done.stdout
    assert "gate passed" in done.stdout
    written = json.loads((tmp_path / "figures" / "parity.json").read_text())
    assert written["proof"] == "golden"
    assert [tile["name"] for tile in written["tiles"]] == ["64 x 64", "40 x 64"]
    assert written["figures"]["psnr_min"] > 90


def test_pictures_of_ones_own_want_pytorch(tmp_path: Path) -> None:
    with_golden(tmp_path)
    done = without_torch("parity", "-m", tmp_path, "--data", tmp_path)
    assert (done.returncode, "torch is not installed" in done.stderr) == (6, True)


def test_golden_tiles_can_be_asked_for_and_their_gate_fails_with_5(tmp_path: Path) -> None:
    with_golden(tmp_path)
    result = echoir("parity", "-m", tmp_path, "--golden", "--min-psnr", 200)
    assert result.code == 5
    assert "gate FAILED" in result.out
    assert echoir("parity", "-m", tmp_path, "--golden", "--sigma", 15).code == 2


def test_an_artifact_without_golden_tiles_says_so(tmp_path: Path) -> None:
    make_artifact(tmp_path)
    result = echoir("parity", "-m", tmp_path, "--golden")
    assert result.code == 4
    assert "golden: found nothing" in result.err


# echoir golden


@pytest.mark.parametrize("how", [{}, {"io": "uint8"}, {"batch": 2}], ids=["float", "uint8", "batch of 2"])
def test_tensors_for_others_are_what_the_model_takes_and_gives(how: dict[str, Any], tmp_path: Path) -> None:
    artifact = with_golden(tmp_path, **how)
    assert echoir("golden", tmp_path, "-o", tmp_path / "out").code == 0
    session = onnxruntime.InferenceSession(artifact.model_path)
    inputs, outputs = (np.load(tmp_path / "out" / f"{side}.npz") for side in ("inputs", "outputs"))
    for index, (height, width) in enumerate(((64, 64), (40, 64))):
        (restored,) = session.run(None, {"image": inputs[f"image_{index}"]})
        expected = outputs[f"restored_{index}"]
        part = restored[:, :height, :width] if how.get("io") == "uint8" else restored[:, :, :height, :width]
        assert np.abs(part.astype(float) - expected).max() < 1e-4


def test_raw_files_hold_the_bytes_of_a_batch(tmp_path: Path) -> None:
    artifact = with_golden(tmp_path)
    assert echoir("golden", tmp_path, "-o", tmp_path / "out", "--format", "trtexec").code == 0
    given, expected = engine_tensors(artifact.manifest, read_golden(artifact)[0])
    assert np.array_equal(np.fromfile(tmp_path / "out" / "input_0.bin", np.float32).reshape(1, 3, 64, 64), given)
    assert np.array_equal(np.load(tmp_path / "out" / "output_0.npy"), expected)


def test_polygraphy_finds_that_the_model_gives_the_outputs(tmp_path: Path) -> None:
    pytest.importorskip("polygraphy", reason="Polygraphy is not installed")
    artifact = with_golden(tmp_path, ((64, 64),), batch=1)
    assert echoir("golden", tmp_path, "-o", tmp_path / "out", "--format", "polygraphy").code == 0
    run = "import sys; from polygraphy.tools._main import main; sys.exit(main())"
    files = [f"--load-{side}" for side in ("inputs", "outputs")], ["inputs.json", "outputs.json"]
    loaded = [part for flag, name in zip(*files, strict=True) for part in (flag, str(tmp_path / "out" / name))]
    command = [sys.executable, "-c", run, "run", str(artifact.model_path), "--onnxrt", *loaded, "--rtol", "0"]
    for tolerance, code in (("1e-4", 0), ("1e-9", 1)):
        done = subprocess.run([*command, "--atol", tolerance], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr


def test_polygraphy_cannot_compare_a_part_of_a_tile(tmp_path: Path) -> None:
    pytest.importorskip("polygraphy", reason="Polygraphy is not installed")
    with_golden(tmp_path, ((40, 64),))
    result = echoir("golden", tmp_path, "-o", tmp_path / "out", "--format", "polygraphy")
    assert (result.code, "use --format npz" in result.err) == (4, True)


# echoir build


@pytest.mark.tensorrt
@pytest.mark.slow
def test_an_engine_is_built_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    (tmp_path / "a").mkdir()
    artifact = with_golden(tmp_path / "a", batch=1)
    command = ("build", tmp_path / "a", "--target", "tensorrt-rtx", "--compute-capability", "8.9", "-o", tmp_path / "b")
    done = without_torch(*command)
    assert done.returncode == 0, done.stderr
    assert "not run here; on the device: echoir parity -m test-tensorrt-rtx.engine" in done.stdout
    assert {path.name for path in (tmp_path / "b").iterdir()} == {
        "test-tensorrt-rtx.engine", "test-tensorrt-rtx.json", "test.golden.npz"
    }  # fmt: skip
    engine = Artifact.open(tmp_path / "b")
    assert engine.manifest.onnx_sha256 == sha256_file(artifact.model_path)
    assert engine.manifest.engine is not None
    assert engine.manifest.engine.compute_capability == ("8.9",)
    assert engine.manifest.parity is None
    assert len(read_golden(engine)) == 2
    again = without_torch(*command)
    assert (again.returncode, "--force" in again.stderr) == (2, True)
    assert without_torch("build", tmp_path / "b" / "test-tensorrt-rtx.engine", "-o", tmp_path / "c").returncode == 4


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Engines that are copies of the ONNX, and a session of whatever formula the list holds."""
    formula: list[Any] = [lambda x: x / 2]

    def build_engine(source: Path, path: Path, **_: Any) -> EngineInfo:
        path.write_bytes(source.read_bytes())
        return EngineInfo("11.4", ("8.7",), 1.0, 1, "Orin", "CUDA 13.0")

    monkeypatch.setattr(build, "build_engine", build_engine)
    monkeypatch.setattr(build, "open_session", lambda _: Formula(formula[0]))
    monkeypatch.setitem(build.MODULES, "tensorrt", ("json", "tensorrt"))
    return formula


@pytest.mark.usefixtures("built")
def test_an_engine_that_runs_here_is_proven_by_golden_tiles(tmp_path: Path) -> None:
    with_golden(tmp_path)
    result = echoir("build", tmp_path, "--target", "tensorrt")
    assert result.code == 0
    assert "gate passed" in result.out
    parity = Artifact.open(tmp_path / "test-tensorrt.engine").manifest.parity
    assert parity is not None
    assert parity["proof"] == "golden"
    assert parity["gate"]["passed"] is True


def test_an_engine_that_strays_is_kept_aside(built: list[Any], tmp_path: Path) -> None:
    with_golden(tmp_path)
    built[0] = lambda x: x * np.float32(0.6)
    result = echoir("build", tmp_path, "--target", "tensorrt")
    assert result.code == 5
    assert "test-tensorrt.failed" in result.err
    assert not (tmp_path / "test-tensorrt.engine").exists()
    assert (tmp_path / "test-tensorrt.failed" / "test-tensorrt.engine").is_file()


@pytest.mark.usefixtures("built")
def test_without_golden_tiles_an_engine_is_built_and_not_called_proven(tmp_path: Path) -> None:
    with_golden(tmp_path)
    (tmp_path / "test.golden.npz").unlink()
    result = echoir("build", tmp_path, "--target", "tensorrt")
    assert result.code == 0
    assert "an engine cannot be proven here" in result.err
    assert "gate" not in result.out


def test_where_nothing_can_be_built_every_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, target: str, **__: object) -> None:
        raise BackendError(f"{target} is not here")

    monkeypatch.setattr(build, "build_engine", refuse)
    with_golden(tmp_path)
    result = echoir("build", tmp_path)
    assert result.code == 6
    assert "tensorrt: tensorrt is not here; tensorrt-rtx: tensorrt-rtx is not here" in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"test.onnx", "test.json", "test.golden.npz"}
