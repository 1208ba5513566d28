"""What a network brings to its export. A literal table by architecture; ``PLAIN`` for every other one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx
from torch import nn

from echoir.calibration.graph import Structure
from echoir.export import grl
from echoir.export.echo import lowering as echo
from echoir.export.operators import OPERATORS


def unchanged(network: nn.Module) -> nn.Module:
    """A copy for inference."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@dataclass(frozen=True)
class Lowering:
    """How one architecture is exported.

    Attributes:
        rewrite: gives a copy that computes the same function in a form that engines like; the network it is given
            is left as it is. Its operators (:data:`echoir.export.operators.OPERATORS`) are opaque nodes.
        float32: nodes that keep float32 beyond what holds for all graphs, by the reason in words.
        int8: what calibration is told of its graph.
        free: whether what is exported takes any height and width.
    """

    rewrite: Callable[[nn.Module], nn.Module] = unchanged
    float32: Mapping[str, Callable[[onnx.NodeProto], bool]] = field(default_factory=dict)
    int8: Structure = field(default_factory=Structure)
    free: bool = True


MACS = {operator.name: operator.macs for operator in OPERATORS}
PLAIN = Lowering(int8=Structure(MACS))
LOWERINGS = {
    "EchoIR": Lowering(
        rewrite=echo.lowered,
        float32={"attention matrix": lambda node: echo.in_matrix(node.name)},
        int8=Structure(MACS, exact=echo.in_matrix, stage=echo.stage, cancels=echo.divided_by_length),
    ),
    "GRL": Lowering(
        rewrite=grl.lean,
        float32={"unit length of q and k": grl.in_unit_length, "logits and softmax": grl.in_logits},
        int8=Structure(MACS, exact=grl.in_attention),
        free=False,  # its stripes are cut for one size
    ),
}


def lowering_of(architecture: str) -> Lowering:
    """The lowering of an architecture, by its name in the descriptor."""
    return LOWERINGS.get(architecture, PLAIN)
