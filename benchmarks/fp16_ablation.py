"""What float16 costs in dB, and what each place that keeps float32 is worth.

    python benchmarks/fp16_ablation.py [--tile 256] [--presets tiny small base] [--tables artifact ablation]

ONNX Runtime has few float16 kernels on a CPU: it computes in float32 and skips the rounding between
nodes, so its own figure (first table) flatters float16. The second table runs the same graph with
every float16 value really rounded, sums within a node in float32, as a GPU does; and then gives up
one choice of ``echoir.export.precision`` at a time, with the node taken apart so that its
intermediate results are rounded too: what a device does that has no float32 inside that node.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper
from subjects import crops, network, source

from echoir.export.echo import lowering as forms
from echoir.export.echo.function import DOMAIN, echo_function
from echoir.export.graph import OPSET
from echoir.export.lowering import lowering_of
from echoir.export.precision import choices, to_fp16
from echoir.export.reference import IO, PyTorchSession
from echoir.export.typed import Precision, export_onnx
from echoir.metrics import psnr
from echoir.networks.echoir import EchoIR

ECHO = lowering_of("EchoIR")
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def run(model: onnx.ModelProto | Path, images: NDArray[Any], *, optimize: bool = True) -> NDArray[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    output: NDArray[Any] = session.run(None, {"input": images})[0]
    return output


def artifact(subject: EchoIR, images: NDArray[np.float32], io: IO, precision: Precision) -> float:
    """The file as it is, in ONNX Runtime, against PyTorch float32."""
    batch: NDArray[Any] = images
    if io == "uint8":
        batch = (images.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        tile = (images.shape[2], images.shape[3])
        export_onnx(source(subject), path, tile=tile, batch=len(images), io=io, precision=precision)
        return psnr(run(path, batch), PyTorchSession(subject, io=io).run(batch), 1.0 if io == "float" else 255.0)


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float32, where every float16 value goes through float16 and back."""
    model = onnx.shape_inference.infer_shapes(inliner.inline_local_functions(model), strict_mode=True)
    half = {v.name for v in model.graph.value_info if v.type.tensor_type.elem_type == HALF}
    for tensor in model.graph.initializer:
        _widen(tensor)
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            _widen(node.attribute[0].t)
        if node.op_type == "CastLike":
            node.op_type = "Identity"
            del node.input[1:]
        if node.op_type == "Cast" and node.attribute[0].i == HALF:
            node.attribute[0].i = FLOAT
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in half:
                node.output[index] = f"{name}~"
                nodes.append(helper.make_node("Cast", [f"{name}~"], [f"{name}~16"], to=HALF))
                nodes.append(helper.make_node("Cast", [f"{name}~16"], [name], to=FLOAT))
    del model.graph.value_info[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def apart(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """Replace these float16 nodes by the primitive operations they stand for."""
    nodes = []
    for node in model.graph.node:
        nodes += _primitives(node) if node.name in names else [node]
    del model.graph.value_info[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _primitives(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    made: list[onnx.NodeProto] = []

    def op(kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"{node.name}~{len(made)}"
        made.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def number(value: float | list[int]) -> str:
        array = np.asarray(value, np.int64 if isinstance(value, list) else np.float16)
        return op("Constant", value=numpy_helper.from_array(array))

    x, output = node.input[0], node.output[0]
    if node.op_type == "LayerNormalization":
        centred = op("Sub", x, op("ReduceMean", x, number([-1])))
        variance = op("ReduceMean", op("Mul", centred, centred), number([-1]))
        normal = op("Div", centred, op("Sqrt", op("Add", variance, number(1e-5))))
        scaled = op("Mul", normal, node.input[1], out="" if len(node.input) > 2 else output)
        if len(node.input) > 2:
            op("Add", scaled, node.input[2], out=output)
    elif node.op_type == "ReduceL2":
        op("Sqrt", op("ReduceSum", op("Mul", x, x), node.input[1]), out=output)
    elif node.op_type == "Softmax":
        powers = op("Exp", op("Sub", x, op("ReduceMax", x, number([-1]))))
        op("Div", powers, op("ReduceSum", powers, number([-1])), out=output)
    else:
        return [node]
    return made


def ablation(subject: EchoIR, image: NDArray[np.float32]) -> dict[str, float]:
    """dB against PyTorch with everything kept, then without one choice each, then without any."""
    reference = PyTorchSession(subject).run(image)
    model = source(subject).graph(tile=(image.shape[2], image.shape[3]), batch=len(image), io="float")

    def figure(half: onnx.ModelProto) -> float:
        return psnr(run(rounded(half), image, optimize=False), reference)

    result = {"as exported": figure(to_fp16(model, ECHO)[0])}
    for choice, names in choices(model.graph, ECHO).items():
        result[f"without {choice}"] = figure(apart(to_fp16(model, ECHO, without=[choice])[0], names))
    echo = to_fp16(model, ECHO)[0]
    echo.functions[0].CopyFrom(echo_function(1, "sum", OPSET, compute=HALF))
    assert echo.functions[0].domain == DOMAIN
    result["without weights of EchoUpsample"] = figure(echo)
    with mock.patch.object(forms, "SHRINK", 1.0):
        sums = source(subject).graph(tile=(image.shape[2], image.shape[3]), batch=len(image), io="float")
    result["without shrinking q and k"] = figure(to_fp16(sums, ECHO)[0])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--tables", nargs="+", choices=["artifact", "ablation"], default=["artifact", "ablation"])
    options = parser.parse_args()
    torch.set_num_threads(2)
    images = crops(options.images, options.tile)
    print(f"tile {options.tile}, {len(images)} pictures; dB against PyTorch float32\n")
    if "artifact" in options.tables:
        print("| preset | io | fp32 | fp16 |\n|---|---|---|---|")
        for preset in options.presets:
            subject = network(preset)
            for io in ("float", "uint8"):
                figures = [artifact(subject, images, io, precision) for precision in ("fp32", "fp16")]
                print(f"| {preset} | {io} | {figures[0]:.1f} | {figures[1]:.1f} |", flush=True)
    if "ablation" not in options.tables:
        return
    tables = {preset: ablation(network(preset), images[:1]) for preset in options.presets}
    print(f"\n| rounded after every node | {' | '.join(tables)} |\n|---|{'---|' * len(tables)}")
    for row in next(iter(tables.values())):
        print(f"| {row} | {' | '.join(f'{table[row]:.1f}' for table in tables.values())} |")


if __name__ == "__main__":
    main()
