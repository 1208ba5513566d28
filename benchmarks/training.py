"""How fast networks train on a device: crops per second, eager and compiled, both memory layouts.

    python benchmarks/training.py --device cuda --network '{"width": 32, "stem": 2}' --batch 128 --patch 128

Crops are noise: what they show does not change the time. Each way runs its first steps unmeasured. On CUDA steps are
recorded as graphs, as ``echoir train`` does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import click
import torch
from torch import Tensor
from torch.optim import AdamW

from echoir.captured import WARM_UP, Captured
from echoir.crops import Batch
from echoir.losses import LOSSES
from echoir.networks.echoir import EchoIR

WAYS = tuple((compiled, layout) for compiled in (False, True) for layout in ("contiguous", "channels_last"))


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--preset", default="tiny", show_default=True)
@click.option("--network", "networks", multiple=True, default=["{}"], help="What to change of the preset, as JSON.")
@click.option("--batch", default=128, show_default=True)
@click.option("--patch", default=128, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Measured for each way.")
@click.option("--compile/--no-compile", "compile_", default=True, show_default=True)
def main(
    device: str, preset: str, networks: tuple[str, ...], batch: int, patch: int, seconds: float, compile_: bool
) -> None:
    print(f"{batch} crops of {patch} x {patch} a step, bfloat16, {device}")
    print("| network | way | ms a step | crops a second |\n|---|---|---|---|")
    for text in networks:
        for compiled, layout in WAYS:
            if compiled and not compile_:
                continue
            spent = step_seconds(
                EchoIR.from_preset(preset, **json.loads(text)), device, batch, patch, seconds, compiled, layout
            )
            way = f"{'compiled' if compiled else 'eager'}, {layout}"
            print(f"| {preset} {text} | {way} | {1e3 * spent:.1f} | {batch / spent:.0f} |", flush=True)


def step_seconds(
    network: EchoIR, device: str, batch: int, patch: int, seconds: float, compiled: bool, layout: str
) -> float:
    """The mean time of a training step."""
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    network = network.to(device).to(memory_format=format)  # type: ignore[call-overload]  # missing in torch's stubs
    cuda = device.startswith("cuda")
    optimizer = AdamW(network.parameters(), 1e-4, fused=cuda, capturable=cuda)
    clean = torch.rand(batch, 3, patch, patch, device=device).to(memory_format=format)
    noisy = clean + 0.1 * torch.randn_like(clean)
    forward = torch.compile(network, dynamic=False) if compiled else network

    def update(batches: Sequence[Batch]) -> Tensor:
        degraded, truth = batches[0]
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            restored = forward(degraded)
        loss = LOSSES["psnr"](restored.float(), truth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    take = Captured(update) if cuda else update

    def step() -> None:
        take([(noisy, clean)])

    def wait() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(WARM_UP + 2):
        step()
    started, count = wait(), 0
    while count == 0 or time.perf_counter() - started < seconds:
        for _ in range(5):
            step()
        count += 5
        wait()
    return (wait() - started) / count


if __name__ == "__main__":
    main()
