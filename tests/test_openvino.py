"""The OpenVINO session against ONNX Runtime's, and the choice between sessions."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Io, make_artifact, make_manifest
from running import echoir

from echoir.runtime import choice as module
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.caches import keep, recall
from echoir.runtime.choice import choose, picture_tiles
from echoir.runtime.contract import Described, Device, Session
from echoir.runtime.errors import ArtifactError, BackendError, MissingExtraError
from echoir.runtime.manifest import Precision, TensorSpec
from echoir.runtime.sessions import open_session

Array = np.ndarray[Any, np.dtype[Any]]
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="pip install 'echoir[openvino]'")


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "echoir"


@needs_openvino
@pytest.mark.parametrize("io", ["float", "uint8"])
@pytest.mark.parametrize(("batch", "count"), [(None, 3), (1, 2), (3, 7)])
def test_openvino_gives_what_onnxruntime_gives(
    io: Io, batch: int | None, count: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    artifact = make_artifact(tmp_path, io=io, batch=batch, tile=(16, 24), gain=0.75, bias=0.125)
    tiles: Array = rng.integers(0, 256, (count, 16, 24, 3), np.uint8)
    if io == "float":
        tiles = np.ascontiguousarray(tiles.transpose(0, 3, 1, 2), np.float32) / 255
    tiles.flags.writeable = False
    with (
        open_session(artifact, threads=1) as reference,
        open_session(artifact, threads=1, device="openvino") as session,
    ):
        assert isinstance(session, Described)
        assert session.facts()["provider"] == "CPU, f32"
        assert session.facts()["threads"] == "1"
        expected = reference.run(tiles)
        for _ in range(2):
            made = session.run(tiles)
            assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


@needs_openvino
def test_a_model_is_compiled_once(tmp_path: Path, fresh_cache: Path, rng: np.random.Generator) -> None:
    artifact = make_artifact(tmp_path, tile=(16, 24), gain=0.5)
    tiles = rng.random((1, 3, 16, 24), np.float32)
    open_session(artifact, threads=1, device="openvino").close()
    (blob,) = (fresh_cache / "openvino").iterdir()
    stamp = blob.read_bytes()
    with open_session(artifact, threads=1, device="openvino") as session:
        np.testing.assert_allclose(session.run(tiles), tiles * 0.5, atol=1e-7)
    blob.write_bytes(b"damaged")
    with open_session(artifact, threads=1, device="openvino") as session:
        np.testing.assert_allclose(session.run(tiles), tiles * 0.5, atol=1e-7)
    assert len(blob.read_bytes()) == len(stamp)


@needs_openvino
def test_openvino_refuses_a_model_unlike_its_manifest(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    named = TensorSpec("frame", "NCHW", "float32", (0.0, 1.0))
    for changes, field in (({"tile": (64, 32)}, "input.shape"), ({"output": named}, "output.name")):
        other = make_artifact(tmp_path, "other", **changes)
        other.model_path.write_bytes(artifact.model_path.read_bytes())
        with pytest.raises(ArtifactError) as caught:
            open_session(write_artifact(other.manifest, other.model_path), device="openvino")
        assert caught.value.field == field


@needs_openvino
def test_a_closed_openvino_session_does_not_run(identity: Artifact) -> None:
    session = open_session(identity, device="openvino")
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.run(np.zeros((1, 3, 64, 64), np.float32))


def test_a_missing_openvino_gives_the_install_line(identity: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"openvino is not installed.*echoir\[openvino\]"):
        open_session(identity, device="openvino")


class Timed:
    """A session that gives its tiles back, changed by ``error``, after ``seconds`` by the test's clock."""

    def __init__(self, clock: list[float], seconds: float, error: float) -> None:
        self.clock, self.seconds, self.error = clock, seconds, error

    def run(self, tiles: Array) -> Array:
        self.clock[0] += self.seconds
        return tiles + np.float32(self.error)

    def close(self) -> None: ...

    def __enter__(self) -> Timed:
        return self

    def __exit__(self, *exception: object) -> None: ...


