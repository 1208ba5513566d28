"""AS-BLO: approximated sequential bi-level optimization (EchoIR paper, Eq. 7-16).

Solves ``min over beta, omega of F(beta, omega)`` subject to ``omega in argmin f(beta, .)``
without second derivatives, and without asking that the argmin be a single point. The constraint
becomes ``f(beta, omega) < f*_mu(beta)`` (Eq. 10), kept by a barrier P whose weight shrinks, with
``f*_mu(beta) = min over z of f(beta, z) + mu/2 |z|^2`` (Eq. 14). The lineage is BVFIM
(Liu et al. 2021, arXiv:2106.07991).

This is the iteration for mini-batches: every step sees another batch, and optimizers such as Adam average
over them. :mod:`echoir.value_function` solves problems whose objectives do not change from call to call.

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

Project = Callable[[Sequence[Tensor]], None]
"""Moves beta, in place, to the nearest point of B; called without gradients."""

MARGIN = 0.1
"""Omega is kept where zeta <= -MARGIN * slack, so the barrier's slope is at most sigma / (MARGIN * slack)."""
MAX_HALVINGS = 30
PROJECTIONS = 10
PATIENCE = 10
"""Steps in a row with halvings, after which the optimizer of omega starts anew and the solver says so."""


def unrestricted(beta: Sequence[Tensor]) -> None:
    """The projection where beta may be anything."""


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
    return sigma * (kappa / zeta) * (kappa / zeta + 2) / zeta  # in this order, nothing overflows


def slack(mu: float, z: Sequence[Tensor]) -> float:
    """How much worse than z omega may be: mu/2 (1 + |z|^2).

    Eq. 14 has no 1. With it the interior is never empty, also where z is zero; z itself is the same.
    """
    return 0.5 * mu * (1 + sum(float(part.detach().square().sum()) for part in z))


@dataclass(frozen=True)
class Diagnostics:
    """What one outer step saw.

    Attributes:
        zeta: f(beta, omega) - f*_mu at the point whose gradients were used; always < 0.
        slack: what -zeta is where omega is as good as z.
        barrier: P(zeta; sigma).
        slope: dP/dzeta, the weight of the lower level in this step.
        upper, lower: F(beta, omega) and f(beta, omega) there. F is optimistic: omega uses the slack.
        upper_at_z: F(beta, z), what the upper level is worth without the slack; NaN in steps that do not ask.
        lower_at_z: f(beta, z).
        pulled_back: times omega was outside at the start of a step and was moved inside.
        halved: times a step of omega would have left the interior, or used up too much of it, and was halved.
        stuck: what keeps the solver from moving, in words; empty if nothing does.
    """

    zeta: float
    slack: float
    barrier: float
    slope: float
    upper: float
    lower: float
    upper_at_z: float
    lower_at_z: float
    pulled_back: int
    halved: int
    stuck: str


