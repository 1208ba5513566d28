"""A training step as one CUDA graph: recorded once, then launched whole.

A step of a small network is a thousand launches, which take a processor longer than the GPU (measured on an H200:
60 ms of which the GPU worked 15). https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from echoir.crops import Batch

Update = Callable[[Sequence[Batch]], Tensor]
"""A whole step, its loss: everything on the device, nothing waited for, the same work each time."""

WARM_UP = 3  # steps that are taken as they come, so that nothing is made for the first time while it is recorded


class Captured:
    """A step that is recorded after its first few times.

    Args:
        update: the step. It must leave gradients None before it computes them, and its optimizer must be
            ``capturable``.
    """

    def __init__(self, update: Update) -> None:
        self.note = ""
        """Why the step could not be recorded; empty when nothing is wrong."""
        self._update, self._taken = update, 0
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batches: list[Batch] = []
        self._loss = torch.empty(0)

    def __call__(self, batches: Sequence[Batch]) -> Tensor:
        """One step with batches of the same sizes as ever; returns its loss."""
        self._taken += 1
        if self._taken <= WARM_UP or self.note:
            return self._apart(batches)
        if self._graph is None and not self._record(batches):
            return self._apart(batches)
        assert self._graph is not None
        for kept, batch in zip(self._batches, batches, strict=True):
            for into, new in zip(kept, batch, strict=True):
                into.copy_(new)
        self._graph.replay()
        return self._loss.clone()

    def _apart(self, batches: Sequence[Batch]) -> Tensor:
        """The step on the stream where it is recorded: autograd remembers where it first accumulated."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self._update(batches)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _record(self, batches: Sequence[Batch]) -> bool:
        """Record the step, without taking it; says whether that worked."""
        self._batches = [(degraded.clone(), clean.clone()) for degraded, clean in batches]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._loss = self._update(self._batches)
        except RuntimeError as error:  # some operator waits for the device, or allocates where it may not
            reason = str(error).splitlines()[0]
            self.note = f"steps are launched piece by piece: they could not be recorded as one graph ({reason})"
            return False
        self._graph = graph
        return True
