"""Build every engine: presets, precisions and formats; seconds and sizes.

python benchmarks/engines.py [--target tensorrt-rtx] [--tile 256] [--presets tiny small base]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from echoir.export.engine import build_engine
from echoir.export.onnx_export import export_onnx
from echoir.network import EchoIR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=["tensorrt", "tensorrt-rtx"], default="tensorrt-rtx")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "base"])
    options = parser.parse_args()
    print("| preset | precision | io | ONNX MB | build s | engine MB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        onnx_path, engine_path = Path(folder) / "model.onnx", Path(folder) / "model.engine"
        for preset in options.presets:
            network = EchoIR.from_preset(preset)
            for precision in ("fp32", "fp16"):
                for io in ("float", "uint8"):
                    export_onnx(network, onnx_path, tile=(options.tile, options.tile), io=io, precision=precision)
                    info = build_engine(onnx_path, engine_path, target=options.target)
                    size = onnx_path.stat().st_size / 1e6
                    print(
                        f"| {preset} | {precision} | {io} | {size:.1f} | {info.seconds:.1f} | {info.bytes / 1e6:.1f} |",
                        flush=True,
                    )
    print(f"\n{options.target} {info.version} for {', '.join(info.compute_capabilities)}, tile {options.tile}, batch 1")


if __name__ == "__main__":
    main()
