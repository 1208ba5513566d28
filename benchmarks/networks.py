"""The networks on this GPU: eager against torch.compile, contiguous against channels-last, in float16 and float32.

    python benchmarks/networks.py [--presets tiny small base] [--rounds 20] [--seconds 60] [-o benchmarks/results]
    python benchmarks/networks.py --errors      no times, so another program may use the GPU meanwhile
    python benchmarks/networks.py --rehearse    every line, on a processor and small pictures

Inference of batches of 256 x 256 crops and of a frame of 1920 x 1080; weights are random where none are shipped
(``subjects.py``). With ``--errors``, what each way computes is compared with the same network in float64, in dB, and
two steps of training with the same in float32; this also leaves compiled code in PyTorch's cache for the times.
``--seconds`` leaves out what would start later. Writes ``networks-DEVICE.json`` and ``.md`` after every row.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import Budget, Clock, compiled
from subjects import crops, network
from torch import Tensor, nn

from echoir.runtime.errors import BackendError

Shape = tuple[int, int, int, int]
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
LEAST = {"fp16": 50.0, "fp32": 90.0}  # dB against float64; tf32 is off


@dataclass(frozen=True)
class Way:
    """How a network runs."""

    storage: str
    compiled: bool
    channels_last: bool

    @property
    def name(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        return f"{self.storage} {'compiled' if self.compiled else 'eager'} {layout}"


# What matters most first: a budget cuts off the end.
WAYS = [Way("fp16", False, False), Way("fp16", True, False), Way("fp16", True, True), Way("fp16", False, True)]
WAYS += [Way("fp32", False, False), Way("fp32", True, False)]


def prepared(preset: str, way: Way, device: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A function from float32 images to what the network makes of them this way, and the network itself."""
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    module = network(preset).to(device, DTYPES[way.storage], memory_format=layout)
    run = compiled(module, device) if way.compiled else module

    def call(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return run(images.to(DTYPES[way.storage], memory_format=layout))

    return module, call


def errors(preset: str, images: Tensor, ways: list[Way]) -> Iterator[dict[str, Any]]:
    """PSNR of every way against float64, on noisy pictures."""
    device = images.device.type
    with torch.inference_mode():
        exact = network(preset).to(device, torch.float64)(images.double())
    for way in ways:
        torch.compiler.reset()
        made = prepared(preset, way, device)[1](images)
        mse = (made.double() - exact).square().mean().item()
        psnr = -10 * np.log10(max(mse, 1e-30))
        yield {"preset": preset, "way": way.name, "psnr_db": psnr, "passed": bool(psnr >= LEAST[way.storage])}


def training(preset: str, images: Tensor) -> dict[str, Any]:
    """Gradients of a step under torch.compile and in mixed precision against those of plain float32."""
    device = images.device.type
    start = network(preset).train().requires_grad_(True).to(device)

    def gradients(faster: bool, mixed: bool) -> Tensor:
        module = copy.deepcopy(start)
        run = compiled(module, device) if faster else module
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            loss = (run(images) - 0.5 * images).abs().mean()
        loss.backward()
        return torch.cat([p.grad.flatten().double() for p in module.parameters() if p.grad is not None])

    exact = gradients(False, False)
    row: dict[str, Any] = {"preset": preset, "way": "training", "passed": True}
    for name, faster, mixed, most in (("compiled", True, False, 1e-2), ("compiled bf16", True, True, 0.5)):
        torch.compiler.reset()
        row[name] = ((gradients(faster, mixed) - exact).norm() / exact.norm()).item()
        row["passed"] &= row[name] <= most
    return row


def milliseconds(preset: str, way: Way, shape: Shape, clock: Clock, rounds: int) -> dict[str, Any]:
    torch.compiler.reset()
    _, call = prepared(preset, way, clock.device)
    images = torch.rand(shape, device=clock.device)
    time = clock.milliseconds(lambda: call(images), rounds)
    megapixels = shape[0] * shape[2] * shape[3] / 1e6
    row = {
        "preset": preset,
        "shape": list(shape),
        "way": way.name,
        "ms": time,
        "megapixels_per_s": 1e3 * megapixels / time,
    }
    if clock.real:
        row["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="crops of 256 x 256")
    parser.add_argument("--errors", action="store_true", help="only compare with float64 and with plain training")
    parser.add_argument("--seconds", type=float, help="start nothing new afterwards")
    parser.add_argument("--rehearse", action="store_true", help="on a processor; the times mean nothing")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    budget = Budget(options.seconds)
    if not options.rehearse and not torch.cuda.is_available():
        print(
            "benchmarks/networks.py measures a CUDA device, and there is none; --rehearse needs none", file=sys.stderr
        )
        sys.exit(BackendError.exit_code)
    device = "cpu" if options.rehearse else "cuda"
    torch.backends.cudnn.allow_tf32 = False
    frame, batch = (
        ((1, 3, 1080, 1920), (options.batch, 3, 256, 256)) if device == "cuda" else ((1, 3, 24, 40), (2, 3, 32, 32))
    )
    if options.errors:
        check(options.presets, frame, batch, device, budget)
        return
    clock = Clock(device)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"networks-{re.sub(r'[^a-z0-9]+', '-', clock.name.lower())}.json"
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        for preset in options.presets:
            for shape in (frame, batch):
                if budget.over():
                    break
                rows.append(milliseconds(preset, way, shape, clock, options.rounds))
                print(json.dumps(rows[-1]), flush=True)
                path.write_text(json.dumps({"device": clock.name, "torch": torch.__version__, "rows": rows}, indent=1))
                path.with_suffix(".md").write_text(table(rows, clock.name))
    print(path.with_suffix(".md").read_text())


def check(presets: list[str], frame: Shape, batch: Shape, device: str, budget: Budget) -> None:
    """Print a row per way and one for training, and leave if one is too far off; what is left out for time is said."""
    wrong = []
    for preset in presets:
        for row in checked(preset, frame, batch, device):
            print(json.dumps(row), flush=True)
            wrong += [] if row["passed"] else [f"{preset} {row['way']}"]
            if budget.over():
                print(f"{preset}: no time for what is compiled after this", flush=True)
                break
    if wrong:
        raise SystemExit(f"too far from the reference: {', '.join(wrong)}")


def checked(preset: str, frame: Shape, batch: Shape, device: str) -> Iterator[dict[str, Any]]:
    """The rows of one network, what matters most first."""
    noisy = torch.from_numpy(crops(4, batch[-1])).to(device)
    images = noisy.repeat(-(-batch[0] // len(noisy)), 1, 1, 1)[: batch[0]]
    first, *rest = (way for way in WAYS if way.compiled)
    yield from errors(preset, images, [*(way for way in WAYS if not way.compiled), first])
    yield training(preset, noisy[..., :64, :64].contiguous())
    yield {"preset": preset, "way": "compiled frame", "passed": compile_frame(preset, frame, device)}
    yield from errors(preset, images, rest)


def compile_frame(preset: str, frame: Shape, device: str) -> bool:
    """A whole frame under torch.compile, which keeps the code for whoever times it; finite."""
    torch.compiler.reset()
    return bool(prepared(preset, WAYS[1], device)[1](torch.rand(frame, device=device)).isfinite().all())


def table(rows: list[dict[str, Any]], device: str) -> str:
    """The record as markdown: a line per network and size, a column per way."""
    names = list(dict.fromkeys(row["way"] for row in rows))
    lines = [f"Inference on {device}, torch {torch.__version__}, milliseconds. `python benchmarks/networks.py`", ""]
    lines += [f"| network | batch | size | {' | '.join(names)} |", "|" + "---|" * (3 + len(names))]
    for preset, shape in dict.fromkeys((row["preset"], tuple(row["shape"])) for row in rows):
        times = {row["way"]: row["ms"] for row in rows if (row["preset"], tuple(row["shape"])) == (preset, shape)}
        cells = " | ".join(f"{times[name]:.2f}" if name in times else "-" for name in names)
        lines.append(f"| {preset} | {shape[0]} | {shape[3]} x {shape[2]} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
