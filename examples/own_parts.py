"""Parts of one's own for training: a network, a loss, a degradation and a mixed task.

A recipe or the command line names them as module:attribute; this file must be in the working folder, or installed:

    echoir train --recipe own_parts.toml --data DIR -o runs/haze
    echoir evaluate runs/haze/haze.safetensors --network own_parts:Plain --task own_parts:haze --data DIR
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoir.degradations import TASKS, Draw, Task, mixed


class Plain(nn.Module):
    """Convolutions around which the picture passes, as DnCNN has it.

    Any module that maps [N, 3, H, W] to the same will do. The keywords are what a recipe has below [network].
    """

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(depth - 2):
            layers += [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        return image + self.layers(image)


def edges(restored: Tensor, clean: Tensor) -> Tensor:
    """L1 of the picture and of its differences to the right and downwards. A loss gives one number."""
    error = restored - clean
    return error.abs().mean() + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def hazy(clean: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Haze that grows upwards, of a strength and a light of its own for every crop: I = J t + A (1 - t).

    All chance comes from ``draw``, so that a resumed run sees the same.
    """
    n, _, height, _ = clean.shape
    far = torch.linspace(1, 0, height, device=clean.device).view(1, 1, height, 1)
    through = torch.exp(-draw.each(n, 0, 2) * far)
    return clean * through + draw.each(n, 0.7, 1) * (1 - through), clean


haze = Task(hazy, turns=False, name="haze")
haze_and_noise = mixed({haze: 2, TASKS["denoise"]: 1})  # two crops of three are hazy


def smooth(restored: Tensor, clean: Tensor) -> Tensor:
    """A loss that PyTorch has."""
    return F.smooth_l1_loss(restored, clean, beta=0.01)
