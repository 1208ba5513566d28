"""What the session adds to a network on this GPU: frames of 1920 x 1080 in tiles, and the four kernels of tiles.cu.

    python benchmarks/session.py [--weights denoise] [--tile 256] [--batch 2] [--frames 30] [-o benchmarks/results]
    python benchmarks/session.py --rehearse    every line, on the pretended GPU of the tests and a small frame

Needs PyCUDA and no TensorRT: PyTorch in float16 runs in its place (tests/torch_engine.py), so the network's own time
is PyTorch's, and the rest is this project's. ``tiles`` is the time of the network alone on as many batches, ``frame``
that of a whole 8-bit frame from host to host, ``host`` that of the same frame where the host cuts and blends.
The kernels' times are those of one strip's work, warm: a graph of many launches, divided by their number.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # what stands in for TensorRT, and for a GPU
import fake_gpu
import torch_engine

from echoir.checkpoint import load_checkpoint
from echoir.runtime.contract import Session
from echoir.runtime.cuda.driver import BLOCK, Graph, Memory, cuda, grid
from echoir.runtime.errors import BackendError, EchoIRError
from echoir.runtime.restorer import Restorer
from echoir.runtime.tiling import tile_axis

LAUNCHES = 100


class HostTiles:
    """Hides from a restorer that its session can cut and blend."""

    def __init__(self, session: Session) -> None:
        self.run, self.close = session.run, session.close

    def __enter__(self) -> HostTiles:
        return self

    def __exit__(self, *exception: object) -> None: ...


def milliseconds(call: Callable[[], Any], rounds: int) -> float:
    """Median of the wall clock."""
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(times)


def frames(options: argparse.Namespace, place: torch_engine.Place, half: bool) -> dict[str, Any]:
    """Milliseconds of a frame, of its tiles alone, and of the same frame cut and blended by the host."""
    network = load_checkpoint(options.weights).network
    network = network.to("cuda", torch.float16) if half else network
    frame = np.random.default_rng(0).integers(0, 256, (*options.frame, 3), np.uint8)
    row: dict[str, Any] = {"figure": "frame", "size": options.frame, "tile": options.tile, "batch": options.batch}

    def run(images: torch.Tensor) -> torch.Tensor:
        return network(images.half()).float() if half else network(images)

    with tempfile.TemporaryDirectory() as folder:
        size = {"tile": (options.tile, options.tile), "overlap": options.overlap, "batch": options.batch}
        engine = torch_engine.artifact(Path(folder), io="uint8", **size)
        library = torch_engine.library(place, torch_engine.as_engine(run, "uint8"), engine)
        with patch.dict(sys.modules, tensorrt=library), Restorer.open(engine.model_path) as restorer:
            host = Restorer(HostTiles(restorer.session), restorer.manifest)
            row["tiles_in_all"] = restorer.tiles(*options.frame)
            row["equal_to_host"] = bool((restorer(frame) == host(frame)).all())
            row["frame_ms"] = milliseconds(lambda: restorer(frame), options.frames)
            row["host_ms"] = milliseconds(lambda: host(frame), min(options.frames, 5))
            with restorer.session._lane(options.batch) as lane:  # type: ignore[attr-defined]
                row["graphed"], row["reason"] = lane.graphed, library.reason
                batches = -(-len(tile_axis(options.frame[1], options.tile, options.overlap).starts) // options.batch)
                strips = len(tile_axis(options.frame[0], options.tile, options.overlap).starts)

                def alone() -> None:
                    with cuda().current():
                        for _ in range(batches * strips):
                            lane.infer(lane.next_slot())
                        lane.compute.synchronize()

                row["tiles_ms"] = milliseconds(alone, options.frames)
    row["added_ms"] = row["frame_ms"] - row["tiles_ms"]
    return row


def kernels(options: argparse.Namespace, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each kernel for one strip of a frame, and the bytes that it moves at least."""
    here, side, width = cuda(), options.tile, options.frame[1]
    across = tile_axis(width, side, options.overlap)
    covered = across.covered
    count, pixels, rows = len(across.starts), side * side, min(side, options.frame[0])
    rng = np.random.default_rng(0)
    result = []
    with here.current():
        memory, stream, functions = Memory(here), here.stream(), here.kernels()
        image = memory.copy(rng.integers(0, 256, (rows, width, 3), np.uint8))
        tiles, made = (memory.copy(rng.random((count, 3, side, side), np.float32)) for _ in range(2))
        sums, finished = memory.copy(np.zeros((rows, width, 3), np.float32)), memory.take(rows * width * 3)
        flags, starts = memory.copy(np.zeros(2 * count, np.int32)), memory.copy(np.asarray(across.starts, np.int32))
        weights = memory.copy(np.ones(rows, np.float32)), memory.copy(np.stack(across.weights))  # down, across
        calls: dict[str, tuple[tuple[int, int, int], tuple[int, ...], int]] = {
            "cut": (
                grid(side, side, count),
                (image, 0, 3, width, rows, 0, rows, starts, 0, count - 1, 1, covered, tiles, side, side, 3, 0, 0),
                count * pixels * 3 * 5,
            ),
            "check": (
                grid(side, side, count),
                (tiles, side, side, 3, 0, 0, made, side, side, 3, 0, 0, flags),
                count * pixels * 3 * 8,
            ),
            "blend": (
                grid(width, rows),
                (made, side, side, 3, 0, 0, starts, 0, count, 1, 1, *weights, sums, width, rows, 0, rows, covered),
                count * pixels * 3 * 4 + width * rows * 3 * 8,
            ),
            "finish": (grid(width, rows), (sums, width, rows, 0, rows, 3, finished, 0, 3), width * rows * 3 * 9),
        }  # fmt: skip
        for name, (blocks, arguments, moved) in calls.items():

            def record(name: str = name, blocks: Any = blocks, arguments: Any = arguments) -> bool:
                for _ in range(LAUNCHES):
                    functions[name].prepared_async_call(blocks, BLOCK, stream, *arguments)
                return True

            record()  # the first loads the kernel
            stream.synchronize()
            graph = Graph(stream, record)  # a kernel takes less time than Python needs to start one

            def replay(graph: Graph = graph) -> None:
                graph.launch(stream)
                stream.synchronize()

            spent = milliseconds(replay, rounds) / LAUNCHES / 1e3
            graph.close()
            figure = {
                "figure": "kernel",
                "name": name,
                "tiles": count,
                "ms": 1e3 * spent,
                "gb_per_s": moved / spent / 1e9,
            }
            result.append(figure)
        memory.free()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="denoise")
    parser.add_argument("--frame", type=int, nargs=2, default=[1080, 1920], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=16)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--rehearse", action="store_true", help="on the pretended GPU; the times mean nothing")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.rehearse:
            options.frame, options.tile, options.frames = [50, 90], 48, 1
            gpu = fake_gpu.Gpu(fake_gpu.compile_kernels(Path(folder), shutil.which("c++") or "c++"))
            pretended: Any = fake_gpu.installed(gpu, ModuleType("tensorrt"))
        elif torch.cuda.is_available():
            pretended = nullcontext()
        else:
            raise BackendError("benchmarks/session.py measures a CUDA device, and there is none; --rehearse needs none")
        with pretended:
            place = torch_engine.Pretended(gpu) if options.rehearse else torch_engine.OnCuda()
            rows = [frames(options, place, half=not options.rehearse)]
            rows += kernels(options, 1 if options.rehearse else 20)
            name = cuda().name
    text = "\n".join(json.dumps(row) for row in rows)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"session-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.jsonl").write_text(text + "\n")
    if not rows[0]["equal_to_host"] or not rows[0]["graphed"]:
        raise SystemExit("the device's frame is not the host's, or no graph was captured")


if __name__ == "__main__":
    try:
        main()
    except EchoIRError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
