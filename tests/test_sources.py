"""Networks as the export takes them: what was declared is held to what a run shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from builders import make_source, small_network
from torch import Tensor, nn

from echoir.calibration.graph import Graph
from echoir.calibration.sensitivity import groups
from echoir.evaluate import restore_whole
from echoir.export import whole
from echoir.export.lowering import lowering_of
from echoir.export.sources import TorchSource, open_source
from echoir.export.typed import export_onnx
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError

TRUTH = Descriptor("Toy", "sr", 0, scale=2, multiple=(4, 8))


class Toy(nn.Module):
    """Enlarges by ``scale`` after halving ``levels`` times, so sides must be multiples of 2 ** levels."""

    def __init__(self, inputs: int = 3, outputs: int = 3, scale: int = 2, levels: tuple[int, int] = (2, 3)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.cell = scale, tuple(2**level for level in levels)
        self.embed = nn.Conv2d(inputs, outputs * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        h, w = self.cell
        x = x.view(n, c, height // h, h, width // w, w).reshape(n, c, height, width)  # fails where they do not divide
        return F.pixel_shuffle(self.embed(x), self.scale)


def test_a_true_description_is_taken_as_it_is() -> None:
    source = TorchSource(Toy(), TRUTH)
    assert source.descriptor == TRUTH
    assert source.record.name == "Toy"
    assert source.record == TorchSource(Toy(), TRUTH).record
    other = Toy()
    with torch.no_grad():
        other.embed.weight[0, 0, 0, 0] += 1
    assert source.record.sha256 != TorchSource(other, TRUTH).record.sha256


@pytest.mark.parametrize(
    ("lie", "field", "found"),
    [
        ({"scale": 3}, "network.scale", "found 2, needed 3"),
        ({"scale": 1}, "network.scale", "found 2, needed 1"),
        ({"input": "gray"}, "network.input", r"found RGB \(3\), needed gray \(1\)"),
        ({"input": "RGB pair"}, "network.input", r"found RGB \(3\), needed RGB pair \(6\)"),
        ({"output": "gray"}, "network.output", r"found 3 planes, needed gray \(1\)"),
        ({"multiple": (4, 4)}, "network.multiple", "found 8, needed 4"),
        ({"multiple": (1, 2)}, "network.multiple", "found 8, needed 1 x 2"),
    ],
)
def test_a_lie_is_refused_by_name(lie: dict[str, Any], field: str, found: str) -> None:
    with pytest.raises(ArtifactError, match=found) as caught:
        TorchSource(Toy(), replace(TRUTH, **lie))
    assert caught.value.field == field
    assert caught.value.exit_code == 4


class Spoilt(nn.Module):
    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self.spoil = spoil

    def forward(self, x: Tensor) -> Any:
        return self.spoil(x)


@pytest.mark.parametrize(
    ("spoil", "field", "message"),
    [
        (lambda x: (x, x), "network.output", "found a tuple, needed one tensor"),
        (lambda x: {"image": x}, "network.output", "found a dict"),
        (lambda x: x[0], "network.output", "a tensor of 3 axes"),
        (lambda x: x[..., 1:-1, 1:-1], "network.scale", "40 x 56 pixels become 38 x 54"),
        (lambda x: F.interpolate(x, scale_factor=1.5), "network.scale", "become 60 x 84, needed 1 times"),
        (lambda x: x.mT, "network.scale", "40 x 56 pixels become 56 x 40"),
        (lambda x: x * float("nan"), "network", "NaN or infinite"),
        (lambda x: F.interpolate(F.avg_pool2d(x, 32), scale_factor=32), "network.multiple", "found 32, since"),
        (lambda x: 1 / 0, "network", r"fails on \d+ x \d+ pixels \(division by zero\)"),
    ],
)
def test_a_module_that_gives_no_picture_is_refused(spoil: Any, field: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        TorchSource(Spoilt(spoil), Descriptor("Toy", "sr", 0, multiple=(8, 8)))
    assert caught.value.field == field


def test_the_whole_is_padded_where_the_network_needs_multiples(rng: np.random.Generator) -> None:
    module = Toy()
    image = rng.random((13, 21, 3), np.float32)
    whole = TorchSource(module, TRUTH).whole(image)
    assert whole is not None
    assert whole.shape == (26, 42, 3)
    padded = np.pad(image, ((0, 3), (0, 3), (0, 0)), mode="reflect")
    expected = module(torch.from_numpy(padded.transpose(2, 0, 1))[None])[0].permute(1, 2, 0).detach().numpy()
    np.testing.assert_array_equal(whole, expected[:26, :42])


def test_the_whole_of_a_network_for_any_size_is_the_network(rng: np.random.Generator) -> None:
    network = small_network().eval()
    image = rng.random((13, 21, 3), np.float32)
    np.testing.assert_array_equal(make_source(network).whole(image), restore_whole(network, image))


def test_no_whole_of_a_picture_too_large_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((16, 16, 3), np.float32)
    source = TorchSource(Toy(), TRUTH)
    monkeypatch.setattr(whole, "WHOLE_BUDGET", 12 * 256)  # Toy's largest: 3 planes times 2 x 2
    assert source.whole(image) is not None
    monkeypatch.setattr(whole, "WHOLE_BUDGET", 12 * 256 - 1)
    assert source.whole(image) is None


def test_a_shipped_checkpoint_opens_by_name() -> None:
    source = open_source("denoise")
    assert source.record.name == "denoise"
    assert source.descriptor.task == "denoise"
    assert source.descriptor.config["width"] == 32


class Stranger(nn.Module):
    """Of no architecture that the export knows: norms, global means and a shuffle, gray in and out, twice the size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(1, 8)
        self.body, self.depthwise = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.tail = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        y = y + self.depthwise(self.body(self.norm(y))) * y.mean((2, 3), keepdim=True)
        enlarged = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.pixel_shuffle(self.tail(y), 2) + enlarged


@pytest.mark.parametrize(("precision", "floor"), [("fp32", 110), ("fp16", 55)])
@pytest.mark.parametrize("batch", [1, None])
def test_a_network_of_unknown_architecture_is_exported_as_it_is(
    tmp_path: Path, rng: np.random.Generator, precision: Any, floor: float, batch: int | None
) -> None:
    module = Stranger()
    source = TorchSource(module, Descriptor("Stranger", "sr", 1, scale=2, input="gray", output="gray"))
    kept = export_onnx(source, tmp_path / "x.onnx", tile=(16, 24), precision=precision, batch=batch)
    image = rng.random((batch or 3, 1, 16, 24), np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    output = session.run(None, {"input": image})[0]
    with torch.no_grad():
        expected = module(torch.from_numpy(image)).numpy()
    assert output.shape == (batch or 3, 1, 32, 48)
    assert -10 * np.log10(np.mean((output - expected) ** 2)) > floor
    assert bool(kept) == (precision == "fp16")


def test_calibration_groups_neighbours_where_nothing_is_known() -> None:
    source = TorchSource(Stranger(), Descriptor("Stranger", "sr", 1, scale=2, input="gray", output="gray"))
    graph = Graph(source.graph(tile=(16, 24), batch=1, io="float"), lowering_of("Stranger").int8)
    found = groups(graph)
    layers = [layer.name for group in found for layer in group.layers]
    assert sorted(layers) == sorted(["embed/Conv", "body/Conv", "depthwise/Conv", "tail/Conv"])
    for group in found:
        assert len({layer.kind for layer in group.layers}) == 1
    assert sum(group.macs for group in found) == graph.macs
