"""Networks of others, as ``FILE.py:FUNCTION`` of ``echoir-export --weights``; nothing of them is in this repository.

``dncnn``: the gray denoiser of Zhang et al. (2017), ``logs/DnCNN-S-25/net.pth`` of github.com/SaoYan/DnCNN-PyTorch,
whose path is in ``DNCNN_WEIGHTS``.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from echoir.runtime.descriptor import Descriptor


class DnCNN(nn.Module):
    """Convolutions of 3 x 3 and batch normalization, which find the noise; the picture less that comes out."""

    def __init__(self, depth: int = 17, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.dncnn = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, H, W] in [0, 1] -> the same."""
        restored: Tensor = x - self.dncnn(x)
        return restored


def dncnn() -> tuple[nn.Module, Descriptor]:
    """For noise of sigma 25; each pixel depends on 17 around it."""
    tensors: dict[str, Any] = torch.load(os.environ["DNCNN_WEIGHTS"], map_location="cpu", weights_only=True)
    network = DnCNN()
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in tensors.items()})
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return network, Descriptor("DnCNN", "denoise", parameters, "S", input="gray", output="gray", local=True)
