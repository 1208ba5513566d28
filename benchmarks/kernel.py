"""The kernel on this GPU: against the reference, eager PyTorch, torch.compile and the memory it must move.

    python benchmarks/kernel.py [--presets base small tiny] [--rounds 50] [--tilings] [-o benchmarks/results]
    python benchmarks/kernel.py --errors      no times, so another program may use the GPU meanwhile
    python benchmarks/kernel.py --rehearse    every line, on a processor, in Triton's interpreter

One row per upsampler of a preset at 1920 x 1080 and per storage type. Times are medians over
rounds, each timed by events, with the level-2 cache flushed in between. The roofline is the
operator's least traffic over the bandwidth of a large device-to-device copy, measured here. The
backward pass is timed against the reference's, and has no roofline of its own.
Errors are the largest difference from float64, relative to the largest value, of the kernels that
are timed, on 64 x 64 cells. ``--tilings`` times the forward kernel with other tilings than its own
choice, and notes the best. ``--seconds`` leaves out what would start later; times of ``torch.compile``,
which takes longest to prepare, come last. Writes ``kernel-DEVICE.json`` and ``.md`` after every row.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any, get_args

import torch
from clock import Budget, Clock, compiled
from kernel_table import traffic, upsamplers
from torch import Tensor

from echoir.export.echo.ptx import Storage
from echoir.networks.echoir import PRESETS
from echoir.networks.upsampler import _in_blocks
from echoir.runtime.errors import BackendError, needs_extra

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Largest errors that are taken for rounding: sums in float32, then one rounding to the storage type.
TOLERANCE = {"fp32": 1e-5, "fp16": 2**-10, "bf16": 2**-7}


def tensors(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """down, guide and sigmas with gradients, as a network makes them; ``shape`` is (C, h, w)."""
    torch.manual_seed(0)
    c, h, w = shape
    down, guide = (torch.randn(size, device=device).to(dtype) for size in ((1, c, h, w), (1, c, 2 * h, 2 * w)))
    sigmas = (torch.ones(1, device=device), torch.full((1,), math.sqrt(c), device=device))
    return tuple(t.requires_grad_() for t in (down, guide, *sigmas))


def kernel(*inputs: Tensor) -> Tensor:
    return torch.ops.echoir.echo_upsample(*inputs, 1, "sum")


def reference(*inputs: Tensor) -> Tensor:
    return _in_blocks(*inputs, 1, "sum")


def errors(shape: tuple[int, int, int], dtype: torch.dtype, device: str, cells: int = 64) -> dict[str, float]:
    """Forward, and gradient by input, against the reference in float64: with this plane's kernels, on a smaller one."""
    from echoir.networks.kernel import Tiling, forward
    from echoir.networks.kernel_backward import backward

    c, h, w = shape
    tiling = Tiling.for_plane(1, h, w, 1)
    inputs = [t.detach() for t in tensors((c, min(h, cells), min(w, cells)), dtype, device)]
    exact_inputs = [t.double().requires_grad_() for t in inputs]
    exact = reference(*exact_inputs)
    gradient = torch.randn_like(exact).to(dtype)
    wanted = (exact, *torch.autograd.grad(exact, exact_inputs, gradient.double()))
    got = (forward(*inputs, 1, "sum", tiling), *backward(gradient, *inputs, 1, "sum", tiling))
    names = ("out", "down", "guide", "sigma_spatial", "sigma_range")
    return {
        name: ((a.double() - b).abs().max() / b.abs().max()).item()
        for name, a, b in zip(names, got, wanted, strict=True)
    }


def compare(
    shape: tuple[int, int, int], storage: Storage, bandwidth: float, clock: Clock, rounds: int
) -> dict[str, Any]:
    """Milliseconds of the kernels and of the reference, and the share of the roofline that the kernel reaches."""
    inputs = tensors(shape, DTYPES[storage], clock.device)
    with torch.no_grad():
        row: dict[str, Any] = {"kernel": clock.milliseconds(lambda: kernel(*inputs), rounds)}
        row["roofline"] = 1e3 * traffic(1, shape[0], *shape, storage) / bandwidth
        row["share"] = row["roofline"] / row["kernel"]
        row["eager"] = clock.milliseconds(lambda: reference(*inputs), rounds)
    row["kernel_backward"] = backward_milliseconds(kernel, inputs, clock, rounds)
    return row


def compare_compiled(shape: tuple[int, int, int], storage: Storage, clock: Clock, rounds: int) -> dict[str, float]:
    """Milliseconds of the reference under ``torch.compile``."""
    torch.compiler.reset()
    inputs = tensors(shape, DTYPES[storage], clock.device)
    call = compiled(reference, clock.device)
    with torch.no_grad():
        row = {"compiled": clock.milliseconds(lambda: call(*inputs), rounds)}
    row["compiled_backward"] = backward_milliseconds(call, inputs, clock, rounds)
    return row


