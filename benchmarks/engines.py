"""Build every engine: presets, precisions and formats; seconds, sizes, layers and what they compute in.

python benchmarks/engines.py [--target tensorrt-rtx] [--tile 256] [--presets tiny small base] [--io float uint8]
python benchmarks/engines.py --function     # the ONNX function of EchoUpsample: block form against tap by tap
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
from engine_layers import engine_layers
from onnx import TensorProto, helper, numpy_helper
from subjects import source

from echoir.export.echo.function import echo_function, node_attributes
from echoir.export.echo.taps import tap_function
from echoir.export.engine import build_engine
from echoir.export.graph import OPSET
from echoir.export.typed import export_onnx
from echoir.networks.echoir import EchoIR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=["tensorrt", "tensorrt-rtx"], default="tensorrt-rtx")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--io", nargs="+", default=["float", "uint8"])
    parser.add_argument("--function", action="store_true")
    options = parser.parse_args()
    if options.function:
        functions()
        return
    print("| preset | precision | io | ONNX MB | build s | engine MB | layers | convolutions | matrix products |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        onnx_path, engine_path = Path(folder) / "model.onnx", Path(folder) / "model.engine"
        for preset in options.presets:
            network = EchoIR.from_preset(preset)
            for precision in ("fp32", "fp16"):
                for io in options.io:
                    export_onnx(
                        source(network), onnx_path, tile=(options.tile, options.tile), io=io, precision=precision
                    )
                    info = build_engine(onnx_path, engine_path, target=options.target)
                    size = onnx_path.stat().st_size / 1e6
                    kinds = [
                        ", ".join(f"{n} {kind}" for kind, n in info.details["precisions"].get(role, {}).items())
                        for role in ("convolution", "matrix product")
                    ]
                    print(
                        f"| {preset} | {precision} | {io} | {size:.1f} | {info.seconds:.1f} | {info.bytes / 1e6:.1f} "
                        f"| {info.details['layers']} | {' | '.join(kinds)} |",
                        flush=True,
                    )
    print(f"\n{options.target} {info.version} for {', '.join(info.compute_capabilities)}, tile {options.tile}, batch 1")


def functions() -> None:
    """EchoUpsample alone, by each function: what TensorRT-RTX makes of it, read from its log."""
    print("| channels, output | stored in | function | layers parsed | kernels | MB between kernels | least possible |")
    print("|---|---|---|---|---|---|---|")
    for channels, cells in ((16, 128), (32, 64), (64, 32)):
        for storage, size in ((TensorProto.FLOAT16, 2), (TensorProto.FLOAT, 4)):
            least = (channels * cells**2 + 2 * channels * 4 * cells**2) * size / 1e6
            for name, function in (("blocks", echo_function), ("taps", tap_function)):
                model = _alone(function(1, "sum", OPSET), channels, cells, storage)
                parsed, kernels, moved = _compiled(model)
                print(
                    f"| {channels}, {2 * cells} | float{8 * size} | {name} | {parsed} | {kernels} "
                    f"| {moved:.1f} | {least:.1f} |",
                    flush=True,
                )


def _alone(function: onnx.FunctionProto, channels: int, cells: int, storage: int) -> onnx.ModelProto:
    shapes = {
        name: [1, channels, side, side] for name, side in (("down", cells), ("guide", 2 * cells), ("up", 2 * cells))
    }
    values = {name: helper.make_tensor_value_info(name, storage, shape) for name, shape in shapes.items()}
    node = helper.make_node(
        "EchoUpsample", ["down", "guide", "s", "r"], ["up"], domain="echoir", name="up", **node_attributes(1)
    )
    sigmas = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in "sr"]
    graph = helper.make_graph([node], "one", [values["down"], values["guide"]], [values["up"]], sigmas)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("echoir", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)


def _compiled(model: onnx.ModelProto) -> tuple[int, int, float]:
    """Layers parsed, kernels, and the megabytes that kernels read and write, as the engine's layers say."""
    parsed, lines = engine_layers(model.SerializeToString(), "8.9")
    kernels, moved = 0, 0
    for line in lines:
        found = re.match(r"Name: .*?, LayerType: (\w+), Inputs: (.*?)\], Constants: .*?\], Outputs: (.*)", line)
        if found is None or found[1] in ("signal", "wait"):
            continue
        kernels += 1
        for sizes, kind in re.findall(r"Dimensions: \[([\d,]*)\].*?Datatype: (\w+)", found[2] + found[3]):
            elements = int(np.prod([int(size) for size in sizes.split(",")])) if sizes else 1
            moved += elements * {"Half": 2, "Int8": 1, "Bool": 1}.get(kind, 4)
    return parsed, kernels, moved / 1e6


if __name__ == "__main__":
    main()
