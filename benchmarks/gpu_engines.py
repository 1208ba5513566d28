"""An engine on this GPU: parity, latency against PyTorch, plugin against function, memory.

python benchmarks/gpu_engines.py [--target tensorrt] [--precisions fp32 fp16] [--weights denoise] [--tile 256] [-o FILE]

Needs a GPU with PyCUDA and TensorRT or TensorRT-RTX. Every engine is built, opened by the runtime's own session,
compared with PyTorch in float32 on noise of [0, 1], and timed in turn with PyTorch in float16, eager and compiled.
Writes a table, and one JSON line per engine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echoir.checkpoint import load_checkpoint
from echoir.export.engine import EngineOptions, EngineTarget, build_engine
from echoir.export.pipeline import export_artifact
from echoir.export.request import Request
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.bench import Subject, measure, sample_tiles
from echoir.runtime.contract import Session
from echoir.runtime.cuda.driver import cuda
from echoir.runtime.errors import EchoIRError
from echoir.runtime.manifest import Engine, Model
from echoir.runtime.restorer import Restorer
from echoir.runtime.sessions import open_session


class Torch:
    """PyTorch in the place of a session."""

    def __init__(self, run: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> None:
        self._run, self._dtype = run, dtype

    def run(self, tiles: Any) -> Any:
        with torch.inference_mode():
            given = torch.from_numpy(tiles).to("cuda", self._dtype)
            return self._run(given).float().cpu().numpy()

    def close(self) -> None: ...

    def __enter__(self) -> Torch:
        return self

    def __exit__(self, *exception: object) -> None: ...


def engines(source: Artifact, target: EngineTarget) -> Iterator[tuple[str, Artifact]]:
    """The same ONNX by the plugin (TensorRT alone) and by the function."""
    for plugin in (True, False) if target == "tensorrt" else (False,):
        name = "plugin" if plugin else "function"
        path = source.model_path.with_name(f"{source.model_path.stem}-{name}.engine")
        try:
            info = build_engine(source.model_path, path, target=target, options=EngineOptions(plugin=plugin))
        except EchoIRError as error:
            print(f"{name}: not built: {error}", file=sys.stderr)
            continue
        record = Engine(info.version, info.compute_capabilities, info.seconds, info.gpu, info.driver, info.details)
        manifest = replace(source.manifest, name=path.stem, model=Model(target), engine=record, parity=None)
        yield name, write_artifact(replace(manifest, onnx_sha256=source.manifest.model.sha256), path)


def free_bytes() -> int:
    """Device memory that nobody holds."""
    with cuda().current():
        return int(cuda().driver.mem_get_info()[0])


def psnr(a: Any, b: Any) -> float:
    """In dB, of values in [0, 1]."""
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2)))


def frame_milliseconds(artifact: Artifact, height: int = 1080, width: int = 1920, runs: int = 20) -> float:
    """A whole 8-bit frame through the runtime, tiles cut and blended on the device: the median."""
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    times = []
    with Restorer.open(artifact.model_path) as restorer:
        for _ in range(runs + 3):
            start = time.perf_counter()
            restorer(frame)
            times.append(time.perf_counter() - start)
    return float(np.median(times[3:]) * 1e3)


def compare(weights: str, precision: Any, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All engines of one preset and precision."""
    tile = (options.tile, options.tile)
    output = folder / f"{weights}-{precision}"
    request = Request(weights=weights, precision=precision, targets=("onnx",), tile=tile, output=output)
    source = export_artifact(request).artifacts[0]
    tiles = sample_tiles(source.manifest.input, tile, 1)
    network = load_checkpoint(weights).network.cuda()
    truth = Torch(network, torch.float32).run(tiles)
    half = load_checkpoint(weights).network.cuda().half()
    others: dict[str, Session] = {
        "PyTorch float16, eager": Torch(half, torch.float16),
        "PyTorch float16, compiled": Torch(torch.compile(half), torch.float16),
    }
    rows = []
    for name, artifact in engines(source, options.target):
        free = free_bytes()
        with open_session(artifact) as session:
            made = session.run(tiles)
            held = free - free_bytes()
            subjects = [Subject(f"{name}", session, tiles, tile, 0)]
            subjects += [Subject(other, run, tiles, tile, 0) for other, run in others.items()]
            times = measure(subjects, options.iterations, 10)
        engine = artifact.manifest.engine
        assert engine is not None
        rows.append(
            {
                "weights": weights,
                "precision": precision,
                "upsampler": name,
                "gpu": cuda().name,
                "version": engine.tensorrt,
                "build_s": engine.build_seconds,
                "engine_mb": artifact.manifest.model.bytes / 1e6,
                "layers": engine.details.get("layers"),
                "precisions": engine.details.get("precisions"),
                "psnr_db": psnr(made, truth),
                "device_mb": held / 1e6,
                "frame_1080p_ms": frame_milliseconds(artifact),
                "tile_ms": {latency.name: latency.percentile(50) * 1e3 for latency in times},
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=["tensorrt", "tensorrt-rtx"], default="tensorrt")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16"])
    parser.add_argument("--weights", default="denoise")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for precision in options.precisions
            for row in compare(options.weights, precision, options, Path(folder))
        ]
    if not rows:
        raise SystemExit("no engine could be built")
    text = [
        "| weights | precision | upsampler | dB against PyTorch | tile ms | eager | compiled | 1080p ms | device MB |"
    ]
    text += ["|" + "---|" * 9]
    for row in rows:
        times = " | ".join(f"{value:.2f}" for value in row["tile_ms"].values())
        text.append(
            f"| {row['weights']} | {row['precision']} | {row['upsampler']} | {row['psnr_db']:.1f} | {times} "
            f"| {row['frame_1080p_ms']:.1f} | {row['device_mb']:.0f} |"
        )
    print("\n".join(text))
    if options.output:
        options.output.write_text("\n".join([*text, "", *map(json.dumps, rows)]) + "\n")


if __name__ == "__main__":
    main()
