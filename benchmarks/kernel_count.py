"""Instructions of EchoUpsample's kernel, counted in what the assembler makes of it: no GPU needed, nothing is timed.

    python benchmarks/kernel_count.py [--targets 87 90 120] [--channels 48] [--storage fp16]

A row for each of its two loops (over the guide's channels, over the values'): instructions per low-resolution cell and
channel, by kind. ``sums`` are multiplications and additions in float32, ``conversions`` between storage and float32,
``loads`` and ``stores`` of memory, ``addresses`` whatever else works on integers, ``rest`` the loop itself.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton

from echoir.export.echo.ptx import CompiledKernel, compile_forward
from echoir.networks.kernel import Tiling

KINDS = {
    "sums": r"FFMA2?|FADD2?|FMUL2?|HFMA2|HMUL2",
    "conversions": r"HADD2(\.F32)?|F2F|F2FP|PRMT",
    "loads": r"LDG|LD|LDS",
    "stores": r"STG|ST|STS",
    "addresses": r"IMAD|IADD3?|LEA|SHF|UIADD3|ULEA|UIMAD|USHF|LOP3|IADD",
}
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)([.\w]*)\s*([^;]*);")


def disassembled(kernel: CompiledKernel) -> list[str]:
    """Lines of nvdisasm, of the assembler that Triton ships."""
    nvidia = triton.knobs.nvidia
    assembler = nvidia.ptxas_blackwell if kernel.target >= 100 else nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        text.write_text(kernel.ptx)
        subprocess.run([assembler.path, f"--gpu-name=sm_{kernel.target}", text, "-o", binary], check=True)
        command = [nvidia.nvdisasm.path, "-c", binary]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def loops(lines: list[str]) -> list[list[tuple[str, str]]]:
    """(opcode, operands) of each loop: what lies between a label and a jump back to it."""
    labels: dict[str, int] = {}
    found = []
    for number, line in enumerate(lines):
        if label := re.match(r"\.?(L_x_\d+):", line.strip().lstrip(".")):
            labels[label[1]] = number
        instruction = INSTRUCTION.match(line)
        jump = re.search(r"\bBRA\b.*\.(L_x_\d+)", line)
        if instruction and jump and jump[1] in labels:
            body = [INSTRUCTION.match(one) for one in lines[labels[jump[1]] : number + 1]]
            found.append([(one[1], one[1] + one[2]) for one in body if one])
    return [body for body in found if any(name.startswith("LDG") for name, _ in body)]


def kind(opcode: str) -> str:
    """Of an instruction, by its name."""
    return next((name for name, pattern in KINDS.items() if re.fullmatch(pattern, opcode)), "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, nargs="+", default=[87, 90, 120])
    parser.add_argument("--channels", type=int, default=48)
    parser.add_argument("--storage", default="fp16", choices=["fp16", "bf16", "fp32"])
    parser.add_argument("--details", action="store_true", help="every opcode")
    options = parser.parse_args()
    tilings = {"a stack of two": Tiling(8, 32, stack=2), "single cells": Tiling(4, 32)}
    print(f"| target | tiling | loop | all | {' | '.join(KINDS)} | rest |")
    print("|---" * (len(KINDS) + 5) + "|")
    for target in options.targets:
        for name, tiling in tilings.items():
            kernel = compile_forward(target, options.channels, options.channels, storage=options.storage, tiling=tiling)
            bodies = loops(disassembled(kernel))
            for place, body in zip(("guide", "values"), bodies, strict=True):
                channels = max(1, round(sum(o.startswith("LDG") for o, _ in body) / expected(place, tiling)))
                counts = Counter(kind(opcode) for opcode, _ in body)
                shares = [counts[each] / tiling.stack / channels for each in (*KINDS, "rest")]
                cells = " | ".join(f"{share:.1f}" for share in shares)
                print(f"| sm_{target} | {name} | {place} | {sum(shares):.1f} | {cells} |", flush=True)
                if options.details:
                    print(Counter(opcode for _, opcode in body).most_common(25))
    print(f"\nTriton {triton.__version__}, C = K = {options.channels}, radius 1, {options.storage}")


def expected(place: str, tiling: Tiling) -> int:
    """Loads of one channel: upper and lower pixels of every cell of the window, or its values."""
    window = 3 * (2 + tiling.stack)
    return 2 * window if place == "guide" else window


if __name__ == "__main__":
    main()
