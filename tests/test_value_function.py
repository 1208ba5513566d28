"""Bi-level problems with known answers, one set of settings for all of them; and L-BFGS against SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from echoir.quasi_newton import minimise
from echoir.value_function import _put, _ValueFunction, _Weights, solve

generator = torch.Generator().manual_seed(0)
STARTS = (100 * torch.rand(8, 3, generator=generator, dtype=torch.float64) - 50).tolist()


def parameter(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


# min over x of (x - y2)^2 / 2 + (y1 - 1)^2 / 2, y in argmin y1^2 / 2 - x y1: x = 1, y = (1, 1), y2 free below.
def upper(beta: Sequence[Tensor], omega: Sequence[Tensor]) -> Tensor:
    (x,), (y,) = beta, omega
    return 0.5 * (x[0] - y[1]) ** 2 + 0.5 * (y[0] - 1) ** 2


def lower(beta: Sequence[Tensor], omega: Sequence[Tensor]) -> Tensor:
    (x,), (y,) = beta, omega
    return 0.5 * y[0] ** 2 - x[0] * y[0]


@pytest.mark.parametrize("start", [*STARTS, [-8, -8, 8], [50, 0, 0], [0, 3, 1], [0, 0, 0]])
def test_finds_the_optimistic_solution_from_anywhere(start: list[float]) -> None:
    beta, omega = parameter(start[0]), parameter(*start[1:])
    found = solve([beta], [omega], upper, lower)
    assert beta.tolist() == pytest.approx([1.0], abs=1e-3)
    assert omega.tolist() == pytest.approx([1.0, 1.0], abs=1e-3)
    assert found.stuck == ""
    assert found.zeta < 0


# Ridge regression: log of the weight above, coefficients below. Both levels in closed form.
def ridge(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    truth = torch.randn(10, generator=source, dtype=torch.float64)
    inputs = torch.randn(40, 10, generator=source, dtype=torch.float64)
    targets = inputs @ truth + 2 * torch.randn(40, generator=source, dtype=torch.float64)
    return inputs[:20], targets[:20], inputs[20:], targets[20:]


def ridge_validation(log_weight: float) -> float:
    """The upper level at the exact solution of the lower one."""
    x, y, held_x, held_y = (part.numpy() for part in ridge())
    w = np.linalg.solve(x.T @ x / len(y) + np.exp(log_weight) * np.eye(10), x.T @ y / len(y))
    return float(0.5 * np.mean((held_x @ w - held_y) ** 2))


@pytest.mark.parametrize("log_weight", [-4.0, 0.0, 4.0])
def test_tunes_ridge_regression(log_weight: float) -> None:
    x, y, held_x, held_y = ridge()

    def fit(beta: Sequence[Tensor], omega: Sequence[Tensor]) -> Tensor:
        return 0.5 * (x @ omega[0] - y).square().mean() + 0.5 * beta[0].exp().sum() * omega[0].square().sum()

    def held_out(beta: Sequence[Tensor], omega: Sequence[Tensor]) -> Tensor:
        return 0.5 * (held_x @ omega[0] - held_y).square().mean()

    grid = np.linspace(-6, 6, 2401)
    values = [ridge_validation(value) for value in grid]
    best = float(grid[int(np.argmin(values))])
    assert -4 < best < 4
    beta, omega = parameter(log_weight), torch.zeros(10, dtype=torch.float64, requires_grad=True)
    found = solve([beta], [omega], held_out, fit)
    assert beta.item() == pytest.approx(best, abs=0.1)
    # Without the slack the upper level is worth what the closed form says; with it, less.
    assert found.upper_at_z == pytest.approx(ridge_validation(beta.item()), rel=1e-4)
    assert found.upper < found.upper_at_z


def test_the_gradient_is_that_of_the_value_function(monkeypatch: pytest.MonkeyPatch) -> None:
    target = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    mix = torch.tensor([[1.0, 0.2, 0.0], [0.1, 0.8, 0.3], [0.0, -0.2, 1.2]], dtype=torch.float64)

    def convex_upper(beta: Sequence[Tensor], omega: Sequence[Tensor]) -> Tensor:
        return 0.5 * (omega[0] - target).square().sum() + 0.1 * (beta[0] * omega[0]).sum()

    def convex_lower(beta: Sequence[Tensor], omega: Sequence[Tensor]) -> Tensor:
        return 0.5 * (omega[0] - mix @ beta[0]).square().sum() + 0.1 * omega[0].pow(4).sum()

    monkeypatch.setattr("echoir.value_function.INNER_ACCURACY", 1e-9)
    weights = _Weights(0.05, 0.02, 0.1)
    problem = _ValueFunction([parameter(0, 0, 0)], [parameter(0.3, 0.3, 0.3)], convex_upper, convex_lower, 1.0)
    at = torch.tensor([0.4, -0.3, 0.9], dtype=torch.float64)
    _, gradient = problem(at, weights)
    step = 1e-3
    for index in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[index]
        difference = (problem(at + shift, weights)[0] - problem(at - shift, weights)[0]) / (2 * step)
        assert gradient[index].item() == pytest.approx(difference, rel=1e-3)


def test_beta_ends_on_the_border_of_its_set() -> None:
    def project(beta: Sequence[Tensor]) -> None:
        beta[0].clamp_(2.0, 5.0)

    beta, omega = parameter(4.0), parameter(0.0, 0.0)
    solve([beta], [omega], upper, lower, project=project)
    # With x = 2 fixed, y1 = 2 and y2 = 2.
    assert beta.item() == 2.0
    assert omega.tolist() == pytest.approx([2.0, 2.0], abs=0.02)


def test_a_lower_level_without_a_minimum_is_named() -> None:
    with pytest.raises(FloatingPointError, match="z was not found: f may have no minimum"):
        solve([parameter(1.0)], [parameter(1.0, 1.0)], upper, lambda beta, omega: -omega[0].pow(4).sum())


@pytest.mark.parametrize("setting", [{"mu": 0.0}, {"sigma": -1.0}, {"fall": 1.0}, {"kappa": 2.0}, {"last_mu": 1.0}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        solve([parameter(1.0)], [parameter(1.0, 1.0)], upper, lower, **setting)


def rosenbrock(x: Tensor) -> tuple[float, Tensor]:
    x = x.detach().requires_grad_()
    value = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
    (gradient,) = torch.autograd.grad(value, x)
    return float(value.detach()), gradient


@settings(deadline=None, max_examples=20)
@given(start=st.lists(st.floats(-2, 2), min_size=2, max_size=4))
def test_minimises_as_scipy_does(start: list[float]) -> None:
    found = minimise(rosenbrock, torch.tensor(start, dtype=torch.float64), 1e-14, iterations=2000)
    assert found.converged
    assert rosenbrock(found.x)[1].norm() < 1e-4


def test_bounds_end_where_scipy_ends() -> None:
    start = np.array([-1.0, 2.0, 0.3])

    def numpy_function(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = rosenbrock(torch.from_numpy(x.copy()))
        return value, gradient.numpy()

    truth = minimize(numpy_function, start, jac=True, method="L-BFGS-B", bounds=[(-1.5, 0.5)] * 3)
    found = minimise(
        rosenbrock,
        torch.from_numpy(start).clamp(-1.5, 0.5),
        1e-12,
        iterations=500,
        project=lambda x: x.clamp(-1.5, 0.5),
    )
    assert found.value == pytest.approx(truth.fun, rel=1e-3)


def test_an_infinite_region_is_stepped_around() -> None:
    def wall(x: Tensor) -> tuple[float, Tensor]:
        if float(x[0]) >= 0:
            return math.inf, torch.zeros_like(x)
        return float(-torch.log(-x[0]) + (x[0] + 1e-3) ** 2 * 1e4), torch.stack([-1 / x[0] + 2e4 * (x[0] + 1e-3)])

    found = minimise(wall, torch.tensor([-5.0], dtype=torch.float64), 1e-12, iterations=100)
    # -1/x + 2e4 (x + 1e-3) = 0
    assert found.x.item() == pytest.approx(-(1e-3 + math.sqrt(1e-6 + 4 / 2e4)) / 2, rel=1e-4)


def test_parameters_take_values_by_shape() -> None:
    tensors = [torch.zeros(2, 2), torch.zeros(3)]
    _put(tensors, torch.arange(7.0))
    assert tensors[0].tolist() == [[0, 1], [2, 3]]
    assert tensors[1].tolist() == [4, 5, 6]
