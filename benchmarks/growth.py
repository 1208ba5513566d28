"""What a pixel costs as the picture grows: linear means that it costs the same from 0.1 to 100 megapixels.

    python benchmarks/growth.py -m ARTIFACT [--megapixels 0.1 0.3 1 3 10 30 100] [--turns 3] [--device cpu]
    python benchmarks/growth.py --identity      # what is not the network: cutting, checking, blending

Pictures of noise, 3:2, 8 bits, in memory: no decoding. Of the turns the least time counts; sizes take turns, so that
other work on the machine falls on all of them alike. ``waste`` is the pixels through the network for each of the
picture's, of which most differences come.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from echoir.export.request import OVERLAP
from echoir.runtime.artifact import write_artifact
from echoir.runtime.bench import peak_memory
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.fit import MOST, waste
from echoir.runtime.manifest import FLOAT_NCHW, CheckpointRecord, Manifest, Model, Precision, TensorSpec, Tile
from echoir.runtime.restorer import Restorer


def identity(folder: Path) -> Path:
    """An artifact of free sides that gives what it is given."""
    sides = [1, 3, "rows", "columns"]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name in ("input", "output"))
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["output"])], "identity", [given], [made])
    path = folder / "identity.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    tensors = {name: TensorSpec(name, **FLOAT_NCHW) for name in ("input", "output")}  # type: ignore[arg-type]
    manifest = Manifest(
        name="identity",
        network=Descriptor("identity", "denoise", 0, multiple=(32, 32)),
        checkpoint=CheckpointRecord("none", "0" * 64),
        model=Model("onnxruntime"),
        precision=Precision("fp32"),
        tile=Tile(256, 256, OVERLAP, 1, MOST),
        versions={},
        **tensors,
    )
    return write_artifact(manifest, path).model_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-m", "--model")
    what.add_argument("--identity", action="store_true", help="a network that gives what it is given")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.1, 0.3, 1, 3, 10, 30, 100])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.identity:
            options.model = identity(Path(folder))
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Run, and print."""
    sizes = [(round((mega * 1e6 / 1.5) ** 0.5), round((mega * 1e6 * 1.5) ** 0.5)) for mega in options.megapixels]
    rng = np.random.default_rng(0)
    least = dict.fromkeys(sizes, float("inf"))
    memory: dict[tuple[int, int], int] = {}
    with Restorer.open(options.model, threads=options.threads, device=options.device) as restorer:
        restorer(rng.integers(0, 256, (*sizes[0], 3), np.uint8))  # what is made once
        for _ in range(options.turns):
            for size in sizes:
                picture = rng.integers(0, 256, (*size, 3), np.uint8)
                begun = time.perf_counter()
                restorer(picture)
                least[size] = min(least[size], time.perf_counter() - begun)
                memory.setdefault(size, peak_memory() - 2 * picture.nbytes)
        each = {size: seconds / (size[0] * size[1]) for size, seconds in least.items()}
        middle = float(np.median(list(each.values())))
        print("| width x height | tiles | waste | seconds | ns a pixel | to the median | peak MB beyond in and out |")
        print("|---|---|---|---|---|---|---|")
        for (height, width), seconds in least.items():
            count, tile, cost = waste(restorer.manifest, height, width)
            print(
                f"| {width} x {height} | {count} of {tile[0]} x {tile[1]} | {cost:.2f} | {seconds:.2f} "
                f"| {each[height, width] * 1e9:.0f} | {each[height, width] / middle:.2f} "
                f"| {memory[height, width] / 1e6:.0f} |"
            )


if __name__ == "__main__":
    main()
