"""AS-BLO: approximated sequential bi-level optimization (EchoIR paper, Eq. 7-16).

Solves ``min over beta, omega of F(beta, omega)`` subject to ``omega in argmin f(beta, .)``
without second derivatives, and without asking that the argmin be a single point. The constraint
becomes ``f(beta, omega) < f*_mu(beta)`` (Eq. 10), kept by a barrier P whose weight shrinks, with
``f*_mu(beta) = min over z of f(beta, z) + mu/2 |z|^2`` (Eq. 14). The lineage is BVFIM
(Liu et al. 2021, arXiv:2106.07991).

Nothing here knows images or networks: an objective is a function of two lists of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

Objective = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""``(beta, omega) -> scalar``; ``omega`` may be the solver's z in its place."""
MakeOptimizer = Callable[[list[Tensor]], Optimizer]

MAX_HALVINGS = 30


@dataclass(frozen=True)
class Decay:
    """A positive sequence that falls to zero: ``initial * decay^k``, not below ``floor``."""

    initial: float
    decay: float = 0.995
    floor: float = 0.0

    def __call__(self, k: int) -> float:
        return max(self.initial * self.decay**k, self.floor)


def barrier(zeta: Tensor, sigma: float, kappa: float = 1.0) -> Tensor:
    """P(zeta; sigma) of Eq. 12: logarithmic near zero, rational below -kappa, infinite from 0 on.

    The constants that make it non-negative, vanishing at minus infinity and twice continuously
    differentiable at -kappa are eta1 = -3/2 - log kappa, eta2 = 0, eta3 = kappa^2 / 2 and
    eta4 = 2 kappa; then P(-kappa) = 3 sigma / 2.

    Args:
        zeta: constraint values, f(omega) - f*_mu; any shape, floating.
        sigma: weight, > 0.
        kappa: where the two branches meet, in (0, 1].

    Returns:
        P, of the shape of ``zeta``.
    """
    # Each branch sees only arguments it is made for, or its gradient would be NaN elsewhere.
    near = torch.where((zeta >= -kappa) & (zeta < 0), zeta, -kappa)
    far = torch.where(zeta < -kappa, zeta, -kappa)
    log_branch = -sigma * (torch.log(-near) - 1.5 - math.log(kappa))
    rational = -sigma * (kappa**2 / (2 * far**2) + 2 * kappa / far)
    value = torch.where(zeta < -kappa, rational, log_branch)
    return torch.where(zeta < 0, value, torch.full_like(zeta, math.inf))


def barrier_slope(zeta: float, sigma: float, kappa: float = 1.0) -> float:
    """dP/dzeta for zeta < 0; positive, ``sigma / -zeta`` on the logarithmic branch."""
    if zeta >= 0:
        raise ValueError(f"the barrier has no slope outside its interior, zeta = {zeta}")
    if zeta >= -kappa:
        return sigma / -zeta
    return sigma * (kappa**2 / zeta**3 + 2 * kappa / zeta**2)


@dataclass(frozen=True)
class Diagnostics:
    """What one outer step saw.

    Attributes:
        zeta: f(beta, omega) - f*_mu at the point whose gradients were used; always < 0.
        barrier: P(zeta; sigma).
        slope: dP/dzeta, the weight of the lower level in this step.
        upper, lower: F(beta, omega) and f(beta, omega) there.
        lower_at_z: f(beta, z).
        pulled_back: times omega was infeasible and moved half-way to z.
        halved: times a step of omega would have left the interior and was halved.
    """

    zeta: float
    barrier: float
    slope: float
    upper: float
    lower: float
    lower_at_z: float
    pulled_back: int
    halved: int


