"""What the rewrites of the export save in ONNX Runtime, and what the upsamplers cost.

    python benchmarks/graph_forms.py [--preset tiny] [--tile 256] [--rounds 7]

Times are CPU milliseconds of one thread, the least of several rounds taken in turn, so that other
work on the machine disturbs them little. ``echoir bench --against pytorch`` gives wall time.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from subjects import crops, network, source

from echoir.export.echo import lowering as forms
from echoir.export.echo.function import ATTRIBUTES, echo_function, node_attributes
from echoir.export.graph import OPSET
from echoir.networks.echoir import EchoIR


def session(model: onnx.ModelProto, profile: str = "") -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def least(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Least CPU milliseconds of each, all in turn."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds + 1):
        for name, call in runs.items():
            start = time.process_time()
            call()
            best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return best


def variants(subject: EchoIR, tile: int) -> dict[str, onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        return source(subject).graph(tile=(tile, tile), batch=1, io="float")

    models = {}
    with mock.patch.object(forms, "deployed", copy.deepcopy):
        models["the network as it is written"] = build()
    with mock.patch.object(forms, "LANES", 1):
        models["deployed, hidden channels not grown"] = build()
    with mock.patch.object(forms, "_strided", lambda down: down):
        models["deployed, pixel-unshuffle kept"] = build()
    models["deployed"] = build()
    return models


def shares(model: onnx.ModelProto, image: np.ndarray, rounds: int) -> tuple[float, float]:
    """Parts of a run spent in the operator EchoUpsample, and in the whole modules up1, up2, up3."""
    with tempfile.TemporaryDirectory() as folder:
        running = session(model, os.path.join(folder, "profile"))
        for _ in range(rounds):
            running.run(None, {"input": image})
        events = json.loads(Path(running.end_profiling()).read_text())
    durations: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations.setdefault(event["name"], []).append(event["dur"])
    least_by_node = {name: min(times) for name, times in durations.items()}
    total = sum(least_by_node.values())
    operator = sum(t for name, t in least_by_node.items() if "_inlfunc_EchoUpsample" in name)
    modules = operator + sum(t for name, t in least_by_node.items() if name.startswith(("up1/", "up2/", "up3/")))
    return operator / total, modules / total


def tap_loop() -> onnx.FunctionProto:
    """The plain alternative: nine taps in turn, the four phases of an output cell as channels."""
    nodes: list[onnx.NodeProto] = []

    def op(kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def number(value: Any) -> str:
        array = np.asarray(value, np.int64 if np.asarray(value).dtype.kind == "i" else np.float32)
        return op("Constant", value=numpy_helper.from_array(array))

    size = op("Shape", "down", start=2)
    cells = op("ReduceProd", size, keepdims=1)
    phases = op("Concat", number([0, 4, -1]), cells, axis=0)
    plane = op("Concat", number([0, 1, -1]), cells, axis=0)
    guide = op("Reshape", op("SpaceToDepth", "guide", blocksize=2), phases)  # [N, 4, K, h * w]
    pads = number([0, 0, 1, 1, 0, 0, 1, 1])
    mean = op("Pad", op("AveragePool", "guide", kernel_shape=[2, 2], strides=[2, 2]), pads, mode="edge")
    down = op("Pad", "down", pads, mode="edge")
    scale = {s: op("Div", number(-0.5), op("Mul", s, s)) for s in ("sigma_spatial", "sigma_range")}
    sums = total = ""
    for y in range(3):
        for x in range(3):
            ends = number([y - 2 or 2**62, x - 2 or 2**62])
            shifted = [
                op("Reshape", op("Slice", source, number([y, x]), ends, number([2, 3])), plane)
                for source in (mean, down)
            ]
            squares = op("ReduceSumSquare", op("Sub", guide, shifted[0]), number([2]), keepdims=1)
            near = op("Exp", op("Mul", squares, scale["sigma_range"]))
            places = [(y - 1 - i) ** 2 + (x - 1 - j) ** 2 for i in (-0.25, 0.25) for j in (-0.25, 0.25)]
            close = op("Exp", op("Mul", number(np.reshape(places, (1, 4, 1, 1))), scale["sigma_spatial"]))
            weight = op("Add", near, close)
            term = op("Mul", weight, shifted[1])
            sums, total = (op("Add", sums, term), op("Add", total, weight)) if sums else (term, weight)
    shape = op("Concat", number([0, -1]), size, axis=0)
    op("DepthToSpace", op("Reshape", op("Div", sums, total), shape), out="output", blocksize=2, mode="DCR")
    inputs = ["down", "guide", "sigma_spatial", "sigma_range"]
    return helper.make_function(
        "echoir", "EchoUpsample", inputs, ["output"], nodes, [helper.make_opsetid("", OPSET)], list(ATTRIBUTES)
    )


def operator(function: onnx.FunctionProto, channels: int, side: int) -> onnx.ModelProto:
    """One EchoUpsample to side x side pixels."""
    shapes = {"down": side // 2, "guide": side, "up": side}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, s, s]) for name, s in shapes.items()]
    sigmas = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in "sr"]
    node = helper.make_node("EchoUpsample", ["down", "guide", "s", "r"], ["up"], domain="echoir", **node_attributes(1))
    return helper.make_model(
        helper.make_graph([node], "operator", values[:2], values[2:], sigmas),
        functions=[function],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("echoir", 1)],
        ir_version=10,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject, image = network(options.preset), crops(1, options.tile)
    models = variants(subject, options.tile)
    runs: dict[str, Callable[[], Any]] = {}

    def eager() -> None:
        with torch.inference_mode():
            subject(torch.from_numpy(image))

    runs["PyTorch eager"] = eager
    for name, model in models.items():
        runs[f"ONNX Runtime, {name}"] = partial(session(model).run, None, {"input": image})
    times = least(runs, options.rounds)
    print(f"{options.preset}, tile {options.tile}, onnxruntime {ort.__version__}, torch {torch.__version__}\n")
    print("| | CPU ms | against PyTorch |\n|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value:.0f} | {times['PyTorch eager'] / value:.2f}x |")
    part, whole = shares(models["deployed"], image, options.rounds)
    print(f"\nshare of the three upsamplers: operator {part:.1%}, with their 1x1 convolutions {whole:.1%}\n")

    bodies = {"block form": echo_function(1, "sum", OPSET), "nine taps in turn": tap_loop()}
    sizes = [(subject.config.width * 2**level, options.tile // 2**level) for level in range(3)]
    print("| EchoUpsample, CPU ms | " + " | ".join(f"{c} channels to {s}" for c, s in sizes) + " |")
    print("|---|" + "---|" * len(sizes))
    rng = np.random.default_rng(0)
    columns = []
    for channels, side in sizes:
        feed = {
            name: rng.standard_normal((1, channels, s, s), dtype=np.float32)
            for name, s in (("down", side // 2), ("guide", side))
        }
        sessions = {name: session(operator(body, channels, side)) for name, body in bodies.items()}
        first, second = (s.run(None, feed)[0] for s in sessions.values())
        np.testing.assert_allclose(first, second, atol=1e-4)
        calls = {name: partial(running.run, None, feed) for name, running in sessions.items()}
        columns.append(least(calls, options.rounds))
    for name in bodies:
        print(f"| {name} | " + " | ".join(f"{column[name]:.1f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