class ASBLO:
    """The solver on mini-batches. ``step`` does one outer step k of the three-part iteration.

    With one z-step and one omega-step (the default) an outer step takes three forward-backward
    passes: f at z, f at omega, F at omega; their gradients serve all three updates. The check of
    the omega-step adds one forward pass of f.

    A step of omega may use up half of the slack that is left, and never the last tenth of the whole: what is
    too long is halved. Where a step of beta or another batch puts omega outside, it goes back across the
    linearised constraint, which leaves directions alone that f does not see, and only then towards z.

    Args:
        beta: upper-level tensors, updated in place; they require gradients.
        omega: lower-level tensors, updated in place.
        make_beta, make_omega, make_z: build an optimizer for such a list.
        mu, theta, sigma: the sequences of Eq. 14 and 15. The slack of the constraint is
            mu/2 (1 + |z|^2): choose mu from the size of omega, so that it is a few per cent of f.
        kappa: of the barrier.
        z_steps, omega_steps: descent steps per outer step (T_z, T_omega).
        clip: largest norm of each level's gradient.
        project: onto B.
        look: steps between evaluations of F at z, each a forward pass; 0 for never.
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
        clip: float = math.inf,
        project: Project = unrestricted,
        look: int = 1,
        average: Callable[[Sequence[Tensor]], None] = lambda tensors: None,
    ) -> None:
        self.beta, self.omega = list(beta), list(omega)
        self.z = [w.detach().clone().requires_grad_() for w in self.omega]
        self.beta_optimizer, self.omega_optimizer = make_beta(self.beta), make_omega(self.omega)
        self.z_optimizer = make_z(self.z)
        self.mu, self.theta, self.sigma, self.kappa = mu, theta, sigma, kappa
        self.z_steps, self.omega_steps, self.clip, self.look = z_steps, omega_steps, clip, look
        self.project, self.average = project, average
        self.k = 0
        self.halved_in_a_row = self.pulled_in_a_row = 0

    def step(self, upper: Objective, lower: Objective) -> Diagnostics:
        """One outer step on this step's mini-batches.

        ``lower`` is evaluated at z and at omega, so it must be the same function each time (same
        mini-batch): the constraint compares the two values.

        Raises:
            FloatingPointError: no point between omega and z is feasible, which happens only when
                an objective is not finite.
        """
        mu, theta, sigma = self.mu(self.k), self.theta(self.k), self.sigma(self.k)

        # z-steps (Eq. 14). The last evaluation gives f*_mu; its step waits until that was used.
        for _ in range(self.z_steps - 1):
            self._descend(self.z_optimizer, self.z, _add(self._evaluate(lower, self.z).omega, mu, self.z))
        at_z = self._evaluate(lower, self.z)
        room = slack(mu, self.z)
        limit = at_z.value + room
        ask = self.look and self.k % self.look == 0
        upper_at_z = self._value(upper, self.z) if ask else math.nan

        # omega-steps (Eq. 15), each from an interior point to an interior point.
        pulled_back = halved = 0
        for _ in range(self.omega_steps):
            low, pulls = self._feasible_evaluation(lower, limit, room)
            high = self._evaluate(upper, self.omega)
            zeta = low.value - limit
            slope = barrier_slope(zeta, sigma, self.kappa)
            start = [w.detach().clone() for w in self.omega]
            gradient = _add(_add(high.omega, slope, low.omega), theta, start)
            self._descend(self.omega_optimizer, self.omega, gradient)
            pulled_back += pulls
            halved += self._shorten(lower, limit + min(zeta / 2, -MARGIN * room), start)

        # beta-step (Eq. 13 and 16): the explicit gradient, and the barrier's through f(omega) and f*_mu.
        gradient = _add(_add(high.beta, slope, low.beta), -slope, at_z.beta)
        self._descend(self.beta_optimizer, self.beta, gradient)
        with torch.no_grad():
            self.project(self.beta)
        self._descend(self.z_optimizer, self.z, _add(at_z.omega, mu, self.z))
        self.k += 1
        stuck = self._watch(pulled_back, halved)
        value = float(barrier(torch.tensor(zeta, dtype=torch.float64), sigma, self.kappa))
        return Diagnostics(
            zeta, room, value, slope, high.value, low.value, upper_at_z, at_z.value, pulled_back, halved, stuck
        )

    def _watch(self, pulled_back: int, halved: int) -> str:
        """Count troubled steps; a momentum that keeps pointing outside is forgotten."""
        self.halved_in_a_row = self.halved_in_a_row + 1 if halved else 0
        self.pulled_in_a_row = self.pulled_in_a_row + 1 if pulled_back else 0
        if self.halved_in_a_row and self.halved_in_a_row % PATIENCE == 0:
            self.omega_optimizer.state.clear()
        if self.halved_in_a_row >= PATIENCE:
            return (
                f"steps of omega were halved in {self.halved_in_a_row} steps running: "
                "raise sigma or mu, or lower omega's rate"
            )
        if self.pulled_in_a_row >= PATIENCE:
            return (
                f"omega was outside in {self.pulled_in_a_row} steps running: raise mu, lower beta's rate, "
                "or take larger batches"
            )
        return ""

    def _evaluate(self, objective: Objective, lower_level: list[Tensor]) -> _Evaluation:
        """Value and gradients of an objective at (beta, ``lower_level``)."""
        value = objective(self.beta, lower_level)
        inputs = [*self.beta, *lower_level]
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]
        value = value.detach()
        self.average([value, *filled])
        return _Evaluation(float(value), filled[: len(self.beta)], filled[len(self.beta) :])

    @torch.no_grad()
    def _value(self, objective: Objective, lower_level: list[Tensor]) -> float:
        value = objective(self.beta, lower_level)
        self.average([value])
        return float(value)

    def _feasible_evaluation(self, lower: Objective, limit: float, room: float) -> tuple[_Evaluation, int]:
        """f at omega, after moving omega as often as it takes to be inside.

        First to where the linearised f is the limit less half of the slack (for a convex f that is never too
        far), then half-way to z, which is inside: its zeta is -slack.
        """
        for pulls in range(MAX_HALVINGS):
            low = self._evaluate(lower, self.omega)
            if low.value - limit <= -MARGIN * room:
                return low, pulls
            steepness = sum(float(g.square().sum()) for g in low.omega)
            if pulls < PROJECTIONS and 0 < steepness < math.inf:
                length = (low.value - limit + 0.5 * room) / steepness
                with torch.no_grad():
                    for w, g in zip(self.omega, low.omega, strict=True):
                        w -= length * g
            else:
                _interpolate(self.omega, [z.detach() for z in self.z], 0.5)
        raise FloatingPointError(f"no feasible omega between omega and z: f = {low.value}, limit {limit}")

    def _shorten(self, lower: Objective, highest: float, start: list[Tensor]) -> int:
        """Halve the step just taken until f(omega) is at most ``highest``; returns how often."""
        for halvings in range(MAX_HALVINGS):
            if self._value(lower, self.omega) <= highest:
                return halvings
            _interpolate(self.omega, start, 0.5)
        _interpolate(self.omega, start, 1.0)
        return MAX_HALVINGS

    def _descend(self, optimizer: Optimizer, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Let the optimizer take one step along these gradients, clipped."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.clip < math.inf:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        optimizer.step()
        optimizer.zero_grad()


@dataclass(frozen=True)
class _Evaluation:
    """A value with its gradients with respect to beta and to omega (or z)."""

    value: float
    beta: list[Tensor]
    omega: list[Tensor]


def _add(a: Sequence[Tensor], scale: float, b: Sequence[Tensor]) -> list[Tensor]:
    """``a + scale * b``, tensor by tensor, outside autograd."""
    return [x + scale * y.detach() for x, y in zip(a, b, strict=True)]


@torch.no_grad()
def _interpolate(parameters: list[Tensor], towards: list[Tensor], weight: float) -> None:
    for parameter, target in zip(parameters, towards, strict=True):
        parameter.lerp_(target, weight)
