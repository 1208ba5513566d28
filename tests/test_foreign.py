"""Networks that somebody brings: checkpoints, functions, bare ONNX files; the whole chain, and refusals."""

from __future__ import annotations

import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from running import Result, echoir
from test_report import Page
from torch import Tensor, nn

from echoir.export.declared import Declared
from echoir.export.sources import TorchSource, open_source
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError

MINE = """
import torch
from torch import nn
from echoir.runtime.descriptor import Descriptor

class Enlarge(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Conv2d(3, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
    def forward(self, x):
        return self.shuffle(self.body(x)) * 0.1 + nn.functional.interpolate(x, scale_factor=2, mode="nearest")

def build():
    return Enlarge(), Descriptor("Enlarge", "sr", 336, scale=2, overlap=8, tile=(64, 64))
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    y, x = np.mgrid[0:150, 0:170] / 170
    pixels = np.stack([x, y, 0.5 + 0.4 * np.sin(30 * x * y)], axis=2)
    Image.fromarray(np.rint(255 * pixels).astype(np.uint8)).save(folder / "waves.png")
    return folder


def export(folder: Path, weights: object, pictures: Path, *options: object) -> Result:
    given = ("--weights", weights, "--data", pictures, "--target", "onnx", "--threads", 1, "-o", folder / "out")
    return echoir("export", *given, "--precision", "fp32", *options)


def restored(folder: Path, picture: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    done = echoir("restore", picture, "-m", folder / "out", "-o", folder / "restored.png")
    assert done.code == 0
    with Image.open(folder / "restored.png") as image:
        return np.asarray(image)


def check_that_it_doubles(tmp_path: Path, weights: object, pictures: Path) -> None:
    """The artifact restores, its report shows what it is judged beside, and parity finds its source again."""
    assert restored(tmp_path, pictures / "waves.png").shape == (300, 340, 3)
    report = Page((tmp_path / "out" / "report.html").read_text())
    words = re.findall("input|bicubic|PyTorch|engine|truth|difference", report.text.split("Worst first")[1])
    assert [*dict.fromkeys(words)][:6] == ["engine", "PyTorch", "difference", "input", "bicubic", "truth"]
    given, bicubic, _, _, truth, _ = (picture.astype(float) for picture in report.images)
    original = np.asarray(Image.open(pictures / "waves.png"))
    assert given.shape == bicubic.shape == truth.shape == original.shape
    assert np.abs(truth - original).mean() < 3  # a lossy picture
    small = given[::2, ::2]
    assert np.abs(given - small.repeat(2, 0).repeat(2, 1)).mean() < 3
    assert np.abs(bicubic - original).mean() < np.abs(given - original).mean()
    again = echoir("parity", tmp_path / "out", "--weights", weights, "--data", pictures)
    assert again.code == 0


# A function of one's own.


def test_a_function_goes_through_the_whole_chain(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    weights = f"{tmp_path}/mine.py:build"
    made = export(tmp_path, weights, pictures, "--overlap", 16)
    assert made.code == 0
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert parity["figures"]["engine_against_pytorch"]["psnr_min"] > 100
    assert parity["conditions"]["degradation"]["reduced"] == "2 times, bicubic"
    check_that_it_doubles(tmp_path, weights, pictures)


def test_an_artifact_cannot_name_code_that_is_run(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    assert export(tmp_path, f"{tmp_path}/mine.py:build", pictures, "--overlap", 16).code == 0
    (tmp_path / "mine.py").write_text("raise SystemExit('it was run')")
    refused = echoir("parity", tmp_path / "out", "--data", pictures)
    assert refused.code == 4
    assert "it names code, which is not run unless you name it: --weights" in refused.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(): return 1 / 0", "which fails (ZeroDivisionError: division by zero)"),
        ("import nothing_of_this_name", "which fails (ModuleNotFoundError"),
        ("def make(): pass", "it has no 'build'"),
        ("def build(): return 3", "gives int, needed a pair (torch.nn.Module, Descriptor)"),
        (MINE.replace("return Enlarge(), Desc", "return Enlarge(), str, Desc"), "needed a pair"),
        (MINE.replace("scale=2", "scale=3"), "network.scale: found 2, needed 3"),
        (MINE.replace("return self.shuffle", "return x, self.shuffle"), "network.output: found a tuple, needed one"),
        (MINE.replace("scale=2, ", "scale=2, input='gray', "), "network.input: found RGB (3), needed gray (1)"),
        (MINE.replace("scale=2, ", "scale=2, output='gray', "), "network.output: found 3 planes, needed gray (1)"),
        (
            MINE.replace("self.shuffle(self.body(x)) * 0.1 +", "").replace("scale_factor=2", "scale_factor=1.5"),
            "network.scale: found 41 x 57 pixels become 61 x 85, needed 2 times the input's size",
        ),
        (
            MINE.replace("self.shuffle(self.body(x))", "self.shuffle(self.body(x[..., : x.shape[-1] // 8 * 8]))"),
            "network.multiple: found 8, needed 1",
        ),
        (
            MINE.replace("* 0.1 +", "* 0.1 + 0.5 * torch.eye(4).repeat(x.shape[2] // 2 + 1, x.shape[3] // 2 + 1)"
                         "[: 2 * x.shape[2], : 2 * x.shape[3]] +"),
            "network.phase: found 2 down, needed 1",
        ),
    ],
)  # fmt: skip
def test_a_function_that_gives_no_network_or_lies_is_refused(
    tmp_path: Path, pictures: Path, text: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    refused = export(tmp_path, f"{tmp_path}/mine.py:build", pictures)
    assert refused.code == 4
    assert message in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "out").exists()


def test_flags_that_contradict_weights_which_say_what_they_are_are_refused(tmp_path: Path, pictures: Path) -> None:
    refused = export(tmp_path, "denoise", pictures, "--scale", 2)
    assert refused.code == 4
    assert "network.scale: found 1, needed 2; these weights say what they are; drop the flag" in refused.err


# What is measured where nothing is said.


class Blocks(nn.Module):
    """Means over windows of 8 x 8 that lie in a grid from the corner; sides are filled up by itself."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % 8, 0, -height % 8), mode="reflect")
        mean = F.avg_pool2d(x, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return (0.5 * x + 0.5 * mean)[..., :height, :width]


def test_channels_scale_multiple_and_phase_are_measured() -> None:
    from echoir.export.probe import describe

    found = describe(Blocks(), Declared(), parameters=0)
    assert (found.phase, found.multiple, found.scale, found.input, found.task) == ((8, 8), (1, 1), 1, "RGB", "restore")
    assert found.measured == ("scale", "input", "output", "multiple", "phase")
    gray = nn.Sequential(nn.Conv2d(1, 9, 3, padding=1), nn.PixelShuffle(3))
    found = describe(gray, Declared(multiple=(2, 2)), parameters=0)
    assert (found.input, found.output, found.scale, found.task, found.tile) == ("gray", "gray", 3, "sr", (128, 128))
    assert found.phase == (1, 1)
    halves = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 48, 1), nn.PixelShuffle(4))
    found = describe(halves, Declared(), parameters=0)
    assert (found.multiple, found.phase) == ((4, 4), (4, 4))


