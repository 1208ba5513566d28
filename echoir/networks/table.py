"""Every network by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from echoir.networks.echoir import PRESETS, EchoIR, EchoIRConfig
from echoir.networks.grl import GRL, SIZES, GRLConfig

Network = EchoIR | GRL

NAMES = (*(f"echoir-{preset}" for preset in PRESETS), *(f"grl-{size}" for size in SIZES))


def make_network(name: str, **switches: Any) -> Network:
    """A network with fresh weights, e.g. ``make_network("grl-s", task="sr", scale=4)``.

    Args:
        name: one of ``NAMES``: the architecture and its size.
        **switches: ``task`` (GRL), and fields of the architecture's configuration to change.

    Raises:
        ValueError: an unknown name, or switches that do not fit.
    """
    if name not in NAMES:
        raise ValueError(f"unknown network {name!r}; there are {', '.join(NAMES)}")
    architecture, _, size = name.partition("-")
    return EchoIR.from_preset(size, **switches) if architecture == "echoir" else GRL.from_preset(size, **switches)


def rebuild_network(architecture: str, config: Mapping[str, Any]) -> Network:
    """A network with fresh weights from what ``config.to_dict()`` gave.

    Raises:
        KeyError: no such architecture.
    """
    if architecture == "GRL":
        return GRL(GRLConfig.from_dict(dict(config)))
    if architecture == "EchoIR":
        return EchoIR(EchoIRConfig.from_dict(dict(config)))
    raise KeyError(architecture)
