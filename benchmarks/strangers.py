"""Networks of others, as ``FILE.py:FUNCTION`` of ``echoir-export --weights``; nothing of them is in this repository.

``dncnn``: the gray denoiser of Zhang et al. (2017), ``logs/DnCNN-S-25/net.pth`` of github.com/SaoYan/DnCNN-PyTorch,
whose path is in ``DNCNN_WEIGHTS``.
``rlfn``: four times the size, Kong et al. (2022), ``model_zoo/rlfn_x4.pth`` of github.com/bytedance/RLFN, whose path
is in ``RLFN_WEIGHTS``.
``nafnet``: twice the size, a small NAFNet (Chen et al., 2022) without a pyramid,
``pretrained_models/NAFNet_w64_k735_u1.pth`` of github.com/RyanVNgo/NAFNet-SISR, whose path is in ``NAFNET_WEIGHTS``.

    python benchmarks/strangers.py swinir|restormer FILE.pth

writes a checkpoint of a network that spandrel knows, with random weights of a fixed seed, for what is known of a graph
without its training: SwinIR light for four times the size, and Restormer (of spandrel_extra_arches) with 16 channels in
place of 48.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.nn.functional as F
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


class SpatialAttention(nn.Module):
    """RLFN's gate: what is seen through convolutions of a sixth of the size."""

    def __init__(self, width: int, inner: int = 16) -> None:
        super().__init__()
        self.conv1, self.conv_f = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, inner, 1)
        self.conv2, self.conv3 = nn.Conv2d(inner, inner, 3, stride=2), nn.Conv2d(inner, inner, 3, padding=1)
        self.conv4 = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        narrow = self.conv1(x)
        coarse = self.conv3(F.max_pool2d(self.conv2(narrow), 7, stride=3))
        seen = F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(seen + self.conv_f(narrow)))


class ResidualBlock(nn.Module):
    """RLFN's: three convolutions of 3 x 3, one of one pixel, the gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.c5, self.esa = nn.Conv2d(width, width, 1), SpatialAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        made = x
        for layer in (self.c1_r, self.c2_r, self.c3_r):
            made = F.leaky_relu(layer(made), 0.05)
        gated: Tensor = self.esa(self.c5(made + x))
        return gated


class RLFN(nn.Module):
    """Six blocks at the size of the input, then pixel shuffle; trained on codes up to 255."""

    def __init__(self, width: int = 52, scale: int = 4) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        for index in range(6):
            setattr(self, f"block_{index + 1}", ResidualBlock(width))
        self.upsampler = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> [N, 3, 4 H, 4 W]."""
        first = made = self.conv_1(255 * x)
        for index in range(6):
            made = getattr(self, f"block_{index + 1}")(made)
        enlarged: Tensor = self.upsampler(self.conv_2(made) + first)
        return enlarged / 255


class PixelNorm(nn.Module):
    """Layer normalization of each pixel's channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        normal: Tensor = self.layer_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normal


class GatedBlock(nn.Module):
    """NAFNet's: products of halves in place of activations, and a gate by the mean of the whole picture."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = PixelNorm(width), PixelNorm(width)
        self.conv_1 = nn.Conv2d(width, 2 * width, side, padding=side // 2)
        self.conv_2 = nn.Conv2d(2 * width, 2 * width, 2 * side + 1, padding=side, groups=2 * width)
        self.conv_3 = nn.Conv2d(width, width, side, padding=side // 2)
        self.conv_4 = nn.Conv2d(width, 2 * width, side, padding=side // 2)
        self.conv_5 = nn.Conv2d(width, width, side, padding=side // 2)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1))
        self.beta, self.gamma = (nn.Parameter(torch.zeros(1, width, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        first, second = self.conv_2(self.conv_1(self.norm_1(x))).chunk(2, dim=1)
        product = first * second
        x = x + self.beta * self.conv_3(product * self.sca(product))
        first, second = self.conv_4(self.norm_2(x)).chunk(2, dim=1)
        made: Tensor = x + self.gamma * self.conv_5(first * second)
        return made


class NAFNet(nn.Module):
    """One gated block between a convolution and pixel shuffle."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.intro = nn.Conv2d(3, width, 7, padding=3)
        self.middle_blocks = nn.Sequential(nn.Sequential(GatedBlock(width, 3)))
        self.final_reconstruction = nn.Sequential(nn.Conv2d(width, 12, 5, padding=2), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> [N, 3, 2 H, 2 W]."""
        enlarged: Tensor = self.final_reconstruction(self.middle_blocks(self.intro(x)))
        return enlarged


def dncnn() -> tuple[nn.Module, Descriptor]:
    """For noise of sigma 25; each pixel depends on 17 around it."""
    network = DnCNN()
    load(network, "DNCNN_WEIGHTS", "module.")
    return network, Descriptor("DnCNN", "denoise", count(network), "S", input="gray", output="gray", local=True)


def rlfn() -> tuple[nn.Module, Descriptor]:
    """Four times the size; the gate's coarse grid is stretched over the whole tile."""
    network = RLFN()
    load(network, "RLFN_WEIGHTS")
    return network, Descriptor("RLFN", "sr", count(network), scale=4, tile=(128, 128))


def nafnet() -> tuple[nn.Module, Descriptor]:
    """Twice the size, with the mean of the whole tile in it."""
    network = NAFNet()
    load(network, "NAFNET_WEIGHTS", unused=("ending.", "upscale_block."))
    return network, Descriptor("NAFNet", "sr", count(network), "w64 x2", scale=2)


def load(network: nn.Module, variable: str, prefix: str = "", unused: tuple[str, ...] = ()) -> None:
    """Weights alone, from the file that a variable of the environment names."""
    tensors: dict[str, Any] = torch.load(os.environ[variable], map_location="cpu", weights_only=True)
    network.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if not name.startswith(unused or "?")}
    )


def count(network: nn.Module) -> int:
    """Trained numbers."""
    return sum(parameter.numel() for parameter in network.parameters())


def random(name: str) -> nn.Module:
    """A network of others with random weights, whose last layer is scaled down so that pictures stay pictures."""
    torch.manual_seed(0)
    if name == "swinir":
        from spandrel.architectures.SwinIR import SwinIR

        light: dict[str, Any] = {"depths": [6] * 4, "num_heads": [6] * 4, "embed_dim": 60, "window_size": 8}
        network = SwinIR(**light, mlp_ratio=2, upscale=4, upsampler="pixelshuffledirect")
        last = network.upsample[0]
    else:
        from spandrel_extra_arches.architectures.Restormer import Restormer

        network = Restormer(dim=16)
        last = network.output
    with torch.no_grad():
        last.weight.mul_(0.1)
    return network


if __name__ == "__main__":
    torch.save(random(sys.argv[1]).state_dict(), sys.argv[2])
