"""The parity gate of every preset, precision and format, in one table.

    python benchmarks/presets.py [--presets tiny small base] [--limit 1]

tiny has the shipped weights; small and base random ones with realistic activations (``subjects.py``).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from subjects import network

from echoir.checkpoint import save_checkpoint
from echoir.export.pipeline import export_artifact
from echoir.export.request import Request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--io", nargs="+", default=["float", "uint8"])
    parser.add_argument("--limit", type=int, default=1, help="shipped pictures to measure on")
    options = parser.parse_args()
    print("| preset | io | precision | worst picture, dB | change against truth, dB | largest code error |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for preset in options.presets:
            weights = Path(folder) / f"{preset}.safetensors"
            save_checkpoint(weights, network(preset), "denoise", preset, {})
            for io in options.io:
                for precision in ("fp32", "fp16"):
                    request = Request(
                        weights=str(weights),
                        precision=precision,
                        targets=("onnx",),
                        io=io,
                        limit=options.limit,
                        output=Path(folder) / "export",
                    )
                    figures = export_artifact(request).report.figures
                    assert figures is not None  # the gate passed
                    worst, change = figures.worst.error.psnr, figures.truth.delta_psnr
                    print(
                        f"| {preset} | {io} | {precision} | {worst:.1f} | {change:+.4f} | {figures.code_error} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
