"""FFDNet (Zhang et al. 2018) from its author's own file, to stand beside: told the noise level, which echoir is not.

``models/FFDNet_color.mat`` of github.com/cszn/FFDNet; nothing of it is in this repository. Needs h5py.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn


class FFDNet(nn.Module):
    """The colour network: 2 x 2 pixels folded into channels, the level beside them, convolutions, unfolded.

    MATLAB stores columns first and HDF5 hands its arrays out transposed. So rows and columns have changed places in
    the kernels and in the order of the folded pixels, and the picture is turned to match.

    Args:
        path: the .mat file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        shapes = [(96, 13), *[(96, 96)] * 10, (12, 96)]
        self.convolutions = nn.ModuleList(nn.Conv2d(c, k, 3, padding=1) for k, c in shapes)
        with h5py.File(path) as file:
            layers = [file[reference] for reference in file["net/layers"][:].ravel()]
            named = [("".join(map(chr, layer["type"][:].ravel())), layer["weights"]) for layer in layers]
            stored = [[file[reference][:] for reference in pair[:].ravel()] for name, pair in named if name == "conv"]
        for convolution, (kernel, bias) in zip(self.convolutions, stored, strict=True):
            convolution.load_state_dict({"weight": torch.from_numpy(kernel), "bias": torch.from_numpy(bias.ravel())})

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        """[N, 3, W, H], even sides, and [N, 1, 1, 1] in units of the image -> [N, 3, W, H]."""
        x = F.pixel_unshuffle(image, 2)
        x = torch.cat([x, sigma.expand(-1, 1, *x.shape[2:])], 1)
        for convolution in self.convolutions[:-1]:
            x = convolution(x).relu()
        return F.pixel_shuffle(self.convolutions[-1](x), 2)

    def restore(self, image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        """A picture, float32 [H, W, 3] in [0, 1] and of any size, told its noise level in 8-bit codes."""
        height, width = image.shape[:2]
        even = np.pad(image, [(0, height % 2), (0, width % 2), (0, 0)], mode="edge")
        with torch.inference_mode():
            turned = torch.from_numpy(np.ascontiguousarray(even.transpose(2, 1, 0)))[None]
            restored = self(turned, torch.full((1, 1, 1, 1), sigma / 255))
        return np.ascontiguousarray(restored[0].numpy().transpose(2, 1, 0)[:height, :width])
