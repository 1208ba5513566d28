"""What training minimizes: functions of restored and clean crops, float32 [N, 3, P, P], that give one number."""

from __future__ import annotations

from collections.abc import Callable

import click
import torch
from torch import Tensor

from echoir.named import find, is_own

Loss = Callable[[Tensor, Tensor], Tensor]

SMALLEST_ERROR = 1e-5  # of a crop's mean square: 50 dB
CHARBONNIER = 1e-3  # where the square becomes a line: a quarter of a code of 8 bits
FFT_WEIGHT = 0.1


def l1(restored: Tensor, clean: Tensor) -> Tensor:
    """The mean absolute error."""
    return (restored - clean).abs().mean()


def charbonnier(restored: Tensor, clean: Tensor) -> Tensor:
    """The mean of sqrt(e² + 10⁻⁶): L1 that is smooth at zero (Charbonnier et al. 1994; Lai et al. 2017)."""
    return ((restored - clean).square() + CHARBONNIER**2).sqrt().mean()


def l1_fft(restored: Tensor, clean: Tensor) -> Tensor:
    """L1, and 0.1 times L1 of the Fourier coefficients' real and imaginary parts (MIMO-UNet, Cho et al. 2021)."""
    error = torch.view_as_real(torch.fft.rfft2(restored - clean))
    return l1(restored, clean) + FFT_WEIGHT * error.abs().mean()


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Half the mean natural logarithm of each crop's squared error; one decibel is 0.115. Beyond 50 dB it levels off.

    It weighs crops of weak noise as much as those of strong noise.
    """
    return (restored - clean).square().mean((1, 2, 3)).add(SMALLEST_ERROR).log().mean() / 2


LOSSES: dict[str, Loss] = {"l1": l1, "charbonnier": charbonnier, "l1+fft": l1_fft, "psnr": psnr}


def find_loss(name: str) -> Loss:
    """A loss by its name in :data:`LOSSES`, or one's own by ``module:attribute``.

    Raises:
        click.BadParameter: there is none of that name.
    """
    if is_own(name):
        loss = find(name, "loss")
        if not callable(loss):
            raise click.BadParameter(f"loss: found {name!r}, needed a function of restored and clean crops")
        return loss
    if name not in LOSSES:
        raise click.BadParameter(f"loss: found {name!r}, needed one of {', '.join(LOSSES)}, or module:attribute")
    return LOSSES[name]
