"""From a float32 graph and some tiles to the INT8 graph: observe, equalize, set ranges, search, quantize."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from echoir import __version__
from echoir.calibration.equalize import PLACES, Place, equalize, spots
from echoir.calibration.graph import UNKNOWN, Graph, Layer, Structure
from echoir.calibration.quantizer import quantize
from echoir.calibration.ranges import METHODS, Activation, observe
from echoir.calibration.sampler import Tiles
from echoir.calibration.search import Choice, search
from echoir.calibration.sensitivity import Judge, groups

METHOD = "mse"  # of setting ranges; docs/int8.md compares them
OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Calibrated:
    """A float32 graph, equalized, with the range of every tensor that INT8 may hold.

    Attributes:
        model: equalized.
        graph: of that model.
        peaks: of each channel before equalization, by tensor: what the factors come from.
        limits: by name of layer, the largest magnitude of each of its inputs that INT8 holds.
        places: that were equalized.
    """

    model: onnx.ModelProto
    graph: Graph
    peaks: dict[str, NDArray[Any]]
    limits: dict[str, tuple[float, ...]]
    places: tuple[Place, ...]

    def quantized(self, layers: Collection[Layer], model: onnx.ModelProto | None = None) -> onnx.ModelProto:
        """The graph with these layers in INT8.

        Args:
            layers: of ``graph``.
            model: None, or the same network's float32 graph for another tile, not yet equalized.
        """
        if model is None:
            return quantize(self.model, layers, self.limits)
        names = {layer.name for layer in layers}
        structure = self.graph.structure
        model = equalize(model, self.peaks, self.places, structure=structure)
        return quantize(model, [layer for layer in Graph(model, structure).layers if layer.name in names], self.limits)


def calibrate(
    model: onnx.ModelProto,
    tiles: Tiles,
    *,
    method: str = METHOD,
    places: tuple[Place, ...] = PLACES,
    structure: Structure = UNKNOWN,
    threads: int | None = None,
    on_step: OnStep | None = None,
) -> Calibrated:
    """Observe activations, equalize channels, observe again, set ranges.

    Args:
        model: float32 in deployed form, one image per run, of the tiles' size.
        tiles: the calibration set is used.
        method: of :data:`echoir.calibration.ranges.METHODS`.
        places: to equalize.
        structure: of the network.
        threads: of ONNX Runtime.
        on_step: told ``"observe"`` after every tile; twice the number of tiles in all.
    """
    inputs = [tile.degraded for tile in tiles.calibration]
    step = (lambda: on_step("observe")) if on_step else None
    graph = Graph(model, structure)
    before = observe(model, [spot.tensor for spot in spots(graph)], inputs, threads=threads, on_tile=step)
    peaks = {name: activation.peaks for name, activation in before.items()}
    model = equalize(model, peaks, places, structure=structure)
    graph = Graph(model, structure)
    tensors = [name for layer in graph.layers for name in layer.inputs]
    seen = observe(model, tensors, inputs, threads=threads, on_tile=step)
    return Calibrated(model, graph, peaks, limits(graph, seen, method), places)


def limits(graph: Graph, seen: dict[str, Activation], method: str) -> dict[str, tuple[float, ...]]:
    """The ranges of every layer's inputs, by one method."""
    found = {name: METHODS[method](activation) for name, activation in seen.items()}
    return {layer.name: tuple(found[name] for name in layer.inputs) for layer in graph.layers}


def choose(
    calibrated: Calibrated,
    tiles: Tiles,
    budget: float,
    *,
    memory: Path | None = None,
    threads: int | None = None,
    on_step: OnStep | None = None,
) -> Choice:
    """Find the layers that can go to INT8; see :func:`echoir.calibration.search.search`.

    Args:
        tiles: the sensitivity set is used.
        budget: the largest drop, in dB, at any strength of the degradation.
        memory: a file to resume from and to keep measurements in.
        on_step: told the name of each group measured.
    """
    digest = hashlib.sha256(f"{__version__} {tiles.fingerprint} {sorted(calibrated.limits.items())}".encode())
    digest.update(calibrated.model.SerializeToString(deterministic=True))
    judge = Judge(
        calibrated.model,
        calibrated.quantized,
        tiles.sensitivity,
        identity=digest.hexdigest(),
        memory=memory,
        threads=threads,
    )
    return search(groups(calibrated.graph), calibrated.graph.macs, judge, budget, on_group=on_step)