class Sums(nn.Module):
    """A smooth picture plus a little of what lies before each pixel in its window of 16: one pixel's move changes less
    than that of half a window, and what lies far off has a share everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        filled = F.pad(x, (0, -width % 16, 0, -height % 16), mode="reflect")
        parts = filled.unfold(2, 16, 16).unfold(3, 16, 16).cumsum(-1).cumsum(-2) / 256
        made = parts.permute(0, 1, 2, 4, 3, 5).reshape(filled.shape)[..., :height, :width]
        return 0.98 * x + 0.02 * made + 0.01 * x.mean(dim=(2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("steady", "phase"),
    [
        # A transformer with windows of 16 and a U-Net with attention over the whole tile, as measured; dB by distance.
        ([55.8, 52.7, 50.2, 48.6, 49.3, 49.2, 49.7, 50.0, 50.3, 64.3, 61.1], 16),
        ([45.7, 49.5, 45.6, 53.4, 45.6, 49.3, 45.7, 62.9, 53.1, 61.2, 56.9], 8),
        ([60.0, 58.0, 57.0, 56.0, 55.5, 55.0, 54.7, 54.5, 54.0, 53.0, 51.0], 1),  # borders alone
        ([math.inf] * 11, 1),
        ([40.0, math.inf] * 4 + [math.inf] * 3, 2),
    ],
)
def test_a_phase_stands_out_from_the_usual_distance(
    steady: list[float], phase: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from echoir.export import probe

    values = dict(zip(probe.SHIFTS, steady, strict=True))
    monkeypatch.setattr(probe._Steadiness, "__call__", lambda _, axis, shift: values[shift])
    assert probe.describe(nn.Conv2d(3, 3, 1), Declared(), parameters=0).phase == (phase, phase)


def test_a_phase_is_found_where_moves_by_one_pixel_change_little() -> None:
    from echoir.export.probe import describe

    assert describe(Sums(), Declared(), parameters=0).phase == (16, 16)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Upsample(scale_factor=1.5), "network.scale: found 64 x 64 pixels become 96 x 96"),
        (nn.Upsample(scale_factor=8), "become 512 x 512"),
        (nn.Conv2d(3, 5, 1), "network.output: found 5 planes, needed 1"),
        (nn.Conv2d(7, 3, 1), "say what it takes: --channels, --multiple"),
    ],
)
def test_what_gives_no_picture_is_refused(module: nn.Module, message: str) -> None:
    from echoir.export.probe import describe

    with pytest.raises(ArtifactError, match=message):
        describe(module, Declared(), parameters=0)


# Checkpoints.


class Bomb:
    def __reduce__(self) -> Any:
        return (subprocess.run, (["touch", "/tmp/it-was-run"],))


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_not_run(tmp_path: Path, pictures: Path) -> None:
    touched = tmp_path / "it-was-run"
    bomb = Bomb()
    Bomb.__reduce__ = lambda self: (subprocess.run, (["touch", str(touched)],))  # type: ignore[method-assign]
    torch.save({"params": {"weight": torch.zeros(3), "more": bomb}}, tmp_path / "model.pth")
    refused = export(tmp_path, tmp_path / "model.pth", pictures)
    assert refused.code == 4
    assert "objects or code beside its tensors" in refused.err
    assert "nothing of it was run" in refused.err
    assert not touched.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no checkpoint at all", "cannot be read|beside its tensors"),
        (b"", "cannot be read"),
        (pickle.dumps([1, 2]), "holding a list|cannot be read"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, pictures: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    refused = export(tmp_path, tmp_path / "model.pth", pictures)
    assert refused.code == 4
    assert any(one in refused.err for one in message.split("|"))
    assert "Traceback" not in refused.err


def test_a_missing_checkpoint_is_named(tmp_path: Path, pictures: Path) -> None:
    refused = export(tmp_path, tmp_path / "model.pth", pictures)
    assert refused.code == 4
    assert "model.pth" in refused.err


def spandrel() -> Any:
    return pytest.importorskip(
        "spandrel", reason="spandrel is not installed; pip install 'echoir[foreign]'", exc_type=ImportError
    )


def test_a_checkpoint_of_an_unknown_network_is_refused(tmp_path: Path, pictures: Path) -> None:
    spandrel()
    torch.save({"some.weight": torch.zeros(3, 3), "other.bias": torch.zeros(3)}, tmp_path / "model.pth")
    refused = export(tmp_path, tmp_path / "model.pth", pictures)
    assert refused.code == 4
    assert "model.pth, of no network that spandrel knows" in refused.err
    assert "FILE.py:FUNCTION" in refused.err


def test_without_spandrel_the_extra_is_named(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"some.weight": torch.zeros(3, 3)}, tmp_path / "model.pth")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    refused = export(tmp_path, tmp_path / "model.pth", pictures)
    assert refused.code == 6
    assert "[foreign]'" in refused.err


def test_a_torchvision_for_another_torch_is_named(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"some.weight": torch.zeros(3, 3)}, tmp_path / "model.pth")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "spandrel.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path / "broken")
    for name in [name for name in sys.modules if name.partition(".")[0] == "spandrel"]:
        monkeypatch.delitem(sys.modules, name)
    refused = export(tmp_path, tmp_path / "model.pth", pictures)
    assert refused.code == 6
    assert "(operator torchvision::nms does not exist): install the torchvision that is made for torch" in refused.err
    assert "Traceback" not in refused.err


def compact(folder: Path, scale: int = 2, channels: int = 3) -> Path:
    """A small checkpoint of a real architecture (SRVGGNetCompact), with weights that are small but random."""
    compact = spandrel().MAIN_REGISTRY["Compact"].architecture
    torch.manual_seed(0)
    tensors = {"body.0.weight": torch.randn(16, channels, 3, 3) * 0.1, "body.0.bias": torch.zeros(16)}
    tensors |= {"body.1.weight": torch.full((16,), 0.2)}
    tensors |= {"body.2.weight": torch.randn(16, 16, 3, 3) * 0.05, "body.2.bias": torch.zeros(16)}
    tensors |= {"body.3.weight": torch.full((16,), 0.2)}
    tensors |= {"body.4.weight": torch.randn(channels * scale**2, 16, 3, 3) * 0.02}
    tensors |= {"body.4.bias": torch.zeros(channels * scale**2)}
    assert compact.detect(tensors)
    torch.save({"params_ema": tensors}, folder / "compact.pth")
    return folder / "compact.pth"


def test_a_checkpoint_that_spandrel_knows_goes_through_the_whole_chain(tmp_path: Path, pictures: Path) -> None:
    weights = compact(tmp_path)
    made = export(tmp_path, weights, pictures, "--tile", 64)
    assert made.code == 0
    manifest = json.loads((tmp_path / "out" / "compact-fp32.json").read_text())
    network = manifest["network"]
    said = network["architecture"], network["scale"], network["input"], network["task"]
    assert said == ("RealESRGAN Compact", 2, "RGB", "sr")
    assert set(network["measured"]) == {"scale", "output", "multiple", "phase"}
    check_that_it_doubles(tmp_path, weights, pictures)


def test_a_hint_of_spandrel_is_not_trusted(tmp_path: Path) -> None:
    source = open_source(compact(tmp_path, scale=3))
    assert source.descriptor.scale == 3
    with pytest.raises(ArtifactError, match=r"network\.scale: found 3, needed 4"):
        open_source(tmp_path / "compact.pth", Declared(scale=4))


# Bare ONNX files.


def onnx_file(folder: Path, *, batch: Any = "n", size: Any = ("h", "w"), opset: int = 17, **changes: Any) -> Path:
    """Twice the size, with a convolution of three channels and its clip; ``changes`` spoil it."""
    rng = np.random.default_rng(0)
    weights = {
        "w": (rng.normal(0, 0.02, (12, 3, 3, 3)) + np.repeat(np.eye(3), 4, 0)[..., None, None] * CENTRE).astype("f4"),
        "b": np.zeros(12, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["picture", "w", "b"], ["wide"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["wide"], ["larger"], blocksize=2, mode="CRD"),
        *changes.get("nodes", []),
    ]
    inputs = [helper.make_tensor_value_info("picture", changes.get("type", TensorProto.FLOAT), [batch, 3, *size])]
    inputs += changes.get("inputs", [])
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("larger", TensorProto.FLOAT, [batch, 3, "H", "W"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path = folder / "theirs.onnx"
    onnx.save(model, path, **changes.get("save", {}))
    return path


CENTRE = np.pad(np.ones((1, 1)), 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("io", ["float", "uint8"])
def test_an_onnx_file_goes_through_the_whole_chain(tmp_path: Path, pictures: Path, precision: str, io: str) -> None:
    weights = onnx_file(tmp_path)
    given = ("--weights", weights, "--data", pictures, "--target", "onnx", "--threads", 1, "-o", tmp_path / "out")
    made = echoir("export", *given, "--precision", precision, "--tile", "48x64", "--io", io)
    assert made.code == 0
    assert "against the given ONNX in float32" in made.out
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert parity["conditions"]["reference"] == "the given ONNX in float32"
    assert parity["figures"]["engine_against_pytorch"]["psnr_min"] is None or (
        parity["figures"]["engine_against_pytorch"]["psnr_min"] > 52.5
    )
    check_that_it_doubles(tmp_path, weights, pictures)


def test_a_toml_beside_it_says_what_is_known_and_flags_go_before_it(tmp_path: Path) -> None:
    path = onnx_file(tmp_path)
    path.with_suffix(".toml").write_text('task = "enlarge"\noverlap = 12\nphase = [2, 2]\narchitecture = "Theirs"\n')
    descriptor = open_source(path, Declared(task="sr")).descriptor
    assert (descriptor.task, descriptor.overlap, descriptor.phase, descriptor.name) == ("sr", 12, (2, 2), "Theirs")
    assert set(descriptor.measured) == {"scale", "input", "output", "multiple"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scale = 3", "network.scale: found 2, needed 3"),
        ("scale = 5", r"theirs\.toml\.scale: found 5, needed a whole number from 1 to 4"),
        ('input = "CMYK"', r"theirs\.toml\.input: found 'CMYK', needed one of gray, RGB"),
        ("sharpness = 1", r"theirs\.toml\.sharpness: found an unknown field"),
        ("scale = ", "unreadable"),
    ],
)
def test_a_toml_that_lies_or_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = onnx_file(tmp_path)
    path.with_suffix(".toml").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        open_source(path)


def test_an_onnx_of_one_size_makes_tiles_of_that_size_alone(tmp_path: Path, pictures: Path) -> None:
    weights = onnx_file(tmp_path, batch=1, size=(64, 80))
    refused = export(tmp_path, weights, pictures, "--tile", 128)
    assert refused.code == 2
    assert "tile.width: found 128, needed a multiple of network.multiple, 80" in refused.err
    assert export(tmp_path, weights, pictures).code == 0
    manifest = json.loads((tmp_path / "out" / "theirs-fp32.json").read_text())
    assert (manifest["tile"]["height"], manifest["tile"]["width"]) == (64, 80)
    assert restored(tmp_path, pictures / "waves.png").shape == (300, 340, 3)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"inputs": [helper.make_tensor_value_info("sigma", TensorProto.FLOAT, [1])]},
            (),
            "has 2 inputs (picture, sigma), needed one input, a picture",
        ),
        ({"batch": 4}, (), "batch: found 1, needed 4, fixed in theirs.onnx; export with --batch 4"),
        ({"save": {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}}, (), "in other files"),
        ({"type": TensorProto.FLOAT16}, (), "onnx.checker accepts|an input of float16"),
        ({"size": (64, "w")}, (), "one side fixed and the other open"),
        ({}, ("--scale", 3), "network.scale: found 2, needed 3"),
        ({}, ("--channels", 1), "network.input: found RGB (3), needed gray (1)"),
    ],
)
def test_an_onnx_that_will_not_do_is_refused(
    tmp_path: Path, pictures: Path, changes: dict[str, Any], options: tuple[Any, ...], message: str
) -> None:
    refused = export(tmp_path, onnx_file(tmp_path, **changes), pictures, *options)
    assert refused.code == 4
    assert any(one in refused.err for one in message.split("|"))
    assert "Traceback" not in refused.err
    assert not (tmp_path / "out").exists()


def test_int8_of_a_fixed_batch_is_refused_before_any_work(tmp_path: Path, pictures: Path) -> None:
    weights = onnx_file(tmp_path, batch=4)
    for batch in ((), ("--batch", 4)):
        given = ("--precision", "int8", "--calibration", pictures, "--target", "onnx", "-o", tmp_path / "out")
        refused = echoir("export", "--weights", weights, *given, *batch)
        assert refused.code == 4
        assert "batch: found 4, fixed in theirs.onnx, needed 1 or an open one, since int8 calibrates on" in refused.err
        assert "export the ONNX again with an open batch" in refused.err
        assert not (tmp_path / "out").exists()


def test_an_onnx_with_control_flow_is_refused(tmp_path: Path, pictures: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["picture"], ["x"])], "b", [], [value])
    condition = numpy_helper.from_array(np.array(True), "yes")
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [condition],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "x.onnx")
    refused = export(tmp_path, tmp_path / "x.onnx", pictures)
    assert refused.code == 4
    assert "has control flow (If)" in refused.err


def test_what_is_no_onnx_is_refused(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not at all")
    refused = export(tmp_path, tmp_path / "x.onnx", pictures)
    assert refused.code == 4
    assert "x.onnx is no valid ONNX" in refused.err
    assert export(tmp_path, tmp_path / "absent.onnx", pictures).code == 4


# In Python.


def test_python_takes_a_module_and_its_description(tmp_path: Path, pictures: Path) -> None:
    from echoir.export.pipeline import export_artifact
    from echoir.export.request import Request

    source = TorchSource(nn.Upsample(scale_factor=3), Descriptor("Upsample", "sr", 0, scale=3, tile=(48, 48)))
    request = Request(
        weights="upsample", precision="fp32", targets=("onnx",), images=pictures, threads=1, output=tmp_path / "out"
    )
    made = export_artifact(request, source)
    assert made.report.passed
    assert made.artifacts[0].manifest.network.scale == 3
