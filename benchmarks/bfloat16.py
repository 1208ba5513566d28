"""Which nodes cost bfloat16 its dB in OpenVINO, and what it takes to keep them in float32.

    python benchmarks/bfloat16.py ARTIFACT... [--turns 9] [--threads 1]

dB from ONNX Runtime's float32 on the worst of the shipped pictures with noise, one tile each, and processor time of a
tile as a multiple of OpenVINO's float32: all take turns, the least of the turns counts. ``picture`` is what the picture
goes through up to the first products, ``exponents`` the terms of an exponential; both are what
echoir/runtime/bfloat16.py keeps. The rows below keep them too, and more: sums of two images, the last products
before the output, one kind of node, or everything.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import openvino

from echoir.runtime.artifact import Artifact
from echoir.runtime.bfloat16 import PRODUCTS, exponents, factors_first, keeping_float32, pictured
from echoir.runtime.choice import picture_tiles
from echoir.runtime.machine import describe_machine
from echoir.runtime.onnx_session import without_functions
from echoir.runtime.sessions import open_session

KINDS = ("MVN", "ReduceL2", "Softmax", "GroupConvolution", "MatMul", "Gelu", "Transpose")


def groups(model: Any) -> dict[str, set[str]]:
    """Names of the nodes to keep, by row."""
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    picture, exponent = pictured(model), exponents(model)
    both = picture | exponent
    found = {"nothing": set[str](), "picture": picture, "exponents": exponent, "both": both}
    sums = {name for name, node in nodes.items() if node.get_type_name() == "Add" and of_images(node)}
    found |= {"both, sums": both | sums, "both, last products": both | last(model)}
    for kind in KINDS:
        if names := {name for name, node in nodes.items() if node.get_type_name() == kind}:
            found[f"both, {kind}"] = both | names
    return found | {"everything": set(nodes)}


def of_images(node: Any) -> bool:
    """Whether both terms are [N, C, H, W] with pixels."""
    shapes = [value.get_partial_shape() for value in node.inputs()]
    return all(len(shape) == 4 and shape[2] != 1 and shape[3] != 1 for shape in shapes)


def last(model: Any) -> set[str]:
    """What stands between the last products and the output, with them."""
    found: set[str] = set()
    waiting = [result.get_node() for result in model.outputs]
    while waiting:
        for value in waiting.pop().inputs():
            node = value.get_source_output().get_node()
            if node.get_type_name() not in ("Constant", "Parameter") and node.get_friendly_name() not in found:
                found.add(node.get_friendly_name())
                waiting += [node] * (node.get_type_name() not in PRODUCTS)
    return found


def table(artifact: Artifact, turns: int, threads: int) -> None:
    """Print it for one artifact."""
    tiles = picture_tiles(artifact.manifest)
    with open_session(artifact, threads=threads) as session:
        expected = [session.run(tile) for tile in tiles]
    core = openvino.Core()
    model = core.read_model(without_functions(artifact.model_path), b"")
    factors_first(openvino, model)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}

    def request(hint: str, names: set[str]) -> Any:
        marked = keeping_float32(openvino, core, model, names)
        return core.compile_model(marked, "CPU", settings | {"INFERENCE_PRECISION_HINT": hint}).create_infer_request()

    requests = {"float32": request("f32", set())}
    found = groups(model)
    for name, names in found.items():
        try:
            requests[name] = request("bf16", names)
        except RuntimeError:
            print(f"{name}: OpenVINO does not compile it")
    least = dict.fromkeys(requests, float("inf"))
    for turn in range(turns + 1):
        for name, one in requests.items():
            begun = time.process_time()
            one.infer([tiles[0]])
            if turn:  # a first run prepares much
                least[name] = min(least[name], time.process_time() - begun)
    for name, one in requests.items():
        made = [one.infer([tile])[0] for tile in tiles]
        square = max(float(np.square(a.astype(np.float64) - b).mean()) for a, b in zip(made, expected, strict=True))
        quotient = least[name] / least["float32"]
        count = len(found.get(name, ()))
        print(
            f"| {artifact.manifest.name} | {name} | {count} | {-10 * np.log10(square):.2f} | {quotient:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print("| artifact | float32 for | nodes | dB | processor time, float32 = 1 |")
    print("|---|---|---|---|---|")
    for path in options.artifacts:
        table(Artifact.open(path), options.turns, options.threads)
    machine = describe_machine()
    print(f"\n{machine.cpu}, {options.threads} thread(s), load {machine.load}, {options.turns} turns")


if __name__ == "__main__":
    main()
