"""Chance on the device where pictures are degraded, reproducible from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class Draw:
    """Random numbers for a batch of crops: a function of the seed and the device's kind alone.

    What decides shapes and branches is drawn on the host (``host``), everything else on the device,
    so that no step waits for the other.

    Args:
        seed: any numbers, such as (seed of the run, number of the chunk).
        device: of the tensors.
    """

    def __init__(self, seed: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.host = np.random.default_rng(tuple(seed))
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(int(self.host.integers(2**63)))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers in [low, high), float32."""
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def each(self, count: int, low: float, high: float) -> Tensor:
        """One uniform number per crop: [count, 1, 1, 1]."""
        return self.uniform(low, high, count, 1, 1, 1)

    def log_each(self, count: int, low: float, high: float) -> Tensor:
        """One number per crop, its logarithm uniform between those of ``low`` and ``high``: [count, 1, 1, 1]."""
        return self.each(count, float(np.log(low)), float(np.log(high))).exp()

    def chance(self, count: int, share: float) -> Tensor:
        """True for a share of the crops: [count, 1, 1, 1]."""
        return self.each(count, 0, 1) < share

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in [0, high), int64."""
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def one(self, choices: Sequence[T]) -> T:
        """One of several, drawn on the host."""
        return choices[int(self.host.integers(len(choices)))]

    def parts(self, count: int, shares: Sequence[float]) -> list[int]:
        """How many of ``count`` crops fall to each of several kinds, by chance."""
        total = float(sum(shares))
        return [int(part) for part in self.host.multinomial(count, [share / total for share in shares])]
