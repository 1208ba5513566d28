"""Networks and pictures that the benchmarks of the export share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from echoir.checkpoint import load_checkpoint
from echoir.export.sources import TorchSource
from echoir.networks.echoir import EchoIR
from echoir.samples import SHIPPED, open_samples


def network(preset: str) -> EchoIR:
    """The shipped denoiser for tiny; for the others random weights that keep activations alive.

    Every convolution preserves the variance of its input (PyTorch's default shrinks it threefold,
    which would flatter float16), and the last is scaled so that the correction's standard deviation
    is 0.1, that of noise with sigma 25. Layers end up with two to ten times the activations of the
    trained network.
    """
    if preset == "tiny":
        return load_checkpoint("denoise").network
    torch.manual_seed(0)
    made = EchoIR.from_preset(preset).eval().requires_grad_(False)
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    image = torch.from_numpy(crops(1, 128))
    made.output.weight.mul_(0.1 / (made(image) - image).std())
    return made


def source(made: EchoIR) -> TorchSource:
    """A network as the export takes it."""
    return TorchSource(made, made.describe("denoise", "tiny"))


def crops(count: int, size: int, sigma: float = 25.0) -> NDArray[np.float32]:
    """Noisy pieces of the shipped pictures: [count, 3, size, size], nominally in [0, 1]."""
    pieces = []
    for index, sample in enumerate(open_samples(SHIPPED, "denoise", sigma=sigma)):
        if index < count:
            pieces.append(sample.degraded[:size, :size].transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(pieces), dtype=np.float32)
