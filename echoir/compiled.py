"""Compiled code is compared with eager code before it is trusted with a training run.

On a processor with AMX (Sapphire Rapids; PyTorch 2.13), ``torch.compile`` under bfloat16 autocast gives NaN
in half of a batch for some networks, without a word; eager bfloat16 and compiled float32 are right. So the
first step, its gradients too, is computed both ways, and what is wrong is not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Mode:
    """How a network is run while it is trained."""

    compiled: bool
    bfloat16: bool

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'eager'} {'bfloat16' if self.bfloat16 else 'float32'}"


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        mode: how the network is run.
        forward: the network, or what was compiled of it.
        note: what a reader of the log should know; empty when all is as asked for.
    """

    mode: Mode
    forward: Forward
    note: str = ""


@dataclass(frozen=True)
class _Trial:
    mode: Mode
    forward: Forward
    gradients: Tensor
    seconds: float


def choose(
    network: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss: Loss,
    wanted: Mode,
    compiler: Callable[..., Any] = torch.compile,
) -> Choice:
    """The wanted mode if it computes what eager code does, else the fastest of its neighbours that does.

    Args:
        network: as it will be trained; its gradients are used up.
        batch: (degraded, clean) of the size that is trained on.
        loss: of (restored, clean).
        wanted: as the recipe has it.
        compiler: ``torch.compile``.
    """
    if not wanted.compiled:
        return Choice(wanted, network)

    def attempt(mode: Mode) -> _Trial | str:
        # A graph for each stage's crop size: one for all sizes fails in Inductor (2.13, CPU), and would be slower.
        forward = compiler(network, dynamic=False) if mode.compiled else network
        try:
            return _tried(network, forward, batch, loss, mode)
        except Exception as error:  # whatever a compiler may raise, training can do without it
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    exact = _tried(network, network, batch, loss, Mode(False, False))
    eager = _tried(network, network, batch, loss, Mode(False, True)) if wanted.bfloat16 else exact
    tolerance = 4 * _distance(eager.gradients, exact.gradients) + 1e-3
    first = attempt(wanted)
    reason = first if isinstance(first, str) else _fault(first, exact, tolerance)
    if not reason and isinstance(first, _Trial):
        return Choice(first.mode, first.forward)
    others: list[_Trial] = [eager]
    if wanted.bfloat16:
        other = attempt(Mode(True, False))
        if isinstance(other, _Trial) and not _fault(other, exact, 1e-3):
            others.append(other)
    fastest = min(others, key=lambda trial: trial.seconds)
    note = f"{wanted} is wrong on this machine ({reason}): training in {fastest.mode}"
    return Choice(fastest.mode, fastest.forward, note)


def _tried(network: nn.Module, forward: Forward, batch: tuple[Tensor, Tensor], loss: Loss, mode: Mode) -> _Trial:
    """Gradients of a mode, and the seconds of a second step."""
    degraded, clean = batch
    for _ in range(2):
        started = _now(degraded.device)
        for parameter in network.parameters():
            parameter.grad = None
        with torch.autocast(degraded.device.type, torch.bfloat16, enabled=mode.bfloat16):
            restored = forward(degraded)
        loss(restored.float(), clean).backward()
        seconds = _now(degraded.device) - started
    return _Trial(mode, forward, _flat(network.parameters()), seconds)


def _flat(parameters: Any) -> Tensor:
    gradients: Sequence[Tensor] = [p.grad.detach().flatten().float() for p in parameters if p.grad is not None]
    return torch.cat(list(gradients))


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _fault(trial: _Trial, exact: _Trial, tolerance: float) -> str:
    """What is wrong with its gradients; empty when nothing is."""
    missing = int((~trial.gradients.isfinite()).sum())
    if missing:
        return f"{missing} of {trial.gradients.numel()} gradients are not finite"
    distance = _distance(trial.gradients, exact.gradients)
    return f"gradients are off by {distance:.2g}, eager code by {tolerance:.2g} at most" if distance > tolerance else ""


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
