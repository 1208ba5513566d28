"""Times on a GPU, for the benchmarks that need one; on a processor, so that they can be rehearsed without."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


class Clock:
    """Times calls on a device.

    Args:
        device: ``"cuda"``, or ``"cpu"`` for a rehearsal, whose times mean nothing.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.real = device == "cuda"
        # More than a level-2 cache. Filling it also takes longer than Python needs to start a kernel (0.1 ms), so
        # that the kernel waits in the queue when its turn comes, and the time between two events is its own.
        self._flush = torch.empty((1 << 30) if self.real else 1, dtype=torch.uint8, device=device)

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.real else "rehearsal on a processor"

    def milliseconds(self, call: Callable[[], Any], rounds: int, warmup: int = 3) -> float:
        """Median over ``rounds``, after warming up, of a call that starts with a cold cache."""
        for _ in range(warmup if self.real else 1):
            call()
        return statistics.median(self._once(call) for _ in range(rounds if self.real else 1))

    def copy_bandwidth(self, rounds: int = 30) -> float:
        """Bytes per second, read and written, of a copy of 1 GiB of random bytes on the device."""
        source = torch.randint(0, 256, ((1 << 30) if self.real else 1 << 20,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / (1e-3 * self.milliseconds(lambda: target.copy_(source), rounds))

    def _once(self, call: Callable[[], Any]) -> float:
        self._flush.zero_()
        if not self.real:
            begun = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - begun)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Under ``torch.compile``; in a rehearsal without the compiler at its end, which would take minutes for nothing."""
    return torch.compile(function, dynamic=False, backend="inductor" if device == "cuda" else "aot_eager")


class Budget:
    """Seconds that a benchmark may take; it stops starting new rows when they are over."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end
