"""GRL: what it costs, what float16 does to it, and its engines.

    python benchmarks/grl.py cost [--sizes t s b]       multiply-accumulates at 256 x 256, and per pixel from 128 to 512
    python benchmarks/grl.py precision [--stages 4]     dB with each reason for float32 given up
    python benchmarks/grl.py engines [--tile 256]       TensorRT-RTX: seconds, megabytes, layers
    python benchmarks/grl.py speed [--tile 128]         seconds of processor: PyTorch, ONNX Runtime, OpenVINO, in turns
    python benchmarks/grl.py tiles [--task denoise]     dB of tiles against the whole, by phase and overlap

``cost`` runs nothing: PyTorch counts the convolutions and matrix products of a network without storage. Masks of
shifted grids are four more coordinates of queries and keys here; the second column leaves them out, as a mask that is
added would. The others take denoising T with random weights that leave no part of it idle.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import torch
from fp16_ablation import apart, rounded, run
from subjects import crops
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from echoir.export import grl
from echoir.export.engine import build_engine
from echoir.export.grl import lean
from echoir.export.lowering import lowering_of
from echoir.export.precision import choices, to_fp16
from echoir.export.sources import TorchSource
from echoir.export.typed import export_onnx
from echoir.metrics import psnr
from echoir.networks.grl import GRL, SIZES, TASKS, Attend, MixedAttention
from echoir.runtime.bfloat16 import keeping_float32
from echoir.runtime.floors import without_floors
from echoir.runtime.tiling import tile_axis

LOWERING = lowering_of("GRL")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "cost": cost,
        "precision": precision,
        "engines": engines,
        "speed": speed,
        "tiles": tiles,
    }
    parser.add_argument("command", choices=list(commands))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--tile", type=int)
    parser.add_argument("--task", default="denoise", choices=[task for task in TASKS if task != "dual-defocus"])
    parser.add_argument("--stages", type=int, default=4, help="of four blocks each; denoising T has 4")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.tile = options.tile or (256 if options.command == "engines" else 128)
    torch.set_num_threads(1)
    commands[options.command](options)


def cost(options: argparse.Namespace) -> None:
    print("| network | GMAC at 256 x 256 | without masks | MMAC per pixel at 128 | 256 | 512 |")
    print("|---|---|---|---|---|---|")
    sides = (128, 256, 512)
    for task in ("denoise", "sr"):
        for size in options.sizes:
            counts = [macs(size, task, side) for side in sides]
            per_pixel = " | ".join(f"{n / side**2 / 1e6:.3f}" for n, side in zip(counts, sides, strict=True))
            plain = macs(size, task, 256, masked=False)
            print(f"| {task} {size} | {counts[1] / 1e9:,.1f} | {plain / 1e9:,.1f} | {per_pixel} |", flush=True)


@torch.no_grad()
def macs(size: str, task: str, side: int, *, masked: bool = True) -> float:
    """Multiply-accumulates for one picture of side x side."""
    with torch.device("meta"):
        network = GRL.from_preset(size, task=task).eval()
        if not masked:
            for module in network.modules():
                if isinstance(module, MixedAttention):
                    module.windows = replace(module.windows, shift=(0, 0))
                    module.stripes = replace(module.stripes, shift=(0, 0))
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, side, side))
    return counter.get_total_flops() / 2


def precision(options: argparse.Namespace) -> None:
    network, image = lively(options.stages), crops(1, options.tile)
    with torch.inference_mode():
        reference = network(torch.from_numpy(image)).numpy()
    model = source(network).graph(tile=(options.tile, options.tile), batch=1, io="float")
    print(f"dB against PyTorch float32, tile {options.tile}, stages: {options.stages}\n")
    print("| | ONNX Runtime | rounded after every node |\n|---|---|---|")
    print(f"| fp32 | {psnr(run(model, image), reference):.1f} | |", flush=True)
    for choice, names in {"": set[str](), **choices(model.graph, LOWERING)}.items():
        half, _ = to_fp16(model, LOWERING, without=[choice])
        plain = psnr(run(half, image), reference)
        strict = psnr(run(rounded(apart(half, names)), image, optimize=False), reference)
        row = f"without {choice} ({len(names)} nodes)" if choice else "fp16 as exported"
        print(f"| {row} | {plain:.1f} | {strict:.1f} |", flush=True)


def engines(options: argparse.Namespace) -> None:
    network = source(lively(options.stages))
    print(f"TensorRT-RTX, tile {options.tile}, stages: {options.stages}\n")
    print("| | ONNX MB | build s | engine MB | layers |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        file, engine = Path(folder) / "model.onnx", Path(folder) / "model.engine"
        for kind in ("fp32", "fp16"):
            export_onnx(network, file, tile=(options.tile, options.tile), precision=kind)  # type: ignore[arg-type]
            info = build_engine(file, engine, target="tensorrt-rtx")
            sizes = f"{file.stat().st_size / 1e6:.1f} | {info.seconds:.1f} | {info.bytes / 1e6:.1f}"
            print(f"| {kind} | {sizes} | {info.details['layers']} |", flush=True)


class NoFloor(grl.Weights):
    """Logits of masked pairs as they are."""

    def forward(self, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        return (q @ k + bias).softmax(-1)


def speed(options: argparse.Namespace) -> None:
    """Time of the processor, not of the clock: other programs may run meanwhile."""
    network, image = lively(options.stages), crops(1, options.tile)
    batch, form = torch.from_numpy(image), lean(network)

    def exported(**changes: object) -> Callable[[], object]:
        with mock.patch.dict(vars(grl), changes):
            model = source(network).graph(tile=(options.tile, options.tile), batch=1, io="float")
        session = one_thread(model)
        return lambda: session.run(None, {"input": image})[0]

    ways: dict[str, Callable[[], object]] = {
        "PyTorch": lambda: network(batch).numpy(),
        "PyTorch, lean form": lambda: form(batch).numpy(),
        "ONNX Runtime, no floor": exported(Weights=NoFloor),
        "ONNX Runtime": exported(),
    }
    if find_spec("openvino"):
        model = source(network).graph(tile=(options.tile, options.tile), batch=1, io="float")
        ways["OpenVINO, with the floor"] = on_openvino(model, image, floors=True)
        ways["OpenVINO"] = on_openvino(model, image)
        ways["OpenVINO, bfloat16"] = on_openvino(model, image, "bf16")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    made: dict[str, object] = {}
    with torch.inference_mode():
        for _ in range(options.rounds):
            for name, call in ways.items():
                begun = time.process_time()
                made[name] = call()
                seconds[name].append(time.process_time() - begun)
    print(f"tile {options.tile}, stages: {options.stages}, one thread, {options.rounds} rounds in turns\n")
    print("| | least, s | median, s | PyTorch's least over the least | dB to PyTorch |\n|---|---|---|---|---|")
    first = min(seconds["PyTorch"])
    for name, times in seconds.items():
        away = "" if name == "PyTorch" else f"{psnr(made[name], made['PyTorch']):.1f}"  # type: ignore[arg-type]
        print(f"| {name} | {min(times):.2f} | {median(times):.2f} | {first / min(times):.2f} | {away} |")


def tiles(options: argparse.Namespace) -> None:
    """Four tiles of two paddings. Those of a row share one padding; two rows share what the table says, exactly."""
    network = lively(options.stages, options.task)
    form, scale, multiple = lean(network), network.config.scale, network.config.multiple
    tile = 2 * multiple
    small = crops(1, 2 * tile)[0]  # the shipped pictures are no larger than that: mirrored where one is smaller
    photograph = np.pad(small, [(0, 0), *((0, 2 * tile - side) for side in small.shape[1:])], mode="symmetric")
    print(f"{options.task}, tiles of {tile}, stages: {options.stages}\n")
    print("| second start | in phase | shared | pixels restored for each | dB to the whole |\n|---|---|---|---|---|")
    with torch.inference_mode():
        for shared in (multiple // 4, multiple // 2, multiple, multiple + multiple // 8, 0):
            image = torch.from_numpy(photograph[None, :, : 2 * tile - shared, : 2 * tile - multiple])
            whole = form(image).numpy()
            joined = np.zeros_like(whole)
            rows, columns = (
                tile_axis(side, tile, overlap, 1, scale)
                for side, overlap in zip(image.shape[2:], (shared, multiple), strict=True)
            )
            for y, bottom, down in zip(rows.starts, rows.ends, rows.weights, strict=True):
                for x, right, across in zip(columns.starts, columns.ends, columns.weights, strict=True):
                    restored = form(image[..., y:bottom, x:right]).numpy()
                    area = slice(scale * y, scale * bottom), slice(scale * x, scale * right)
                    joined[..., area[0], area[1]] += restored * down[:, None] * across
            start, pixels = rows.starts[1], 4 * tile**2 / math.prod(image.shape[2:])
            aligned = "no" if start % multiple else "yes"
            print(f"| {start} | {aligned} | {shared} | {pixels:.2f} | {psnr(joined, whole):.1f} |", flush=True)


def one_thread(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def on_openvino(
    model: onnx.ModelProto, image: np.ndarray[Any, Any], precision: str = "f32", floors: bool = False
) -> Callable[[], object]:
    """What OpenVINO makes of a model, as a session compiles it; or with the floors left in."""
    import openvino

    core = openvino.Core()
    graph = core.read_model(model.SerializeToString(), b"")
    if not floors:
        without_floors(graph)
    if precision == "bf16":
        graph = keeping_float32(openvino, core, graph)
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(graph, "CPU", settings)
    return lambda: compiled([image])[0].copy()


def source(network: GRL) -> TorchSource:
    return TorchSource(network, network.describe("denoise", "t"))


def lively(stages: int, task: str = "denoise") -> GRL:
    """T. Layers preserve the variance of their input, scales of the cosine are spread around the initial 10
    and up to 100, biases vary, and the correction has a standard deviation of 0.1, that of noise with sigma 25."""
    torch.manual_seed(0)
    network = GRL.from_preset("t", task=task, depths=(4,) * stages).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    for module in network.modules():
        if isinstance(module, Attend):
            module.log_scale.copy_(math.log(10) + torch.randn_like(module.log_scale))
            module.position[2].weight.mul_(3)
    image = torch.from_numpy(crops(1, 128))
    enlarged = nn.functional.interpolate(image, scale_factor=network.config.scale)
    last = [module for module in network.head if isinstance(module, nn.Conv2d)][-1]
    last.weight.mul_(0.1 / (network(image) - enlarged).std())
    return network


if __name__ == "__main__":
    main()
