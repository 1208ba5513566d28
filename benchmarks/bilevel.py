"""AS-BLO beside implicit and unrolled differentiation, on problems with known answers.

    python benchmarks/bilevel.py [--problem degenerate|ridge|cleaning]

One set of settings for all problems, from all starts: AS-BLO as ``echoir.value_function.solve`` has it; implicit
differentiation with the same inner and outer solver, and conjugate gradients between them; differentiation through
100 unrolled steps of gradient descent on the lower level, with the same outer solver.
What is printed: the error where the answer is known, F at the exact minimum of f rather than at the method's own omega
(where the minimum is not unique, at the method's), seconds, and what AS-BLO says of itself.

The lower level of ``degenerate`` has no Hessian that can be inverted; conjugate gradients then find a least-squares
solution, and say nothing. ``cleaning`` weighs 500 training examples, half of them with wrong labels: its figure is
the area under the curve of telling them apart, 0.5 for chance.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from echoir.quasi_newton import minimise
from echoir.value_function import solve

Level = Callable[[Tensor, Tensor], Tensor]
"""``(beta, omega) -> scalar``, both float64 vectors."""
UNROLLED = 100


@dataclass(frozen=True)
class Problem:
    """A bi-level problem and a point to start from.

    Attributes:
        rate: of unrolled descent, below 2 over the largest curvature of f at the start.
        measure: ``(beta, omega) -> figure``, named by ``figure``.
    """

    name: str
    upper: Level
    lower: Level
    beta: Tensor
    omega: Tensor
    rate: float
    figure: str
    measure: Callable[[Tensor, Tensor], float]


def degenerate() -> list[Problem]:
    """x = 1, y = (1, 1); below, y2 is free. Eight starts in [-50, 50]^3, and those that were once hard."""
    source = torch.Generator().manual_seed(0)
    starts = (100 * torch.rand(8, 3, generator=source, dtype=torch.float64) - 50).tolist()
    starts += [[-8.0, -8.0, 8.0], [50.0, 0.0, 0.0], [0.0, 3.0, 1.0]]

    def error(x: Tensor, y: Tensor) -> float:
        return float((torch.cat([x, y]).detach() - 1).abs().max())

    return [
        Problem(
            f"degenerate from ({', '.join(f'{value:.0f}' for value in start)})",
            lambda x, y: 0.5 * (x[0] - y[1]) ** 2 + 0.5 * (y[0] - 1) ** 2,
            lambda x, y: 0.5 * y[0] ** 2 - x[0] * y[0],
            torch.tensor(start[:1], dtype=torch.float64),
            torch.tensor(start[1:], dtype=torch.float64),
            0.3,
            "largest error",
            error,
        )
        for start in starts
    ]


def ridge() -> list[Problem]:
    """The weight of ridge regression, as its logarithm, by the loss on held-out data."""
    source = torch.Generator().manual_seed(0)
    truth = torch.randn(30, generator=source, dtype=torch.float64)
    x = torch.randn(80, 30, generator=source, dtype=torch.float64)
    y = x @ truth + 2 * torch.randn(80, generator=source, dtype=torch.float64)
    x, held_x, y, held_y = x[:40], x[40:], y[:40], y[40:]

    def held_out(w: Tensor) -> Tensor:
        return 0.5 * (held_x @ w - held_y).square().mean()

    def exact(log_weight: float) -> Tensor:
        gram = x.T @ x / len(y) + torch.exp(torch.tensor(log_weight)) * torch.eye(30, dtype=torch.float64)
        return torch.linalg.solve(gram, x.T @ y / len(y))

    grid = torch.linspace(-6, 6, 2401, dtype=torch.float64).tolist()
    best = min(grid, key=lambda log_weight: float(held_out(exact(log_weight))))
    return [
        Problem(
            f"ridge from log λ = {start:.0f} (optimum {best:.2f})",
            lambda b, w: held_out(w),
            lambda b, w: 0.5 * (x @ w - y).square().mean() + 0.5 * b.exp().sum() * w.square().sum(),
            torch.tensor([start], dtype=torch.float64),
            torch.zeros(30, dtype=torch.float64),
            0.02,
            "error of log λ",
            lambda b, w: abs(float(b.detach()) - best),
        )
        for start in (-4.0, 0.0, 4.0)
    ]


def cleaning() -> list[Problem]:
    """Weights of training examples, half of whose labels are wrong, by the loss on 500 right ones."""
    problems = []
    for seed in range(3):
        source = torch.Generator().manual_seed(seed)
        classes, width = 5, 20
        centres = torch.randn(classes, width, generator=source, dtype=torch.float64)
        truth = torch.randint(classes, (1000,), generator=source)
        x = centres[truth] + 1.5 * torch.randn(1000, width, generator=source, dtype=torch.float64)
        wrong = torch.rand(500, generator=source) < 0.5
        labels = (truth[:500] + wrong * torch.randint(1, classes, (500,), generator=source)) % classes
        problems.append(_cleaning(f"cleaning, seed {seed}", x, torch.cat([labels, truth[500:]]), wrong, classes))
    return problems


def _cleaning(name: str, x: Tensor, labels: Tensor, wrong: Tensor, classes: int) -> Problem:
    def losses(w: Tensor, part: slice) -> Tensor:
        weights = w.view(x.shape[1] + 1, classes)
        return torch.nn.functional.cross_entropy(x[part] @ weights[:-1] + weights[-1], labels[part], reduction="none")

    def auc(b: Tensor, w: Tensor) -> float:
        right, bad = b[~wrong, None], b[wrong]
        return float(((right > bad).double() + 0.5 * (right == bad).double()).mean())

    return Problem(
        name,
        lambda b, w: losses(w, slice(500, None)).mean(),
        lambda b, w: (b.sigmoid() * losses(w, slice(500))).mean() + 1e-3 * w.square().sum(),
        torch.zeros(500, dtype=torch.float64),
        torch.zeros((x.shape[1] + 1) * classes, dtype=torch.float64),
        0.1,
        "AUC",
        auc,
    )


def by_value_function(problem: Problem) -> tuple[Tensor, Tensor, str]:
    beta, omega = problem.beta.clone().requires_grad_(), problem.omega.clone().requires_grad_()
    found = solve([beta], [omega], lambda b, w: problem.upper(b[0], w[0]), lambda b, w: problem.lower(b[0], w[0]))
    return beta.detach(), omega.detach(), found.stuck


def lower_minimum(problem: Problem, beta: Tensor, start: Tensor) -> Tensor:
    def function(w: Tensor) -> tuple[float, Tensor]:
        w = w.detach().requires_grad_()
        value = problem.lower(beta, w)
        return float(value.detach()), torch.autograd.grad(value, w)[0]

    return minimise(function, start, 1e-12, iterations=500).x


def by_implicit_differentiation(problem: Problem) -> tuple[Tensor, Tensor, str]:
    """dF/dbeta - (d2f/dbeta domega) (d2f/domega2)^-1 dF/domega, at the minimum of f."""
    omega = problem.omega.clone()

    def function(at: Tensor) -> tuple[float, Tensor]:
        omega.copy_(lower_minimum(problem, at, omega))
        b, w = at.detach().requires_grad_(), omega.clone().requires_grad_()
        value = problem.upper(b, w)
        explicit, sensitivity = torch.autograd.grad(value, (b, w), allow_unused=True)
        (slope,) = torch.autograd.grad(problem.lower(b, w), w, create_graph=True)
        inverse = conjugate_gradients(
            lambda v: torch.autograd.grad(slope, w, v, retain_graph=True)[0], sensitivity.detach()
        )
        (implicit,) = torch.autograd.grad(slope, b, inverse)
        return float(value.detach()), -implicit if explicit is None else explicit - implicit

    found = minimise(function, problem.beta.clone(), 1e-10, iterations=200)
    return found.x, lower_minimum(problem, found.x, omega), ""


def conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """``product(x) = right`` for a positive semi-definite product."""
    x, residual = torch.zeros_like(right), right.clone()
    direction, size = residual.clone(), float(residual @ residual)
    first = size
    for _ in range(10 * len(right)):
        along = product(direction)
        curvature = float(direction @ along)
        if size <= 1e-20 * first or curvature <= 1e-12 * float(direction @ direction):
            break
        x += size / curvature * direction
        residual -= size / curvature * along
        size, before = float(residual @ residual), size
        direction = residual + size / before * direction
    return x


def by_unrolling(problem: Problem) -> tuple[Tensor, Tensor, str]:
    """Through the steps of gradient descent that lead from the start towards the minimum of f."""

    def descend(beta: Tensor) -> Tensor:
        omega = problem.omega.clone().requires_grad_()
        for _ in range(UNROLLED):
            (slope,) = torch.autograd.grad(problem.lower(beta, omega), omega, create_graph=True)
            omega = omega - problem.rate * slope
        return omega

    def function(at: Tensor) -> tuple[float, Tensor]:
        beta = at.detach().requires_grad_()
        value = problem.upper(beta, descend(beta))
        return float(value.detach()), torch.autograd.grad(value, beta)[0]

    found = minimise(function, problem.beta.clone(), 1e-10, iterations=200)
    return found.x, descend(found.x.requires_grad_()).detach(), ""


METHODS = {"AS-BLO": by_value_function, "implicit": by_implicit_differentiation, "unrolled": by_unrolling}
PROBLEMS = {"degenerate": degenerate, "ridge": ridge, "cleaning": cleaning}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.problem or PROBLEMS:
        for problem in PROBLEMS[name]():
            for method, run in METHODS.items():
                started = time.perf_counter()
                beta, omega, stuck = run(problem)
                seconds = time.perf_counter() - started
                at = omega if name == "degenerate" else lower_minimum(problem, beta, omega)
                print(
                    f"{problem.name} | {method:<8} | {problem.figure} {problem.measure(beta, omega):.3g} | "
                    f"F {float(problem.upper(beta, at)):.4f} | {seconds:.2f} s {stuck}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
