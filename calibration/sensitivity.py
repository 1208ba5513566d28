"""What INT8 costs in dB: PSNR against ground truth, before and after, on tiles of their own."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from echoir.calibration.graph import Graph, Layer
from echoir.calibration.ranges import open_model
from echoir.calibration.sampler import Tile
from echoir.metrics import psnr, to_8bit
from echoir.runtime.files import atomic_write

STRETCHES = 16  # of a graph of which nothing is known; each has a group per kind of layer

Quantize = Callable[[Collection[Layer]], onnx.ModelProto]


class Drop(NamedTuple):
    """In dB: the mean over the tiles of that strength of the degradation where it is largest; and of the worst tile."""

    mean: float
    worst: float


@dataclass(frozen=True)
class Group:
    """Layers that go to INT8 together."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)


def groups(graph: Graph) -> list[Group]:
    """All layers that can be quantized, in the order of the graph.

    The network says which belong together. Where it does not, layers of one kind that follow each other make
    groups of about equal cost. Either way there are some dozens of groups however deep the network is, so the
    search takes as many measurements for a large one as for a small one.
    """
    stage = graph.structure.stage
    if stage is None:
        return _neighbours(graph.layers)
    found: dict[str, list[Layer]] = defaultdict(list)
    for layer in graph.layers:
        found[stage(layer)].append(layer)
    return [Group(name, tuple(layers)) for name, layers in found.items()]


def _neighbours(layers: Sequence[Layer]) -> list[Group]:
    """At most ``STRETCHES`` stretches of the graph, by kind of layer."""
    total = sum(layer.macs for layer in layers)
    found: dict[tuple[int, str], list[Layer]] = defaultdict(list)
    done = 0
    for layer in layers:  # by where its middle lies, so that no layer is split
        found[int(STRETCHES * (done + layer.macs / 2) / max(total, 1)), layer.kind].append(layer)
        done += layer.macs
    return [Group(_span(found_layers), tuple(found_layers)) for found_layers in found.values()]


def _span(layers: Sequence[Layer]) -> str:
    first, last = layers[0].name, layers[-1].name
    return first if first == last else f"{first} to {last}"


class Judge:
    """Measures the drop that quantized layers cause; what was measured once is remembered in a file.

    Args:
        model: float32, for one tile.
        quantize: gives the model with these layers in INT8.
        tiles: of the sensitivity set.
        identity: of all that figures depend on; a file of another identity is not used.
        memory: the file, or None to remember nothing.
        threads: of ONNX Runtime.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        quantize: Quantize,
        tiles: Sequence[Tile],
        *,
        identity: str,
        memory: Path | None = None,
        threads: int | None = None,
    ) -> None:
        self._quantize, self._tiles, self._threads = quantize, tiles, threads
        self._identity, self._memory = identity, memory
        self._known: dict[str, list[float]] = self._recall()
        self._model = model

    def drop(self, layers: Collection[Layer]) -> Drop:
        """What these layers in INT8 cost; negative where INT8 happens to be better."""
        return self.summarize(self._psnr([]) - self._psnr(layers))

    def summarize(self, drops: NDArray[np.float64]) -> Drop:
        """The drops of all tiles as one: a budget has to hold at every strength of the degradation."""
        strengths = np.array([tile.strength for tile in self._tiles])
        return Drop(
            max(float(drops[strengths == strength].mean()) for strength in set(strengths.tolist())), float(drops.max())
        )

    def _psnr(self, layers: Collection[Layer]) -> NDArray[np.float64]:
        names = sorted(layer.name for layer in layers)
        key = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        if key not in self._known:
            self._known[key] = self.psnr_of(self._quantize(layers) if layers else self._model)
            self._remember()
        return np.array(self._known[key])

    def psnr_of(self, model: onnx.ModelProto) -> list[float]:
        """The PSNR of any model on every tile, in dB; nothing is remembered."""
        session = open_model(model, self._threads)
        source = session.get_inputs()[0].name
        return [
            psnr(to_8bit(session.run(None, {source: tile.degraded})[0]), to_8bit(tile.truth), 255)
            for tile in self._tiles
        ]

    def _recall(self) -> dict[str, list[float]]:
        if self._memory is None or not self._memory.is_file():
            return {}
        try:
            content: dict[str, Any] = json.loads(self._memory.read_text())
            return dict(content["psnr"]) if content["identity"] == self._identity else {}
        except (ValueError, KeyError, TypeError):
            return {}  # half-written by another version: measure again

    def _remember(self) -> None:
        if self._memory is not None:
            with atomic_write(self._memory) as temporary:
                temporary.write_text(json.dumps({"identity": self._identity, "psnr": self._known}))
