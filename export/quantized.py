"""The INT8 artifact: calibrate a network, choose its layers, and write the graph with Q/DQ."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from echoir.calibration.calibrate import METHOD, Calibrated, calibrate, choose
from echoir.calibration.ranges import open_model
from echoir.calibration.sampler import Fit, Practice, Tiles, sample
from echoir.calibration.search import Choice
from echoir.calibration.sensitivity import groups
from echoir.data import check_pictures, list_pictures, read_float
from echoir.degradations import TASKS
from echoir.export.graph import OPSET
from echoir.export.lowering import Lowering, lowering_of
from echoir.export.overflow import overflowing
from echoir.export.precision import to_fp16
from echoir.export.reference import IO
from echoir.export.sources import Source
from echoir.fitting import enlargement, fitted, mosaic, planes
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import BackendError, GateError
from echoir.runtime.files import atomic_write
from echoir.runtime.manifest import Calibration, Precision
from echoir.runtime.progress import Progress
from echoir.samples import GIVEN, as_they_are, in_form, in_training

Floats = NDArray[np.float32]
Remainder = Literal["fp16", "fp32"]
QUANTIZES_HALF = 19  # the operator set in which QuantizeLinear takes float16
SIDE = 128  # of calibration tiles: ranges hardly depend on it, and everything takes a quarter of the time of 256
ROUNDS = 5  # of timing, each graph in turn
SHOWN = 8  # groups that a line names
# What a denoiser's layers are judged on: three strengths of the literature's noise, and the commonest file.
CHECKS = (("rgb", 15), ("rgb", 25), ("rgb", 50), ("jpeg420", 25))


@dataclass(frozen=True)
class Int8:
    """What calibration found, before anything is written.

    Attributes:
        calibrated: graph and ranges.
        choice: the layers, and what they cost.
        tiles: that it rests on.
        plain: the float32 graph for the artifact's own tile, batch and format, not equalized.
        lowering: of the network.
    """

    calibrated: Calibrated
    choice: Choice
    tiles: Tiles
    plain: onnx.ModelProto
    lowering: Lowering

    @property
    def record(self) -> Calibration:
        """For the manifest."""
        return Calibration(
            fingerprint=self.tiles.fingerprint,
            method=METHOD,
            tiles=len(self.tiles.calibration),
            sensitivity_tiles=len(self.tiles.sensitivity),
            equalized=self.calibrated.places,
            budget=self.choice.budget,
            drop=self.choice.drop,
            share=self.choice.share,
        )

    @property
    def sensitivity(self) -> dict[str, Any]:
        """The search as ``sensitivity.json`` and the report show it; drops in dB, shares of multiply-accumulates."""
        choice = self.choice
        groups = [
            {
                "name": cost.group.name,
                "layers": [layer.name for layer in cost.group.layers],
                "share": cost.share,
                "drop": cost.drop,
                "worst_tile_drop": cost.worst,
                "int8": cost.int8,
            }
            for cost in choice.costs
        ]
        return {
            "format": 1,
            "budget": choice.budget,
            "share": choice.share,
            "drop": choice.drop,
            "worst_tile_drop": choice.worst,
            "curve": [list(point) for point in choice.curve],
            "groups": groups,
            "degradation": self.tiles.degradation,
            "fingerprint": self.tiles.fingerprint,
            "calibration_tiles": [tile.name for tile in self.tiles.calibration],
            "sensitivity_tiles": [tile.name for tile in self.tiles.sensitivity],
        }

    def lines(self) -> list[str]:
        """For the terminal: the share, the cost, and what stays higher."""
        choice = self.choice
        kept = choice.kept
        shown = ", ".join(f"{cost.group.name} ({cost.drop:.3f} dB alone)" for cost in kept[:SHOWN])
        more = f" and {len(kept) - SHOWN} more" if len(kept) > SHOWN else ""
        return [
            f"INT8: {100 * choice.share:.1f} % of multiply-accumulates for {choice.drop:.3f} dB of the "
            f"{choice.budget:g} allowed, on the sensitivity tiles (one alone: up to {choice.worst:.3f})",
            f"kept higher: {shown or 'nothing'}{more}",
        ]


def prepare(
    source: Source,
    folder: Path,
    budget: float,
    *,
    tile: tuple[int, int],
    batch: int | None = 1,
    io: IO = "float",
    memory: Path | None = None,
    threads: int | None = None,
    log_json: bool = False,
    quiet: bool = False,
) -> Int8:
    """Calibrate a network on a folder of pictures and choose what goes to INT8.

    Args:
        folder: clean pictures, degraded here as the task is, or pairs in ``input/`` and ``target/``.
        budget: the largest drop in dB.
        tile, batch, io: of the artifact, as for :func:`echoir.export.typed.export_onnx`; calibration
            tiles are no larger.
        memory: keeps measurements of the search, and lets it resume.
        threads: of ONNX Runtime.

    Raises:
        ImageError: the folder will not do; the message says why.
        BackendError: a graph of others that does not convert to an operator set with what INT8 needs.
        GateError: not one layer fits the budget.
    """
    lowering = lowering_of(source.descriptor.architecture)
    network, task = source.descriptor, source.descriptor.task
    small = calibration_tile(network, tile)
    said: list[str] = []
    pictures = list_pictures([folder], said.append)
    check_pictures(pictures, enlargement(network))
    sources = [(picture.clean, picture.degraded) for picture in pictures]
    tiles = sample(sources, task, practice(task, network), read_float, side=max(small), fit=fit(network, small))
    model = _for_float16(source.graph(tile=small, batch=1, io="float"))
    with Progress("calibrate", 2 * len(tiles.calibration), "tiles", log_json=log_json, quiet=quiet) as progress:
        for line in said:
            progress.note(line)
        calibrated = calibrate(
            model, tiles, structure=lowering.int8, threads=threads, on_step=lambda _: progress.advance()
        )
    count = len(groups(calibrated.graph))
    with Progress("sensitivity", count, "groups", log_json=log_json, quiet=quiet) as progress:
        choice = choose(
            calibrated,
            tiles,
            budget,
            memory=memory,
            threads=threads,
            on_step=lambda name: progress.advance(last=name),
        )
    if not choice.layers:
        cheapest = choice.costs[0]
        raise GateError(
            f"no layer fits a budget of {budget:g} dB in INT8: {cheapest.group.name}, the cheapest, alone costs "
            f"{cheapest.drop:.3f} dB; export with --precision fp16, or allow more with --max-drop"
        )
    plain = _for_float16(source.graph(tile=tile, batch=batch, io=io))
    return Int8(calibrated, choice, tiles, plain, lowering)


def _for_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of others in an operator set that quantizes float16, every node with a name."""
    version = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    if version >= QUANTIZES_HALF:
        return model
    try:
        model = onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter's own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(
            f"int8 needs operator set {QUANTIZES_HALF}, and the graph's {version} does not convert ({reason[:120]})"
        ) from None
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_at_{index}"
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def calibration_tile(network: Descriptor, tile: tuple[int, int]) -> tuple[int, int]:
    """A square of 128 pixels at most, 64 of a network that enlarges three times or more, so that pictures of 300
    pixels will do; the least that the network takes, where that has more; (height, width)."""
    multiple = math.lcm(*network.multiple)
    side = min(SIDE if network.scale <= 2 else SIDE // 2, *tile) // multiple * multiple
    return (side, side) if side else network.multiple


def export_int8(
    path: Path, int8: Int8, *, remainder: Remainder = "fp16", tried: Sequence[NDArray[Any]] = ()
) -> Precision:
    """Write the INT8 graph; says which nodes compute in what.

    Args:
        path: the file; it appears whole or not at all.
        int8: what :func:`prepare` found.
        remainder: what is not INT8.
        tried: real tiles, as the artifact takes them: in float16, nodes that leave its range on them keep float32.

    Raises:
        BackendError: a weight does not fit float16.
        ImageError: the file cannot be written.
    """
    layers = int8.choice.layers
    model = int8.calibrated.quantized(layers, int8.plain)
    names = {layer.name for layer in layers}
    kept = [layer.name for layer in int8.calibrated.graph.layers if layer.name not in names]
    higher = {"float32": tuple(kept)}
    if remainder == "fp16":
        model, float32 = to_fp16(model, int8.lowering, overflowing=overflowing(model, tried))
        higher = {"float16": tuple(name for name in kept if name not in float32), "float32": float32}
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return Precision("int8", {kind: nodes for kind, nodes in higher.items() if nodes}, tuple(sorted(names)))


def time_against(int8: Int8, path: Path, *, threads: int | None = None) -> dict[str, float]:
    """Milliseconds of one run through ONNX Runtime on this CPU: ``{"int8": ..., "fp16": ..., "fp32": ...}``.

    The three graphs take turns, so that other load hits them alike; medians of five.

    Args:
        int8: of a fixed batch.
        path: what :func:`export_int8` wrote.
    """
    models = {"int8": onnx.load(path), "fp16": to_fp16(int8.plain, int8.lowering)[0], "fp32": int8.plain}
    sessions = {name: open_model(one, threads) for name, one in models.items()}
    kind = int8.plain.graph.input[0].type.tensor_type
    rng = np.random.default_rng(0)
    example = rng.random([dim.dim_value for dim in kind.shape.dim], np.float32)
    if kind.elem_type == onnx.TensorProto.UINT8:
        example = (255 * example).astype(np.uint8)
    return take_turns(sessions, example)


def take_turns(sessions: dict[str, Any], example: np.ndarray[Any, np.dtype[Any]]) -> dict[str, float]:
    """The median milliseconds of each session on the same input, measured in turns after one run to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(ROUNDS + 1):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: example})
            if turn:
                spent[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in spent.items()}


def verdict(milliseconds: dict[str, float]) -> str:
    """What to make of the times, in one sentence."""
    int8 = milliseconds["int8"]
    ratios = {name: int8 / value for name, value in milliseconds.items() if name != "int8"}
    told = " and ".join(f"{ratio:.2f} times {name}'s" for name, ratio in ratios.items())
    slower = [name for name, ratio in ratios.items() if ratio > 1]
    advice = f": INT8 is slower here, use {min(slower, key=lambda name: milliseconds[name])} on a CPU" if slower else ""
    return f"a run in ONNX Runtime on this CPU takes {int8:.0f} ms, {told}{advice}"


def fit(network: Descriptor, tile: tuple[int, int] | None = None) -> Fit:
    """What calibration's pictures become for a network; the corner of them, where its tile is no square."""

    def made(
        degraded: NDArray[np.float32], truth: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        picture, wanted = fitted(degraded, truth, network)
        if network.output == "gray":
            wanted = wanted.mean(axis=2, keepdims=True)
        given, truth = planes(picture, network), wanted.transpose(2, 0, 1)[None]
        if tile is not None:
            given = given[:, :, : tile[0], : tile[1]]
            truth = truth[:, :, : network.scale * tile[0], : network.scale * tile[1]]
        return np.ascontiguousarray(given), np.ascontiguousarray(truth)

    return Fit(mosaic(network), enlargement(network), made)


def practice(task: str, network: Descriptor | None = None) -> Practice | None:
    """What calibration does to clean pictures; None for a task that needs pairs."""
    if task not in TASKS:
        # Reduced for a network that enlarges; and nothing is done where nobody said what there is to do.
        free = task == GIVEN or (network is not None and enlargement(network) > 1)
        return Practice(as_they_are) if free else None
    checks = {f"{form} sigma {sigma}": in_form(form, sigma) for form, sigma in CHECKS} if task == "denoise" else {}
    return Practice(in_training(task), TASKS[task].margin, checks)
