"""L-BFGS with backtracking, for functions that are infinite outside a region.

The line searches of ``torch.optim.LBFGS`` and of SciPy interpolate between values, and an infinite one, as a
barrier has it, makes their next trial NaN. Halving needs no values, only comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], tuple[float, Tensor]]
"""``x -> (value, gradient)``, both x and gradient of shape [n]; the value may be infinite."""

ARMIJO = 1e-4


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        x: the point, [n].
        value: the function there.
        iterations: steps taken.
        promise: by how much the next step should lower the value.
        converged: that is less than the tolerance. Else the steps were used up, or no step along the gradient
            lowers the value, which is then as exact as it can be evaluated.
    """

    x: Tensor
    value: float
    iterations: int
    promise: float
    converged: bool


def minimise(
    function: Function,
    x: Tensor,
    tolerance: float,
    *,
    iterations: int,
    memory: int = 10,
    halvings: int = 30,
    project: Callable[[Tensor], Tensor] = lambda x: x,
) -> Minimum:
    """Minimise a smooth function from a point where it is finite.

    Args:
        function: value and gradient.
        x: where to start, [n], floating.
        tolerance: stop when a step promises to lower the value by less, in units of the value.
        iterations: largest number of steps.
        memory: pairs of steps and changes of the gradient that model the curvature (Nocedal 1980).
        halvings: of a step, before the model, and then the search, is given up.
        project: onto the set that x may not leave.
    """
    value, gradient = function(x)
    pairs: list[tuple[Tensor, Tensor]] = []
    step, promise = 0, math.inf
    while step < iterations:
        direction = _direction(gradient, pairs)
        # The first step has no scale to go by: it is at most of length 1.
        length = 1.0 if pairs else min(1.0, 1.0 / max(float(gradient.norm()), 1e-300))
        full = project(x - direction) if pairs else project(x - length * direction)
        promise = float(gradient @ (x - full)) / 2
        if promise <= max(tolerance, _noise(value, x)) and not (pairs and promise < 0):
            return Minimum(x, value, step, promise, True)
        for _ in range(halvings):
            trial = project(x - length * direction)
            expected = float(gradient @ (x - trial))
            new_value, new_gradient = function(trial)
            if expected > 0 and new_value <= value - ARMIJO * expected:
                break
            length /= 2
        else:
            if not pairs:
                return Minimum(x, value, step, promise, False)
            pairs = []  # the model misleads, perhaps near the set's border: once more from the gradient
            continue
        moved, bent = trial - x, new_gradient - gradient
        if float(moved @ bent) > 1e-10 * float(moved.norm() * bent.norm()):
            pairs = [*pairs, (moved, bent)][-memory:]
        x, value, gradient = trial, new_value, new_gradient
        step += 1
    return Minimum(x, value, iterations, promise, False)


def _noise(value: float, x: Tensor) -> float:
    """Rounding error of a value of this size."""
    return 4 * torch.finfo(x.dtype).eps * abs(value)


def _direction(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian's model times the gradient (the two-loop recursion)."""
    if not pairs:
        return gradient
    direction, shares = gradient.clone(), []
    for moved, bent in reversed(pairs):
        share = (moved @ direction) / (moved @ bent)
        direction -= share * bent
        shares.append(share)
    moved, bent = pairs[-1]
    direction *= (moved @ bent) / (bent @ bent)
    for (moved, bent), share in zip(pairs, reversed(shares), strict=True):
        direction += (share - (bent @ direction) / (moved @ bent)) * moved
    return direction
