"""What INT8 costs and gains, checkpoint by checkpoint: one table each.

    python benchmarks/int8.py --weights denoise --calibration CLEAN --data TEST [--sigma 15 25 50] [--crops 24]

FP32, FP16, naive INT8 (ONNX Runtime's quantizer with the settings that TensorRT accepts: every convolution,
min-max, twenty-four tiles) and what the export makes, on crops of TEST that none of them has seen: PSNR against
ground truth, drop, the worst picture's drop; then share of multiply-accumulates in INT8, size of the file and of
the TensorRT-RTX engine, and time in ONNX Runtime as a multiple of FP32's in the same run.

    python benchmarks/int8.py --weights denoise --calibration CLEAN --ablation

Which range, how many tiles and which repair matters, on the sensitivity tiles: everything in INT8 but the first and
the last convolution, which no range can save.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from echoir.calibration.calibrate import METHOD, Calibrated, calibrate, limits
from echoir.calibration.equalize import BALANCE, PLACES, equalize
from echoir.calibration.graph import Graph, Layer
from echoir.calibration.ranges import METHODS, observe, open_model
from echoir.calibration.sampler import Tiles, sample
from echoir.calibration.sensitivity import Judge
from echoir.checkpoint import Checkpoint, load_checkpoint
from echoir.data import list_pictures, read_float
from echoir.export.engine import build_engine
from echoir.export.lowering import lowering_of
from echoir.export.precision import to_fp16
from echoir.export.quantized import SIDE, export_int8, practice, prepare, take_turns
from echoir.export.sources import checkpoint_source
from echoir.metrics import psnr, to_8bit
from echoir.runtime.errors import BackendError
from echoir.samples import open_samples

Array = NDArray[Any]
ECHO = lowering_of("EchoIR")
ENDS = ("embed/Conv", "output/Conv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="denoise")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sigma", type=float, nargs="+", default=[15, 25, 50])
    parser.add_argument("--crops", type=int, default=24)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--max-drop", type=float, default=0.1)
    parser.add_argument("--memory", type=Path, help="a file to resume the search from")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ablation", action="store_true")
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.weights)
    if options.ablation:
        ablation(checkpoint, options.calibration, options.threads)
    elif options.data is None:
        parser.error("--data is needed, but for --ablation")
    else:
        table(checkpoint, options)


def table(checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    tile = (options.tile, options.tile)
    int8 = prepare(
        checkpoint_source(checkpoint),
        options.calibration,
        options.max_drop,
        tile=tile,
        memory=options.memory,
        threads=options.threads,
    )
    print("\n".join(int8.lines()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("FP32", "FP16", "INT8 naive", "INT8", "INT8 on FP32")}
        plain = int8.plain
        onnx.save(plain, files["FP32"])
        onnx.save(to_fp16(plain, ECHO)[0], files["FP16"])
        naive(plain, files["INT8 naive"], int8.tiles)
        for name, remainder in (("INT8", "fp16"), ("INT8 on FP32", "fp32")):
            export_int8(files[name], int8, remainder=remainder)  # type: ignore[arg-type]
        sessions = {name: open_model(onnx.load(path), options.threads) for name, path in files.items()}
        layers = int8.calibrated.graph.layers
        every = sum(layer.macs for layer in layers if layer.weight) / int8.calibrated.graph.macs
        shares = {"INT8 naive": every, "INT8": int8.choice.share, "INT8 on FP32": int8.choice.share}
        print("\n| | " + " | ".join(files) + " |\n|---|" + "---|" * len(files))
        print("| share of MACs in INT8 | " + " | ".join(f"{100 * shares.get(name, 0):.1f} %" for name in files) + " |")
        for sigma in options.sigma if checkpoint.task == "denoise" else [None]:
            figures = measure(sessions, checkpoint.task, options, sigma)
            label = f"σ = {sigma:g}" if sigma else checkpoint.task  # noqa: RUF001
            print(f"| PSNR, {label} | " + " | ".join(f"{figures[name].mean():.3f}" for name in files) + " |")
            drops = {name: figures["FP32"] - figures[name] for name in files}
            print("| drop | " + " | ".join(f"{drops[name].mean():.4f}" for name in files) + " |")
            print("| worst crop | " + " | ".join(f"{drops[name].max():.4f}" for name in files) + " |", flush=True)
        print("| file MB | " + " | ".join(f"{path.stat().st_size / 1e6:.2f}" for path in files.values()) + " |")
        example = np.random.default_rng(0).random((1, 3, *tile), np.float32)
        times = take_turns(sessions, example)
        print("| ONNX Runtime, FP32 = 1 | " + " | ".join(f"{times[n] / times['FP32']:.2f}" for n in files) + " |")
        print("| TensorRT-RTX engine MB | " + " | ".join(engine(path) for path in files.values()) + " |")


def measure(
    sessions: dict[str, Any], task: str, options: argparse.Namespace, sigma: float | None
) -> dict[str, NDArray[np.float64]]:
    """PSNR of the middle of every picture, one tile each, by session."""
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for sample_ in open_samples(options.data, task, sigma=sigma, limit=options.crops):
        top, left = ((side - options.tile) // 2 for side in sample_.truth.shape[:2])
        if min(top, left) < 0:
            raise SystemExit(f"{sample_.name} is smaller than a tile")
        window = (slice(top, top + options.tile), slice(left, left + options.tile))
        given = np.ascontiguousarray(sample_.degraded[window].transpose(2, 0, 1)[None], np.float32)
        truth = to_8bit(sample_.truth[window].transpose(2, 0, 1)[None])
        for name, session in sessions.items():
            found[name].append(psnr(to_8bit(session.run(None, {"input": given})[0]), truth, 255))
    return {name: np.array(values) for name, values in found.items()}


def naive(model: onnx.ModelProto, path: Path, tiles: Tiles) -> None:
    """Every convolution by quantize_static, with the settings of its own that TensorRT accepts."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, inputs: list[Array]) -> None:
            self._inputs = iter(inputs)

        def get_next(self) -> dict[str, Array] | None:
            given = next(self._inputs, None)
            return None if given is None else {"input": given}

    # It needs tiles of the model's own size: four of ours make one.
    degraded = [tile.degraded for tile in tiles.calibration]
    side = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    count = side // degraded[0].shape[2]
    inputs = [np.tile(one, (1, 1, count, count)) for one in degraded]
    operators = ["Conv"]
    own = onnx.ModelProto()
    own.CopyFrom(model)  # quantize_static moves the weights of the model it is given to a file of its own
    quantize_static(
        own,
        path,
        Reader(inputs),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=operators,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
            "DedicatedQDQPair": False,
            "OpTypesToExcludeOutputQuantization": operators,
        },
    )


