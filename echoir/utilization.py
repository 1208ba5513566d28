"""How busy a GPU is, as its driver tells it; asked from a thread of its own, since an answer can take long."""

from __future__ import annotations

import threading
from types import TracebackType

import torch

INTERVAL = 2.0  # seconds between questions


class Utilization:
    """Watches a GPU while it is entered; does nothing for a CPU or where the driver's library is not installed.

    Args:
        device: of PyTorch, such as ``"cuda:0"``.
    """

    def __init__(self, device: str) -> None:
        self._device, self._seen = device, list[int]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def percent(self) -> float | None:
        """The mean so far; None if nothing was seen."""
        return sum(self._seen) / len(self._seen) if self._seen else None

    def __enter__(self) -> Utilization:
        if self._device.startswith("cuda"):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                self._seen.append(torch.cuda.utilization(self._device))
            except (ImportError, RuntimeError):  # NVIDIA's management library is not installed, or refuses
                return
