"""Weights to start from, of the same network or of a smaller one (Net2Net: Chen, Goodfellow and Shlens 2016)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from echoir.networks.echoir import EchoIR, EchoIRConfig
from echoir.networks.table import Network
from echoir.runtime.errors import ArtifactError

GROWING = ("blocks", "middle", "refinement", "expansion", "residual_blocks")
"""Fields of a configuration that may be larger than where the weights come from."""
LAST = (".attention.out.weight", ".feed_forward.out.weight", ".conv2.weight")
"""What ends the branches of a block: zeros there make it the identity, and still have gradients."""


def take_over(network: nn.Module, start: Network) -> bool:
    """Make a freshly drawn network compute what ``start`` computes, by taking its weights.

    An EchoIR may have more blocks and more hidden channels than ``start``. What is new keeps the weights that were
    drawn, but for those of its last layer, which become zero: so the function is the same to rounding. That layer
    learns from the first step on, what is before it from the second.

    Returns:
        Whether it grew.

    Raises:
        ArtifactError: ``start`` is neither of the same network nor of a smaller one of the same widths.
    """
    found, needed = start.config, getattr(network, "config", type(network).__name__)
    if found == needed:
        network.load_state_dict(start.state_dict())
        return False
    if isinstance(network, EchoIR) and isinstance(start, EchoIR) and _grows(start.config, network.config):
        _grow(start, network)
        return True
    raise ArtifactError("start", found, needed, "the recipe trains another network, and not a larger one")


def _grows(small: EchoIRConfig, large: EchoIRConfig) -> bool:
    if replace(small, **{name: getattr(large, name) for name in GROWING}) != large:
        return False
    scalars = (name for name in GROWING if name != "blocks")
    levels = all(few <= many for few, many in zip(small.blocks, large.blocks, strict=True))
    return levels and all(getattr(small, name) <= getattr(large, name) for name in scalars)


@torch.no_grad()
def _grow(small: EchoIR, large: EchoIR) -> None:
    known = small.state_dict()
    halves = 2 if large.config.feed_forward == "gdfn" else 1  # the gate's hidden channels, then the content's
    for name, tensor in large.state_dict().items():
        if name not in known:
            if name.endswith(LAST):
                tensor.zero_()
        elif (old := known[name]).shape == tensor.shape:
            tensor.copy_(old)
        elif name.endswith(".out.weight"):  # reads hidden channels
            tensor.zero_()[:, : old.shape[1]] = old
        else:  # makes hidden channels
            for new, part in zip(tensor.chunk(halves), old.chunk(halves), strict=True):
                new[: len(part)] = part
