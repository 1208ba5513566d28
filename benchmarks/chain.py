"""Any networks through the whole chain: parity, INT8 within a budget, an engine, a large picture, memory.

    python benchmarks/chain.py --weights model.pth --weights model.onnx --weights benchmarks/strangers.py:dncnn \
        --calibration DIR [--data DIR] [--megapixels 12] [--precision fp32 fp16 int8] [-o chain.json]

Each step is the command that a user types, in a process of its own: ``echoir-export`` for every precision, with
TensorRT-RTX's engine for fp16 and int8 (built, not run), and ``echoir restore`` of a shipped photograph that is
mirrored to size, whose peak memory is the kernel's ``ru_maxrss``. A step that fails says why, and the others go on. The
file is written after every step, and a later call adds to it: other networks, other precisions, a step once more. The
table is of all that it holds.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory import MEASURE, make_photograph

from echoir.runtime.machine import describe_machine

HEAD = ["network", "input, output", "fp32 dB", "fp16 dB", "int8 MACs %", "int8 drop", "overlap", "meet / else dB",
        "engine MB", "build s", "Mpx", "seconds", "processor s", "peak MB"]  # fmt: skip
BUDGET = 0.1  # dB that int8 may cost, unless told
ECHOIR = Path(sys.executable).with_name("echoir")


def run(*arguments: object) -> tuple[int, str, float]:
    """Exit code, the last line of what it said, and seconds."""
    start = time.monotonic()
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True)
    said = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return done.returncode, said[-1] if said else "", time.monotonic() - start


def export(weights: str, precision: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """What an export gives: figures, its engine, or why there is none."""
    target = "onnx" if precision == "fp32" or given.no_engines else "tensorrt-rtx"
    options: list[object] = ["--precision", precision, "--target", target, "--threads", given.threads, "-o", folder]
    for name in ("data", "calibration", "limit", "tile", "overlap", "max_drop"):
        if (value := getattr(given, name)) and (name not in ("calibration", "max_drop") or precision == "int8"):
            options += [f"--{name.replace('_', '-')}", value]
    code, said, seconds = run(ECHOIR, "export", "--weights", weights, *options, "--quiet")
    if code:
        return {"failed": said, "exit code": code, "seconds": seconds}
    found = [json.loads(path.read_text()) for path in folder.glob("*.json") if path.name not in OTHERS]
    onnx = next(one for one in found if one["engine"] is None)
    engine = next((one for one in found if one["engine"] is not None), None)
    figures = onnx["parity"]["figures"]
    row: dict[str, Any] = {
        "psnr_min": figures["engine_against_pytorch"]["psnr_min"],
        "delta_psnr": figures["against_truth"]["delta_psnr"],
        "truth": [figures["against_truth"][name] for name in ("degraded_psnr", "pytorch_psnr")],
        "network": onnx["network"],
        "tile": onnx["tile"],
        "float32_nodes": len(onnx["precision"]["higher"].get("float32", [])),
        "seam": onnx["parity"]["seam"],
        "seconds": seconds,
        "date": today(),
    }
    if onnx["calibration"] is not None:
        row |= {
            "budget": given.max_drop or BUDGET,
            "int8_share": onnx["calibration"]["share"],
            "int8_drop": onnx["calibration"]["drop"],
        }
    if engine is not None:
        details = engine["engine"]["details"]
        row["engine"] = {"bytes": engine["model"]["bytes"], "seconds": engine["engine"]["build_seconds"]} | details
    return row


OTHERS = ("parity.json", "sensitivity.json")


def restore(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """A large picture through an artifact: seconds, those of the processor, and the peak of the process's memory."""
    source, result = folder / "large.png", folder / "restored.png"
    width, height = make_photograph(given.megapixels, source)
    command = [ECHOIR, "restore", source, "-m", folder / "model", "-o", result, "--threads", given.threads, "--quiet"]
    code, said, seconds = run(sys.executable, "-c", MEASURE, *command)
    if code:
        return {"failed": said, "exit code": code}
    processor, memory = map(float, said.split())
    spent = {"seconds": seconds, "processor_seconds": processor, "peak_mb": memory * 1024 / 1e6}
    return {"width": width, "height": height, **spent, "date": today()}


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def conditions() -> str:
    """What it ran on, for the line above the table."""
    machine = describe_machine()
    packages = ("torch", "onnx", "onnxruntime", "tensorrt_rtx", "spandrel")
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return f"{machine.cpu}, {machine.cores} cores, load {load}; {', '.join(versions)}; {today()}"