class ASBLO:
    """The solver. ``step`` does one outer step k of the three-part iteration.

    With one z-step and one omega-step (the default) an outer step takes three forward-backward
    passes: f at z, f at omega, F at omega; their gradients serve all three updates. The check of
    the omega-step adds one forward pass of f.

    Args:
        beta: upper-level tensors, updated in place; they require gradients.
        omega: lower-level tensors, updated in place.
        make_beta, make_omega, make_z: build an optimizer for such a list.
        mu, theta, sigma: the sequences of Eq. 14 and 15. The slack of the constraint is about
            mu/2 |omega|^2: choose mu from the size of omega.
        kappa: of the barrier.
        z_steps, omega_steps: descent steps per outer step (T_z, T_omega).
        average: makes tensors their mean over processes, in place, when several share the work: values
            and gradients of objectives that are means over mini-batches.
    """

    def __init__(
        self,
        beta: Sequence[Tensor],
        omega: Sequence[Tensor],
        make_beta: MakeOptimizer,
        make_omega: MakeOptimizer,
        make_z: MakeOptimizer,
        *,
        mu: Decay,
        theta: Decay,
        sigma: Decay,
        kappa: float = 1.0,
        z_steps: int = 1,
        omega_steps: int = 1,
        average: Callable[[Sequence[Tensor]], None] = lambda tensors: None,
    ) -> None:
        self.beta, self.omega = list(beta), list(omega)
        self.z = [w.detach().clone().requires_grad_() for w in self.omega]
        self.beta_optimizer, self.omega_optimizer = make_beta(self.beta), make_omega(self.omega)
        self.z_optimizer = make_z(self.z)
        self.mu, self.theta, self.sigma, self.kappa = mu, theta, sigma, kappa
        self.z_steps, self.omega_steps = z_steps, omega_steps
        self.average = average
        self.k = 0

    def step(self, upper: Objective, lower: Objective) -> Diagnostics:
        """One outer step on this step's mini-batches.

        ``lower`` is evaluated at z and at omega, so it must be the same function each time (same
        mini-batch): the constraint compares the two values.

        Raises:
            FloatingPointError: no point between omega and z is feasible, which happens only when
                an objective is not finite or z is zero.
        """
        mu, theta, sigma = self.mu(self.k), self.theta(self.k), self.sigma(self.k)

        # z-steps (Eq. 14). The last evaluation gives f*_mu; its step waits until that was used.
        # At z = 0 there is no slack at all, and nothing would be feasible: leave it first.
        leave_zero = not any(bool(z.detach().any()) for z in self.z)
        for _ in range(self.z_steps - 1 + leave_zero):
            _descend(self.z_optimizer, self.z, _add(self._evaluate(lower, self.z).omega, mu, self.z))
        at_z = self._evaluate(lower, self.z)
        limit = at_z.value + 0.5 * mu * sum(float(z.detach().square().sum()) for z in self.z)

        # omega-steps (Eq. 15), each from an interior point to an interior point.
        pulled_back = halved = 0
        for _ in range(self.omega_steps):
            low, pulls = self._feasible_evaluation(lower, limit)
            high = self._evaluate(upper, self.omega)
            zeta = low.value - limit
            slope = barrier_slope(zeta, sigma, self.kappa)
            start = [w.detach().clone() for w in self.omega]
            _descend(self.omega_optimizer, self.omega, _add(_add(high.omega, slope, low.omega), theta, start))
            pulled_back += pulls
            halved += self._return_inside(lower, limit, start)

        # beta-step (Eq. 13 and 16): the explicit gradient, and the barrier's through f(omega) and f*_mu.
        _descend(self.beta_optimizer, self.beta, _add(_add(high.beta, slope, low.beta), -slope, at_z.beta))
        _descend(self.z_optimizer, self.z, _add(at_z.omega, mu, self.z))
        self.k += 1
        value = float(barrier(torch.tensor(zeta, dtype=torch.float64), sigma, self.kappa))
        return Diagnostics(zeta, value, slope, high.value, low.value, at_z.value, pulled_back, halved)

    def _evaluate(self, objective: Objective, lower_level: list[Tensor]) -> _Evaluation:
        """Value and gradients of an objective at (beta, ``lower_level``)."""
        value = objective(self.beta, lower_level)
        inputs = [*self.beta, *lower_level]
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]
        value = value.detach()
        self.average([value, *filled])
        return _Evaluation(float(value), filled[: len(self.beta)], filled[len(self.beta) :])

    def _feasible_evaluation(self, lower: Objective, limit: float) -> tuple[_Evaluation, int]:
        """f at omega, after moving omega half-way to z as often as it takes to be inside.

        z itself is inside, since mu/2 |z|^2 > 0.
        """
        for pulls in range(MAX_HALVINGS):
            low = self._evaluate(lower, self.omega)
            if low.value < limit:
                return low, pulls
            _interpolate(self.omega, [z.detach() for z in self.z], 0.5)
        raise FloatingPointError(f"no feasible omega between omega and z: f = {low.value}, limit {limit}")

    @torch.no_grad()
    def _return_inside(self, lower: Objective, limit: float, start: list[Tensor]) -> int:
        """Halve the step just taken until f(omega) is below the limit; returns how often."""
        for halvings in range(MAX_HALVINGS):
            value = lower(self.beta, self.omega)
            self.average([value])
            if float(value) < limit:
                return halvings
            _interpolate(self.omega, start, 0.5)
        _interpolate(self.omega, start, 1.0)
        return MAX_HALVINGS


@dataclass(frozen=True)
class _Evaluation:
    """A value with its gradients with respect to beta and to omega (or z)."""

    value: float
    beta: list[Tensor]
    omega: list[Tensor]


def _add(a: Sequence[Tensor], scale: float, b: Sequence[Tensor]) -> list[Tensor]:
    """``a + scale * b``, tensor by tensor, outside autograd."""
    return [x + scale * y.detach() for x, y in zip(a, b, strict=True)]


def _descend(optimizer: Optimizer, parameters: list[Tensor], gradients: list[Tensor]) -> None:
    """Let the optimizer take one step along these gradients."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _interpolate(parameters: list[Tensor], towards: list[Tensor], weight: float) -> None:
    for parameter, target in zip(parameters, towards, strict=True):
        parameter.lerp_(target, weight)