def backward_milliseconds(call: Any, inputs: tuple[Tensor, ...], clock: Clock, rounds: int) -> float:
    out = call(*inputs)
    gradient = torch.randn_like(out)
    return clock.milliseconds(lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True), rounds)


def tilings(shape: tuple[int, int, int], storage: Storage, clock: Clock, rounds: int) -> dict[str, float]:
    """Milliseconds by tiling, the best first; the first key is what :meth:`Tiling.for_plane` should have chosen."""
    from echoir.networks.kernel import Tiling, forward

    inputs = [t.detach() for t in tensors(shape, DTYPES[storage], clock.device)]
    choices = itertools.product((64, 128, 256), (16, 32, 64), (1, 2, 4), (1, 2), (1, 2))
    times = {}
    for threads, columns, lanes, stack, unroll in choices:
        tiling = Tiling(threads // columns // lanes * stack, columns, lanes, stack, unroll)
        if tiling.rows:
            name = f"{tiling.rows}x{columns} lanes {lanes} stack {stack} unroll {unroll}"
            times[name] = clock.milliseconds(lambda t=tiling: forward(*inputs, 1, "sum", t), rounds)  # type: ignore[misc]
    return dict(sorted(times.items(), key=lambda item: item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["base", "small", "tiny"], choices=list(PRESETS))
    parser.add_argument("--storage", nargs="+", default=["fp16", "fp32"], choices=get_args(Storage))
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--errors", action="store_true", help="only compare with float64")
    parser.add_argument("--tilings", action="store_true", help="also time other tilings")
    parser.add_argument("--seconds", type=float, help="start nothing new afterwards")
    parser.add_argument("--rehearse", action="store_true", help="on a processor; the times mean nothing")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    budget = Budget(options.seconds)
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("benchmarks/kernel.py measures a CUDA device, and there is none; --rehearse needs none", file=sys.stderr)
        sys.exit(BackendError.exit_code)
    with needs_extra("kernel"):
        import triton

    clock = Clock("cpu" if options.rehearse else "cuda")
    bandwidth = 0.0 if options.errors else clock.copy_bandwidth()
    record: dict[str, Any] = {
        "device": clock.name,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if clock.real else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
        "copy_bytes_per_second": bandwidth,
        "rows": [],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"kernel-{re.sub(r'[^a-z0-9]+', '-', clock.name.lower())}.json"

    def write(row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        if not options.errors:
            path.write_text(json.dumps(record, indent=1) + "\n")
            path.with_suffix(".md").write_text(table(record))

    rows, wrong = [], []
    for preset in options.presets:
        for name, (c, h, w) in upsamplers(PRESETS[preset]).items():
            shape = (c, h, w) if clock.real else (2, 5, 6)
            rows += [(preset, name, c, shape, storage) for storage in options.storage]
    for preset, name, c, shape, storage in rows:
        if budget.over():
            break
        row: dict[str, Any] = {"preset": preset, "upsampler": name, "channels": c, "storage": storage}
        row["errors"] = errors(shape, DTYPES[storage], clock.device)
        largest = max(row["errors"].values())
        if not largest <= 4 * TOLERANCE[storage]:  # a NaN is no error that is small enough
            wrong.append(f"{preset} {name} {storage}: {row['errors']}")
        if not options.errors:
            row |= compare(shape, storage, bandwidth, clock, options.rounds)
        record["rows"].append(row)
        write(row)
    if not options.errors:
        for row, (_, _, _, shape, storage) in zip(record["rows"], rows, strict=False):
            if budget.over():
                break
            row |= compare_compiled(shape, storage, clock, options.rounds)
            if options.tilings:
                row["tilings"] = tilings(shape, storage, clock, options.rounds)
            write(row)
        print(path.with_suffix(".md").read_text())
    if wrong:
        raise SystemExit("not the reference's values:\n" + "\n".join(wrong))


def table(record: dict[str, Any]) -> str:
    """The record as markdown; a dash for what there was no time for."""
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
        faster, backward = (
            f"{row[other] / row[own]:.1f}x" if other in row else "-"
            for other, own in (("compiled", "kernel"), ("compiled_backward", "kernel_backward"))
        )
        lines.append(
            f"| {row['preset']} | {row['upsampler']} | {row['channels']} | {row['storage']} | {row['kernel']:.3f} "
            f"| {row['roofline']:.3f} | {row['share']:.0%} | {row['eager'] / row['kernel']:.1f}x | {faster} "
            f"| {row['kernel_backward']:.3f} | {backward} | {out:.1e} | {max(slopes):.1e} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
