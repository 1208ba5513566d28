"""AS-BLO for objectives that do not change: the value function of Eq. 11, minimised as it stands.

For a beta, z (Eq. 14) and omega (Eq. 15) are found to a fraction of the slack and of the barrier's weight; then
phi and its gradient (Eq. 13 and 16) are known, and beta takes a step with a line search on phi. The weights
mu, theta and sigma fall when phi can be lowered no further, so a far start only takes more steps, never other
settings. On mini-batches nothing of this holds: there :class:`echoir.asblo.ASBLO` is the solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from echoir.asblo import Objective, Project, barrier, barrier_slope, slack, unrestricted
from echoir.quasi_newton import Minimum, minimise

INNER_ACCURACY = 1e-3
"""z is exact to this share of the slack, omega to this share of sigma."""
OUTER_ACCURACY = 1e-2
"""Mu falls when a step of beta promises less than this share of sigma."""
INNER_STEPS = 200
OUTER_STEPS = 50
OUTER_HALVINGS = 12


@dataclass(frozen=True)
class Solution:
    """Where :func:`solve` ended; beta and omega hold the point.

    Attributes:
        upper: F(beta, omega), optimistic by what the last slack allows.
        upper_at_z: F(beta, z): with upper, what the slack is worth.
        lower, lower_at_z: f there.
        zeta, slack, slope: the constraint, its room, and the lower level's weight dP/dzeta.
        mu: the last weight that was reached.
        evaluations: of F or f, with gradients.
        stuck: what kept the solver from a minimum at ``last_mu``, in words; empty if nothing did. The answer may
            be good all the same: then it is that of the weight before.
    """

    upper: float
    upper_at_z: float
    lower: float
    lower_at_z: float
    zeta: float
    slack: float
    slope: float
    mu: float
    evaluations: int
    stuck: str


def solve(
    beta: Sequence[Tensor],
    omega: Sequence[Tensor],
    upper: Objective,
    lower: Objective,
    *,
    mu: float = 1e-2,
    last_mu: float = 1e-6,
    fall: float = 0.1,
    theta: float = 1e-2,
    sigma: float = 0.5,
    kappa: float = 1.0,
    project: Project = unrestricted,
) -> Solution:
    """Minimise F(beta, omega) over beta and the omega that minimise f(beta, .); changes both in place.

    The defaults are those of all problems in ``benchmarks/bilevel.py``; they suit an f whose curvature is
    about 1. Use float64: the slack ends at about ``last_mu``, and values of f are compared to a thousandth of it.

    Args:
        beta, omega: the point to start from, any shapes, of one floating dtype; they require gradients.
        upper, lower: F and f, deterministic, smooth in both.
        mu, last_mu, fall: mu starts here, is multiplied by ``fall`` and ends here.
        theta: theta / mu, constant.
        sigma: sigma / mu^(3/4), constant. The lower level's weight must grow like mu^(-1/2) where its minimum is
            unique, which keeps omega deep inside if sigma falls like mu^(1/2); the barrier's bias is smallest
            if it falls like mu. This is between.
        kappa: of the barrier.
        project: onto B.

    Raises:
        ValueError: a setting is out of its range.
        FloatingPointError: an objective is not finite at the start.
    """
    for name, value in {"mu": mu, "last_mu": last_mu, "theta": theta, "sigma": sigma}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    if not (0 < fall < 1 and 0 < kappa <= 1 and last_mu <= mu):
        raise ValueError(f"0 < fall < 1, 0 < kappa <= 1 and last_mu <= mu, got {fall}, {kappa}, {last_mu}, {mu}")
    problem = _ValueFunction(list(beta), list(omega), upper, lower, kappa)
    with torch.no_grad():
        project(problem.beta)

    def onto(x: Tensor) -> Tensor:
        if project is unrestricted:
            return x
        _put(problem.beta, x)
        with torch.no_grad():
            project(problem.beta)
        return _flat(problem.beta)

    while True:
        weights = _Weights(mu, theta * mu, sigma * mu**0.75)
        best = _flat(problem.beta)
        if not math.isfinite(problem(best, weights)[0]):
            raise FloatingPointError(f"no finite value at the start: {problem.trouble or 'F or f is not finite'}")
        found = minimise(
            lambda x, weights=weights: problem(x, weights),  # type: ignore[misc]
            best,
            OUTER_ACCURACY * weights.sigma,
            iterations=OUTER_STEPS,
            halvings=OUTER_HALVINGS,
            project=onto,
        )
        problem(found.x, weights)
        stuck = ""
        if found.promise > weights.sigma:  # less than that is the barrier's own error
            reason = "beta still moves" if found.iterations == OUTER_STEPS else "no step of beta lowers phi"
            trouble = problem.trouble or "its gradient is not exact"
            stuck = f"at mu = {mu:.0e} {reason} after {found.iterations} steps; {trouble}"
        if mu * fall < last_mu * (1 - 1e-9):
            return problem.solution(mu, weights, stuck)
        mu *= fall


class _Weights(NamedTuple):
    mu: float
    theta: float
    sigma: float


class _ValueFunction:
    """phi of Eq. 11 as a function of beta, with z and omega kept from call to call.

    ``trouble`` says what was wrong with the last call.
    """

    def __init__(
        self, beta: list[Tensor], omega: list[Tensor], upper: Objective, lower: Objective, kappa: float
    ) -> None:
        self.beta, self.omega, self.upper, self.lower, self.kappa = beta, omega, upper, lower, kappa
        self.z = [w.detach().clone().requires_grad_() for w in omega]
        self.evaluations = 0
        self.trouble = ""

    def __call__(self, beta: Tensor, weights: _Weights) -> tuple[float, Tensor]:
        """phi and its gradient; infinite where z cannot be found, since nothing is known of f* there."""
        _put(self.beta, beta)
        self.trouble = ""
        before = _flat(self.z)
        best = self._minimise(self._regularised(weights.mu), before, INNER_ACCURACY * slack(weights.mu, self.z))
        _put(self.z, best.x)
        if not best.converged:
            self.trouble = "z was not found: f may have no minimum, or be badly conditioned"
            if best.iterations == INNER_STEPS or not math.isfinite(best.value):
                _put(self.z, before)
                return math.inf, torch.zeros_like(beta)
        penalised = self._penalised(weights, best.value)
        # Omega rides along with z, so it stays inside when beta takes a long step.
        start = self._inside(_flat(self.omega) + best.x - before, best.value, slack(weights.mu, self.z))
        found = self._minimise(penalised, start, INNER_ACCURACY * weights.sigma)
        _put(self.omega, found.x)
        if not found.converged and not self.trouble:
            self.trouble = "omega was not found exactly: raise sigma"
        low, high, at_z = (
            self._evaluate(*point)
            for point in ((self.lower, self.omega), (self.upper, self.omega), (self.lower, self.z))
        )
        slope = barrier_slope(low[0] - best.value, weights.sigma, self.kappa)
        return found.value, high[1] + slope * (low[1] - at_z[1])

    def solution(self, mu: float, weights: _Weights, stuck: str) -> Solution:
        with torch.no_grad():
            upper, upper_at_z = (float(self.upper(self.beta, point)) for point in (self.omega, self.z))
            lower, lower_at_z = (float(self.lower(self.beta, point)) for point in (self.omega, self.z))
        room = slack(mu, self.z)
        zeta = lower - lower_at_z - room
        slope = barrier_slope(zeta, weights.sigma, self.kappa)
        return Solution(upper, upper_at_z, lower, lower_at_z, zeta, room, slope, mu, self.evaluations, stuck)

    def _minimise(self, function: Callable[[Tensor], tuple[float, Tensor]], start: Tensor, tolerance: float) -> Minimum:
        return minimise(function, start, tolerance, iterations=INNER_STEPS)

    def _regularised(self, mu: float) -> Callable[[Tensor], tuple[float, Tensor]]:
        """f + mu/2 (1 + |z|^2), whose minimum is f*_mu."""

        def function(x: Tensor) -> tuple[float, Tensor]:
            _put(self.z, x)
            value, _, gradient = self._evaluate(self.lower, self.z)
            return value + slack(mu, self.z), gradient + mu * x

        return function

    def _penalised(self, weights: _Weights, limit: float) -> Callable[[Tensor], tuple[float, Tensor]]:
        """F + P + theta/2 |omega|^2 (Eq. 15), infinite outside."""

        def function(x: Tensor) -> tuple[float, Tensor]:
            _put(self.omega, x)
            low, _, low_gradient = self._evaluate(self.lower, self.omega)
            if not low < limit:
                return math.inf, low_gradient
            high, _, high_gradient = self._evaluate(self.upper, self.omega)
            zeta = low - limit
            penalty = float(barrier(torch.tensor(zeta, dtype=torch.float64), weights.sigma, self.kappa))
            value = high + penalty + 0.5 * weights.theta * float(x @ x)
            slope = barrier_slope(zeta, weights.sigma, self.kappa)
            return value, high_gradient + slope * low_gradient + weights.theta * x

        return function

    def _inside(self, omega: Tensor, limit: float, room: float) -> Tensor:
        """The point itself, or one nearby that is inside: across the linearised constraint, then towards z."""
        z = _flat(self.z)
        for attempt in range(60):
            _put(self.omega, omega)
            value, _, gradient = self._evaluate(self.lower, self.omega)
            if value - limit < -0.01 * room:
                return omega
            steepness = float(gradient @ gradient)
            if attempt < 10 and 0 < steepness < math.inf:
                omega = omega - (value - limit + 0.5 * room) / steepness * gradient
            else:
                omega = z + 0.5 * (omega - z)
        return z

    def _evaluate(self, objective: Objective, lower_level: list[Tensor]) -> tuple[float, Tensor, Tensor]:
        """Value, and the gradients with respect to beta and to omega (or z), flat."""
        self.evaluations += 1
        inputs = [*self.beta, *lower_level]
        value = objective(self.beta, lower_level)
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]
        return float(value.detach()), _flat(filled[: len(self.beta)]), _flat(filled[len(self.beta) :])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@torch.no_grad()
def _put(tensors: Sequence[Tensor], values: Tensor) -> None:
    for tensor, part in zip(tensors, values.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
