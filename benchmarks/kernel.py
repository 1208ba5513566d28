"""The kernel on this GPU: against the reference, eager PyTorch, torch.compile and the memory it must move.

    python benchmarks/kernel.py [--presets base tiny] [--rounds 50] [--tilings] [-o benchmarks/results]

One row per upsampler of a preset at 1920 x 1080 and per storage type. Times are medians over
rounds, each timed by events, with the level-2 cache flushed in between. The roofline is the
operator's least traffic over the bandwidth of a large device-to-device copy, measured here. The
backward pass is timed against the reference's, and has no roofline of its own.
Errors are the largest difference from float64, relative to the largest value, on the same inputs
cut to 64 x 64 cells. ``--tilings`` times the forward kernel with other tilings than its own
choice, and notes the best. Writes ``kernel-DEVICE.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from kernel_table import traffic, upsamplers
from torch import Tensor

from echoir.export.echo.ptx import Storage
from echoir.networks.echoir import PRESETS
from echoir.networks.upsampler import _in_blocks
from echoir.runtime.errors import BackendError, needs_extra

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def milliseconds(call: Callable[[], Any], rounds: int) -> float:
    """Median over ``rounds``, after warming up, of a call that starts with a cold cache."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def copy_bandwidth(rounds: int) -> float:
    """Bytes per second, read and written, of a copy of 1 GiB on the device."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (1e-3 * milliseconds(lambda: target.copy_(source), rounds))


def tensors(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """down, guide and sigmas with gradients, as a network makes them."""
    torch.manual_seed(0)
    shapes = ((n, c, h, w), (n, c, 2 * h, 2 * w))
    down, guide = (torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes)
    sigmas = (torch.ones(1, device="cuda"), torch.full((1,), math.sqrt(c), device="cuda"))
    return tuple(t.requires_grad_() for t in (down, guide, *sigmas))


def kernel(*inputs: Tensor) -> Tensor:
    return torch.ops.echoir.echo_upsample(*inputs, 1, "sum")


def reference(*inputs: Tensor) -> Tensor:
    return _in_blocks(*inputs, 1, "sum")


def errors(c: int, dtype: torch.dtype) -> dict[str, float]:
    """Forward, and gradient by input, against the reference in float64."""
    inputs = tensors(1, c, 64, 64, dtype)
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    exact, out = reference(*exact_inputs), kernel(*inputs)
    gradient = torch.randn_like(out)
    wanted = (exact, *torch.autograd.grad(exact, exact_inputs, gradient.double()))
    got = (out, *torch.autograd.grad(out, inputs, gradient))
    names = ("out", "down", "guide", "sigma_spatial", "sigma_range")
    return {
        name: ((a.double() - b).abs().max() / b.abs().max()).item()
        for name, a, b in zip(names, got, wanted, strict=True)
    }


def measure(c: int, h: int, w: int, storage: Storage, bandwidth: float, rounds: int) -> dict[str, Any]:
    """Milliseconds of each way, and the share of the roofline that the kernel reaches."""
    inputs = tensors(1, c, h, w, DTYPES[storage])
    compiled = torch.compile(reference, dynamic=False)
    row: dict[str, Any] = {}
    with torch.no_grad():
        for name, call in (("kernel", kernel), ("eager", reference), ("compiled", compiled)):
            row[name] = milliseconds(lambda call=call: call(*inputs), rounds)  # type: ignore[misc]
    row["roofline"] = 1e3 * traffic(1, c, c, h, w, storage) / bandwidth
    row["share"] = row["roofline"] / row["kernel"]
    for name, call in (("kernel", kernel), ("compiled", compiled)):
        out = call(*inputs)
        gradient = torch.randn_like(out)
        row[f"{name}_backward"] = milliseconds(
            lambda out=out, gradient=gradient: torch.autograd.grad(out, inputs, gradient, retain_graph=True),  # type: ignore[misc]
            rounds,
        )
    return row


def tilings(c: int, h: int, w: int, storage: Storage, rounds: int) -> dict[str, float]:
    """Milliseconds by tiling, the best first; the first key is what :meth:`Tiling.for_plane` should have chosen."""
    from echoir.networks.kernel import Tiling, forward

    inputs = [t.detach() for t in tensors(1, c, h, w, DTYPES[storage])]
    choices = itertools.product((64, 128, 256), (16, 32, 64), (1, 2, 4), (1, 2), (1, 2))
    times = {}
    for threads, columns, lanes, stack, unroll in choices:
        tiling = Tiling(threads // columns // lanes * stack, columns, lanes, stack, unroll)
        if tiling.rows:
            name = f"{tiling.rows}x{columns} lanes {lanes} stack {stack} unroll {unroll}"
            times[name] = milliseconds(lambda t=tiling: forward(*inputs, 1, "sum", t), rounds)  # type: ignore[misc]
    return dict(sorted(times.items(), key=lambda item: item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["base", "tiny"], choices=list(PRESETS))
    parser.add_argument("--storage", nargs="+", default=list(get_args(Storage)), choices=get_args(Storage))
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--tilings", action="store_true", help="also time other tilings")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/kernel.py measures a CUDA device, and there is none", file=sys.stderr)
        sys.exit(BackendError.exit_code)
    with needs_extra("kernel"):
        import triton

    device = torch.cuda.get_device_name()
    bandwidth = copy_bandwidth(options.rounds)
    record: dict[str, Any] = {
        "device": device,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
        "copy_bytes_per_second": bandwidth,
        "rows": [],
    }
    for preset in options.presets:
        for name, (c, h, w) in upsamplers(PRESETS[preset].width).items():
            for storage in options.storage:
                row = {"preset": preset, "upsampler": name, "channels": c, "storage": storage}
                row |= measure(c, h, w, storage, bandwidth, options.rounds)
                row["errors"] = errors(c, DTYPES[storage])
                if options.tilings:
                    row["tilings"] = tilings(c, h, w, storage, options.rounds)
                record["rows"].append(row)
                print(json.dumps(row), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"kernel-{re.sub(r'[^a-z0-9]+', '-', device.lower())}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(record))
    print(path.with_suffix(".md"))


def table(record: dict[str, Any]) -> str:
    """The record as markdown."""
    lines = [
        f"EchoUpsample on {record['device']}, {record['date']}: torch {record['torch']}, CUDA {record['cuda']}, Triton "
        f"{record['triton']}; copy {record['copy_bytes_per_second'] / 1e12:.2f} TB/s. `python benchmarks/kernel.py`",
        "",
        "| preset | level | C | type | kernel ms | roofline ms | share | eager | compiled "
        "| backward ms | compiled backward | error out | largest error of a gradient |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        out, *slopes = row["errors"].values()
        lines.append(
            f"| {row['preset']} | {row['upsampler']} | {row['channels']} | {row['storage']} | {row['kernel']:.3f} "
            f"| {row['roofline']:.3f} | {row['share']:.0%} | {row['eager'] / row['kernel']:.1f}x "
            f"| {row['compiled'] / row['kernel']:.1f}x | {row['kernel_backward']:.3f} "
            f"| {row['compiled_backward'] / row['kernel_backward']:.1f}x | {out:.1e} | {max(slopes):.1e} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