def cells(network: str, row: dict[str, Any]) -> list[str]:
    """One network of the table; a dash where there is nothing."""

    def of(step: str, name: str, digits: int = 1, scale: float = 1) -> str:
        value = row.get(step, {}).get(name)
        if name == "psnr_min" and name in row.get(step, {}) and value is None:
            return "equal"
        return "failed" if "failed" in row.get(step, {}) else "-" if value is None else f"{scale * value:.{digits}f}"

    exported = next((row[name] for name in ("fp32", "fp16", "int8") if "tile" in row.get(name, {})), {})
    seam, tile = exported.get("seam") or {}, exported.get("tile") or {}
    parts = [seam.get(part, {}).get("psnr") for part in ("band", "elsewhere")]
    meet = " / ".join("equal" if part is None else f"{part:.1f}" for part in parts) if seam else "-"
    truth = next((row[name]["truth"] for name in ("fp32", "fp16", "int8") if "truth" in row.get(name, {})), None)
    engine = {"engine": row.get("fp16", {}).get("engine", {})}
    megabytes, seconds = (engine["engine"].get(name) for name in ("bytes", "seconds"))
    large = row.get("restore", {})
    pixels = f"{large['width'] * large['height'] / 1e6:.1f}" if "width" in large else "-"
    drop, budget = of("int8", "int8_drop", 3), row.get("int8", {}).get("budget", BUDGET)
    return [
        network, ", ".join("equal" if one is None else f"{one:.2f}" for one in truth) if truth else "-",
        of("fp32", "psnr_min"), of("fp16", "psnr_min"), of("int8", "int8_share", 1, 100),
        drop if budget == BUDGET else f"{drop} of {budget:g}", f"{tile.get('overlap', '-')}", meet,
        "-" if megabytes is None else f"{megabytes / 1e6:.1f}", "-" if seconds is None else f"{seconds:.1f}",
        pixels, of("restore", "seconds", 0), of("restore", "processor_seconds", 0), of("restore", "peak_mb", 0),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="append", default=[], help="none: only the table of the file")
    parser.add_argument("--precision", nargs="+", default=["fp32", "fp16", "int8"])
    parser.add_argument("--data", help="pictures to measure parity on [default: the shipped]")
    parser.add_argument("--calibration", help="pictures for int8")
    parser.add_argument("--max-drop", type=float, help="dB that int8 may cost [default: 0.1]")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--tile")
    parser.add_argument("--overlap")
    parser.add_argument("--megapixels", type=float, default=12.0, help="of the picture to restore; 0 restores none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-engines", action="store_true")
    parser.add_argument("-o", "--output", type=Path, help="all figures as JSON")
    given = parser.parse_args()
    kept = given.output is not None and given.output.is_file()
    rows: dict[str, dict[str, Any]] = json.loads(given.output.read_text()) if kept else {}
    for weights in given.weights:
        row = rows.setdefault(Path(weights).name, {})
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for precision in given.precision:
                row[precision] = export(weights, precision, folder / precision, given)
                print(weights, precision, json.dumps(row[precision]), file=sys.stderr, flush=True)
                keep(rows, given.output)
            made = next((folder / one for one in given.precision if (folder / one).is_dir()), None)
            if made is not None and given.megapixels:
                (folder / "model").symlink_to(made)
                print(weights, "restore", file=sys.stderr, flush=True)
                row["restore"] = restore(folder, given)
                keep(rows, given.output)
    print(conditions() + "\n")
    print("| " + " | ".join(HEAD) + " |\n" + "|" + "---|" * len(HEAD))
    for name, row in rows.items():
        print("| " + " | ".join(cells(name, row)) + " |")


def keep(rows: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
