"""The solver against problems with known answers; it sees no image and no network here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from echoir.asblo import ASBLO, Decay, MakeOptimizer, barrier, barrier_slope


def parameter(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def sgd(rate: float) -> MakeOptimizer:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


# min over x in [-100, 100] of (x - y2)^2 / 2 + (y1 - 1)^2 / 2, y in argmin y1^2 / 2 - x y1:
# y2 is free in the lower level, so its argmin is a line. The solution is x = 1, y = (1, 1).
def known_upper(beta: Sequence[Tensor], omega: Sequence[Tensor]) -> Tensor:
    (x,), (y,) = beta, omega
    return 0.5 * (x[0] - y[1]) ** 2 + 0.5 * (y[0] - 1) ** 2


def known_lower(beta: Sequence[Tensor], omega: Sequence[Tensor]) -> Tensor:
    (x,), (y,) = beta, omega
    return 0.5 * y[0] ** 2 - x[0] * y[0]


STARTS = [(2.0, (0.0, 0.0)), (-3.0, (2.0, -2.0)), (0.0, (3.0, 1.0))]


@pytest.mark.parametrize(("x", "y"), STARTS[1:])
def test_steps_find_the_known_solution_though_the_lower_level_has_many(x: float, y: tuple[float, float]) -> None:
    beta, omega = parameter(x), parameter(*y)
    decay = 0.994
    # The feasible set is about sqrt(mu) wide: steps shrink with it, and the barrier with the slack.
    rate = 0.15

    def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=rate)

    solver = ASBLO(
        [beta],
        [omega],
        adam,
        adam,
        adam,
        mu=Decay(1.0, decay),
        theta=Decay(1e-2, decay),
        sigma=Decay(0.1, decay),
        z_steps=2,
        omega_steps=2,
    )
    for k in range(2000):
        for optimizer in (solver.beta_optimizer, solver.omega_optimizer, solver.z_optimizer):
            optimizer.param_groups[0]["lr"] = rate * math.sqrt(solver.mu(k))
        assert solver.step(known_upper, known_lower).zeta < 0
    assert beta.tolist() == pytest.approx([1.0], abs=1e-3)
    assert omega.tolist() == pytest.approx([1.0, 1.0], abs=1e-3)


@pytest.mark.parametrize(("x", "y"), STARTS[:2])
def test_unrolled_gradient_descent_misses_it(x: float, y: tuple[float, float]) -> None:
    beta = parameter(x)
    for _ in range(500):
        omega = torch.tensor(y, dtype=torch.float64, requires_grad=True)
        for _ in range(30):
            (gradient,) = torch.autograd.grad(known_lower([beta], [omega]), omega, create_graph=True)
            omega = omega - 0.3 * gradient
        (gradient,) = torch.autograd.grad(known_upper([beta], [omega]), beta)
        with torch.no_grad():
            beta -= 0.1 * gradient
    # y2 never moves, so x settles between it and 1.
    assert beta.item() == pytest.approx((1 + y[1]) / 2, abs=1e-3)
    assert abs(beta.item() - 1) > 0.1


@given(kappa=st.floats(0.05, 1.0), sigma=st.floats(1e-4, 10.0))
def test_barrier_agrees_across_minus_kappa_in_value_slope_and_curvature(kappa: float, sigma: float) -> None:
    def derivatives(zeta: float) -> list[float]:
        point = parameter(zeta)
        value = barrier(point, sigma, kappa).sum()
        (slope,) = torch.autograd.grad(value, point, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), point)
        return [value.item(), slope.item(), curvature.item()]

    left, right = derivatives(-kappa * (1 + 1e-9)), derivatives(-kappa * (1 - 1e-9))
    assert left == pytest.approx(right, rel=1e-6)
    assert left[0] == pytest.approx(1.5 * sigma, rel=1e-6)
    assert barrier_slope(-kappa, sigma, kappa) == pytest.approx(left[1], rel=1e-6)


@given(zeta=st.floats(-1e3, -1e-6), kappa=st.floats(0.05, 1.0))
def test_barrier_is_positive_and_rising_and_its_slope_is_its_derivative(zeta: float, kappa: float) -> None:
    point = parameter(zeta)
    value = barrier(point, 0.3, kappa)
    (slope,) = torch.autograd.grad(value.sum(), point)
    assert value.item() > 0
    assert slope.item() > 0
    assert barrier_slope(zeta, 0.3, kappa) == pytest.approx(slope.item(), rel=1e-9)


def test_barrier_is_infinite_outside_and_vanishes_far_inside() -> None:
    assert barrier(parameter(0.0, 1.0), 1.0).tolist() == [math.inf, math.inf]
    assert barrier(parameter(-1e9), 1.0).item() == pytest.approx(0, abs=1e-8)
    assert 0 <= barrier_slope(-1e250, 1.0) < 1e-100
    with pytest.raises(ValueError, match="outside its interior"):
        barrier_slope(0.0, 1.0)


# A strongly convex pair in three variables each, for which phi can be had to machine precision.
TARGET = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
MIX = torch.tensor([[1.0, 0.2, 0.0], [0.1, 0.8, 0.3], [0.0, -0.2, 1.2]], dtype=torch.float64)


def convex_upper(beta: Sequence[Tensor], omega: Sequence[Tensor]) -> Tensor:
    return 0.5 * (omega[0] - TARGET).square().sum() + 0.05 * beta[0].square().sum() + 0.1 * (beta[0] * omega[0]).sum()


def convex_lower(beta: Sequence[Tensor], omega: Sequence[Tensor]) -> Tensor:
    return 0.5 * (omega[0] - MIX @ beta[0]).square().sum() + 0.1 * omega[0].pow(4).sum()


MU, THETA, SIGMA = 0.05, 0.02, 0.1


def converged(values: list[float]) -> ASBLO:
    """Run z and omega to their minimisers at a fixed beta."""

    constant = {"mu": Decay(MU, 1.0), "theta": Decay(THETA, 1.0), "sigma": Decay(SIGMA, 1.0)}
    solver = ASBLO([parameter(*values)], [parameter(0.3, 0.3, 0.3)], sgd(0.0), sgd(0.01), sgd(0.05), **constant)
    for _ in range(1200):
        solver.step(convex_upper, convex_lower)
    return solver


def phi(values: list[float]) -> float:
    """phi of Eq. 11 at beta, from its definition."""
    solver = converged(values)
    with torch.no_grad():
        limit = convex_lower(solver.beta, solver.z) + 0.5 * MU * (1 + solver.z[0].square().sum())
        zeta = convex_lower(solver.beta, solver.omega) - limit
        regular = 0.5 * THETA * solver.omega[0].square().sum()
        return float(convex_upper(solver.beta, solver.omega) + barrier(zeta, SIGMA) + regular)


def test_the_beta_step_follows_the_gradient_of_phi() -> None:
    values = [0.4, -0.3, 0.9]
    solver = converged(values)
    rate = 1e-3
    solver.beta_optimizer.param_groups[0]["lr"] = rate
    solver.step(convex_upper, convex_lower)
    moved = torch.tensor(values, dtype=torch.float64) - solver.beta[0].detach()
    step, expected = 1e-4, []
    for index in range(3):
        shifted = [[v + sign * step * (i == index) for i, v in enumerate(values)] for sign in (1, -1)]
        expected.append((phi(shifted[0]) - phi(shifted[1])) / (2 * step))
    assert (moved / rate).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


CONSTANT = {"mu": Decay(0.01, 1.0), "theta": Decay(1e-3, 1.0), "sigma": Decay(1e-3, 1.0)}


def test_an_infeasible_omega_is_moved_inside_where_the_lower_level_is_blind_to_it() -> None:
    solver = ASBLO([parameter(1.0)], [parameter(1.0, 7.0)], sgd(0.0), sgd(0.0), sgd(0.0), **CONSTANT)
    with torch.no_grad():
        solver.z[0].copy_(torch.tensor([1.0, 0.0]))
        solver.omega[0][0] = 5.0
    seen = solver.step(known_upper, known_lower)
    assert seen.pulled_back > 0
    assert seen.zeta <= -0.1 * seen.slack
    assert solver.omega[0].tolist() == pytest.approx([1.0, 7.0], abs=0.2)


def test_there_is_room_where_z_is_zero() -> None:
    solver = ASBLO([parameter(0.0)], [parameter(0.0, 0.0)], sgd(0.01), sgd(0.01), sgd(0.01), **CONSTANT)
    assert solver.step(known_upper, known_lower).zeta == pytest.approx(-0.005)


@given(
    x=st.floats(-5, 5),
    y=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    rate=st.floats(1e-3, 10),
    noise=st.floats(0, 5),
)
def test_the_slope_of_the_barrier_is_bounded_whatever_the_batches_are(
    x: float, y: tuple[float, float], rate: float, noise: float
) -> None:
    solver = ASBLO([parameter(x)], [parameter(*y)], sgd(0.1), sgd(rate), sgd(0.1), **CONSTANT)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        shift = noise * float(torch.randn((), generator=generator))
        seen = solver.step(known_upper, lambda beta, omega, shift=shift: known_lower([beta[0] + shift], omega))
        assert seen.zeta <= -0.1 * seen.slack
        assert seen.slope <= 1e-3 / (0.1 * seen.slack) * (1 + 1e-9)


def test_a_step_of_omega_uses_at_most_half_of_the_slack_that_is_left() -> None:
    solver = ASBLO([parameter(1.0)], [parameter(1.0, 0.0)], sgd(0.0), sgd(0.5), sgd(0.0), **CONSTANT)
    seen = solver.step(lambda beta, omega: -100 * omega[0][0], known_lower)
    assert seen.halved > 0
    after = float(known_lower(solver.beta, solver.omega).detach()) - seen.lower_at_z - seen.slack
    assert seen.zeta < after <= seen.zeta / 2


def test_gradients_are_clipped_at_every_level() -> None:
    solver = ASBLO([parameter(50.0)], [parameter(50.0, -50.0)], sgd(1.0), sgd(1.0), sgd(1.0), clip=0.01, **CONSTANT)
    levels = [solver.beta[0], solver.omega[0], solver.z[0]]
    before = [level.detach().clone() for level in levels]
    solver.step(known_upper, known_lower)
    for level, start in zip(levels, before, strict=True):
        assert 0 < float((level.detach() - start).norm()) <= 0.01 * (1 + 1e-6)


def test_the_upper_loss_is_also_known_without_the_slack() -> None:
    solver = ASBLO([parameter(1.0)], [parameter(1.0, 1.0)], sgd(0.0), sgd(0.0), sgd(0.0), look=2, **CONSTANT)
    with torch.no_grad():
        solver.z[0].copy_(torch.tensor([1.0, 0.0]))
    first, second = (solver.step(known_upper, known_lower) for _ in range(2))
    assert (first.upper, first.upper_at_z) == (0.0, 0.5)
    assert math.isnan(second.upper_at_z)


def test_beta_stays_where_it_is_projected_to() -> None:
    def project(beta: Sequence[Tensor]) -> None:
        beta[0].clamp_(2.0, 3.0)

    solver = ASBLO([parameter(2.0)], [parameter(2.0, 0.0)], sgd(1.0), sgd(0.01), sgd(0.01), project=project, **CONSTANT)
    for _ in range(5):
        solver.step(known_upper, known_lower)
        assert 2.0 <= solver.beta[0].item() <= 3.0


def test_a_solver_that_is_stuck_says_so_and_forgets_its_momentum() -> None:
    def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=10.0)

    solver = ASBLO([parameter(1.0)], [parameter(1.0, 0.0)], sgd(0.0), adam, sgd(0.0), **CONSTANT)
    words = [solver.step(known_upper, known_lower).stuck for _ in range(10)]
    assert words[:9] == [""] * 9
    assert "halved in 10 steps running" in words[9]
    assert not solver.omega_optimizer.state


def test_an_objective_that_is_not_finite_stops_the_solver() -> None:
    solver = ASBLO([parameter(1.0)], [parameter(1.0, 0.0)], sgd(0.01), sgd(0.01), sgd(0.01), **CONSTANT)
    with pytest.raises(FloatingPointError, match="no feasible omega"):
        solver.step(known_upper, lambda beta, omega: known_lower(beta, omega) * math.nan)