def engine(path: Path) -> str:
    try:
        return f"{build_engine(path, path.with_suffix('.engine'), target='tensorrt-rtx').bytes / 1e6:.1f}"
    except BackendError as error:
        return str(error).splitlines()[0]


def ablation(checkpoint: Checkpoint, folder: Path, threads: int | None) -> None:
    sources = [(picture.clean, picture.degraded) for picture in list_pictures([folder])]
    tiles = sample(sources, checkpoint.task, practice(checkpoint.task), read_float, side=SIDE)
    model = checkpoint_source(checkpoint).graph(tile=(SIDE, SIDE), batch=1, io="float")
    base = calibrate(model, tiles, structure=ECHO.int8, threads=threads)
    inner = [layer for layer in base.graph.layers if layer.name not in ENDS]

    judge = Judge(model, base.quantized, tiles.sensitivity, identity="", threads=threads)
    reference = np.array(judge.psnr_of(model))

    def drop(calibrated: Calibrated, layers: list[Layer] = inner) -> str:
        found = judge.summarize(reference - judge.psnr_of(calibrated.quantized(layers)))
        return f"{found.mean:.4f} | {found.worst:.4f} |"

    print("| everything but the ends in INT8 | drop at the worst strength, dB | worst tile |\n|---|---|---|")
    print(f"| as exported: {METHOD}, {len(tiles.calibration)} tiles, balance {BALANCE:g} | {drop(base)}", flush=True)
    seen = observe(
        base.model,
        [name for layer in base.graph.layers for name in layer.inputs],
        [tile.degraded for tile in tiles.calibration],
        threads=threads,
    )
    for method in METHODS:
        if method != METHOD:
            print(f"| {method} | {drop(replace(base, limits=limits(base.graph, seen, method)))}", flush=True)
    for count in (1, 4, 12):
        few = replace(tiles, calibration=tiles.calibration[:count])
        print(f"| {count} tiles | {drop(calibrate(model, few, structure=ECHO.int8, threads=threads))}", flush=True)
    for place in PLACES:
        rest = tuple(other for other in PLACES if other != place)
        changed = calibrate(model, tiles, places=rest, structure=ECHO.int8, threads=threads)
        print(f"| without {place} | {drop(changed)}", flush=True)
    none = calibrate(model, tiles, places=(), structure=ECHO.int8, threads=threads)
    print(f"| without equalization | {drop(none)}", flush=True)
    plain = calibrate(model, tiles, method="min-max", places=(), structure=ECHO.int8, threads=threads)
    print(f"| ... and min-max | {drop(plain)}", flush=True)
    for balance in (0.5, 1.0):
        other = equalize(model, base.peaks, PLACES, balance, ECHO.int8)
        graph = Graph(other, ECHO.int8)
        values = observe(
            other,
            [name for layer in graph.layers for name in layer.inputs],
            [tile.degraded for tile in tiles.calibration],
            threads=threads,
        )
        changed = replace(base, model=other, graph=graph, limits=limits(graph, values, METHOD))
        print(f"| balance {balance:g} | {drop(changed)}", flush=True)
    for name in ENDS:
        ends = [layer for layer in base.graph.layers if layer.name == name]
        print(f"| {name} alone in INT8 | {drop(base, ends)}", flush=True)


if __name__ == "__main__":
    main()
