"""PyTorch behind the interface of a deployed engine, so that both restore the very same tiles."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

IO = Literal["float", "uint8"]


class PyTorchSession:
    """Runs a network as :class:`echoir.runtime.contract.Session` runs an engine.

    With ``io="uint8"`` it does what a camera's artifact does inside its graph: divide by 255
    before the network, clip and round after it.

    Args:
        network: float32, in evaluation mode.
        io: ``"float"`` takes and gives float32 [N, C, H, W]; ``"uint8"`` uint8 [N, H, W, C].
        threads: of PyTorch's pool, for the whole process; None leaves it as it is.
    """

    def __init__(self, network: nn.Module, *, io: IO = "float", threads: int | None = None) -> None:
        self.network, self.io = network.eval(), io
        if threads is not None:
            torch.set_num_threads(threads)

    def run(self, tiles: NDArray[Any]) -> NDArray[Any]:
        """Restore a batch; the layout and dtype of ``io``, values not clipped where they are floats."""
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(tiles))
            if self.io == "float":
                return np.asarray(self.network(batch))
            restored = self.network(batch.permute(0, 3, 1, 2).float() / 255)
            codes = restored.clamp(0, 1).mul(255).round().to(torch.uint8)
            return np.ascontiguousarray(codes.permute(0, 2, 3, 1))

    def close(self) -> None:
        """Nothing to release: the network belongs to the caller."""

    def __enter__(self) -> PyTorchSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
