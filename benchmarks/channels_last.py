"""Where an artifact changes the order of its axes: in the graph, and in what TensorRT-RTX makes of it. No GPU needed.

    python benchmarks/channels_last.py [--weights denoise] [--precision fp16] [--tile 256] [--capability 8.9]

For ``--io float`` (NCHW) and ``--io uint8`` (NHWC, as cameras give it): transpositions at the input, at the output and
between layers; then, of the engine, the layers that change the order of axes and do nothing else, and those in which a
transposition was fused with what stands beside it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import onnx
from engine_layers import engine_layers

from echoir.export.sources import open_source
from echoir.export.typed import export_onnx

MOVES = ("Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Identity")


def places(model: onnx.ModelProto) -> tuple[dict[str, str], Counter[str]]:
    """Of each transposition whether it is at the input, at the output or between layers; and how many are where.

    Only casts, scaling, clipping and the like stand between one at the input and the input itself.
    """
    graph = model.graph
    plain = {"Cast", "Mul", "Div", "Clip", "Round", "Transpose", "Identity"}
    outer: dict[str, set[str]] = {"input": {graph.input[0].name}, "output": {graph.output[0].name}}
    for node in graph.node:
        if node.op_type in plain and node.input[0] in outer["input"]:
            outer["input"].update(node.output)
    for node in reversed(graph.node):
        if node.op_type in plain and node.output[0] in outer["output"]:
            outer["output"].add(node.input[0])
    found = {}
    for node in graph.node:
        if node.op_type == "Transpose":
            at_input, at_output = node.input[0] in outer["input"], node.output[0] in outer["output"]
            found[node.name] = "input" if at_input else "output" if at_output else "between layers"
    return found, Counter(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="denoise")
    parser.add_argument("--precision", default="fp16", choices=["fp32", "fp16"])
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--capability", default="8.9")
    parser.add_argument("--lines", action="store_true", help="the engine's own lines for its outermost layers")
    options = parser.parse_args()
    from echoir.export.layers import read_layers

    source = open_source(options.weights)
    print("| io | transpositions | in the graph | alone in a layer of the engine | fused with other nodes |")
    print("|---|---|---|---|---|")
    for io in ("float", "uint8"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            export_onnx(source, path, tile=(options.tile,) * 2, io=io, precision=options.precision)
            model = onnx.load(path)
            where, counts = places(model)
            kinds = {node.name: node.op_type for node in model.graph.node}
            _, lines = engine_layers(path.read_bytes(), options.capability)
        layers = read_layers(lines)
        alone, fused, seen = Counter[str](), Counter[str](), set[str]()
        for layer in layers:
            moved = [node for node in layer.nodes if node in where]
            rest = [node for node in layer.nodes if kinds.get(node, "other") not in MOVES]
            (fused if rest else alone).update(where[node] for node in moved if node not in seen)
            seen.update(moved)
        for place in ("input", "output", "between layers"):
            print(f"| {io} | {place} | {counts[place]} | {alone[place]} | {fused[place]} |", flush=True)
        print(f"| {io} | all layers of the engine | | {len(layers)} | |")
        if options.lines:
            print("\n".join(line[:600] for line in (*lines[:4], *lines[-4:])))


if __name__ == "__main__":
    main()