@pytest.mark.parametrize(
    ("sessions", "chosen"),
    [
        ({"cpu": (1.0, 0.0), "openvino": (0.5, 1e-4), "openvino-bf16": (0.2, 1e-3)}, "openvino-bf16"),  # 60 dB
        ({"cpu": (1.0, 0.0), "openvino": (0.5, 1e-4), "openvino-bf16": (0.2, 3e-3)}, "openvino"),  # 50 dB
        ({"cpu": (1.0, 0.0), "openvino": (0.97, 0.0), "openvino-bf16": (2.0, 0.0)}, "cpu"),  # hardly quicker
        ({"cpu": (1.0, 0.0), "openvino": (0.5, float("nan")), "openvino-bf16": None}, "cpu"),
    ],
)
def test_the_quickest_that_passes_is_chosen_and_remembered(
    sessions: dict[str, tuple[float, float] | None], chosen: str, identity: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, opened = [0.0], []
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(module, "installed", lambda: list(sessions))

    def open_(device: Device) -> Session:
        opened.append(device)
        if (behaviour := sessions[device]) is None:
            raise BackendError("this processor has no bfloat16")
        return Timed(clock, *behaviour)

    choice = choose(identity, open_)
    assert (choice.device, choice.remembered) == (chosen, False)
    assert opened == list(sessions)
    for figure in choice.figures:
        behaviour = sessions[figure.device]
        assert figure.seconds == (None if behaviour is None else pytest.approx(behaviour[0]))
        if behaviour and behaviour[1] > 0:
            assert figure.psnr == pytest.approx(-20 * np.log10(behaviour[1]), abs=0.01)
    again = choose(identity, open_)
    assert (again.device, again.remembered, len(opened)) == (chosen, True, len(sessions))
    assert choose(identity, open_, threads=1).remembered is False  # another number of threads is another question


@pytest.mark.parametrize(
    ("precision", "parity", "least"),
    [("fp32", 53.0, 55.0), ("int8", 53.0, 50.0), ("int8", 70.0, 55.0), ("int8", None, 55.0)],
)
def test_roundings_of_int8_may_be_as_far_apart_as_two_of_one_size_are(
    precision: Any, parity: float | None, least: float
) -> None:
    """Errors of equal size that are independent add up to twice the square."""
    figures = None if parity is None else {"figures": {"engine_against_pytorch": {"psnr_min": parity}}}
    assert module.gate(make_manifest(precision=Precision(precision), parity=figures)) == pytest.approx(least)


def test_a_damaged_memory_is_measured_again(
    identity: Artifact, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed", lambda: ["cpu", "openvino"])
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    open_ = lambda device: Timed(clock, 1.0, 0.0)  # noqa: E731
    for damage in ("", "[]", '{"device": "gpu", "figures": []}', '{"device": "cpu", "figures": [{"x": 1}]}'):
        choose(identity, open_)
        (file,) = (fresh_cache / "sessions").iterdir()
        keep(file, damage.encode(), 1000)
        assert choose(identity, open_).remembered is False
        assert json.loads(recall(file) or b"")["device"] == "cpu"


@pytest.mark.parametrize(("io", "tile"), [("float", (64, 96)), ("uint8", (640, 304))])
def test_tiles_of_pictures_fit_the_model(io: Io, tile: tuple[int, int], tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, io=io, tile=tile, batch=2)
    tiles = picture_tiles(artifact.manifest)
    assert len(tiles) == 4
    with open_session(artifact) as session:
        for one in tiles:
            assert session.run(one).shape == one.shape
            assert one.astype(np.float32).std() > 0.05 * artifact.manifest.input.range[1]


@needs_openvino
def test_restore_runs_where_it_is_told_and_says_what_auto_came_to(gain: Artifact, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    arguments = (
        "restore",
        tmp_path / "a.png",
        "-m",
        gain.model_path,
        "-o",
        tmp_path / "b.png",
        "--exists",
        "overwrite",
    )
    for device, says in (("openvino", ""), ("auto", "measured now"), ("auto", "as measured before")):
        result = echoir(*arguments, "--device", device, "--threads", 1)
        assert (result.code, says in result.err) == (0, True), result.err
        assert np.abs(np.asarray(Image.open(tmp_path / "b.png")) - pixels / 2).max() <= 0.5


@needs_openvino
def test_bench_compares_with_every_session_here(identity: Artifact, tmp_path: Path) -> None:
    arguments = ("--against", "all", "--iterations", 2, "--warmup", 1, "--threads", 1, "--no-profile")
    result = echoir("bench", "-m", identity.model_path, *arguments, "--json", tmp_path / "b.json")
    assert result.code == 0, result.err
    figures = json.loads((tmp_path / "b.json").read_text())
    assert "openvino" in figures["ratios"]
    assert figures["psnr"]["openvino"] is None
    assert "openvino against cpu, the worst of the shipped pictures: the same to the bit" in result.out


def test_bench_leaves_out_what_does_not_run_here_unless_it_was_named(
    identity: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed", lambda: ["cpu", "cuda"])
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    arguments = ("bench", "-m", identity.model_path, "--iterations", 2, "--warmup", 1, "--threads", 1, "--no-profile")
    result = echoir(*arguments, "--against", "all")
    assert result.code == 0, result.err
    assert "cuda is left out: ONNX Runtime has no CUDAExecutionProvider here" in result.err
    assert echoir(*arguments, "--against", "cuda").code == 6
