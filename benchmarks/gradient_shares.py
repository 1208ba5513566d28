"""What the lower level tells a network, in AS-BLO: the parts of each gradient, step by step.

    python benchmarks/gradient_shares.py --data DIR [--start CHECKPOINT] [--steps 24]

``beta``: norm of the implicit part, P' (df/dbeta at omega - df/dbeta at z), over that of the explicit one, dF/dbeta.
``omega``: the same for P' df/domega over dF/domega. ``noise``: norm of dF/dbeta less that of another batch, over that
of dF/dbeta: whatever is much smaller than this, no step can follow.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from echoir.asblo import ASBLO, Objective, _Evaluation
from echoir.checkpoint import load_checkpoint
from echoir.data import list_pictures
from echoir.recipe import BiLevel, Recipe, Stage
from echoir.strategy import ASBLOStrategy
from echoir.train import Trainer


class Watched(ASBLO):
    """Keeps the evaluations of its last step: f at z, then f and F at omega as often as omega moved."""

    seen: list[_Evaluation]

    def _evaluate(self, objective: Objective, lower_level: list[Tensor]) -> _Evaluation:
        self.seen.append(super()._evaluate(objective, lower_level))
        return self.seen[-1]


def norm(tensors: Sequence[Tensor]) -> float:
    return sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5


def less(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [x - y for x, y in zip(a, b, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="clean pictures; may be repeated")
    parser.add_argument("--start", type=Path, help="a checkpoint of denoise, tiny; default: random weights")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(
        "tiny",
        (Stage(arguments.steps, arguments.patch, arguments.batch),),
        learning_rate=arguments.learning_rate,
        warmup=4,
        strategy="as-blo",
        bilevel=BiLevel(lower_batch=1.0),
        holdout=1,
    )
    start = load_checkpoint(arguments.start).network if arguments.start else None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer("denoise", recipe, list_pictures(arguments.data), Path(folder), start=start)
        strategy = trainer.strategy
        assert isinstance(strategy, ASBLOStrategy)
        solver = strategy.solver
        solver.__class__ = Watched
        assert isinstance(solver, Watched)
        before: list[Tensor] | None = None
        for step, batches in enumerate(trainer.batches()):
            solver.seen = []
            figures = strategy.step(batches, recipe.learning_rate_at(step))
            at_z, low, high = solver.seen[0], solver.seen[-2], solver.seen[-1]
            slope = figures["slope"]
            noise = norm(less(high.beta, before)) / norm(high.beta) if before else float("nan")
            before = high.beta
            rows.append(
                (
                    slope * norm(less(low.beta, at_z.beta)) / norm(high.beta),
                    slope * norm(low.omega) / norm(high.omega),
                    noise,
                    slope,
                    figures["zeta"],
                )
            )
    for name, values in zip(("beta", "omega", "noise", "slope", "zeta"), zip(*rows, strict=True), strict=True):
        values = [value for value in values if value == value]
        print(f"{name:>5}: mean {mean(values):.4f}, from {min(values):.4f} to {max(values):.4f}")


if __name__ == "__main__":
    main()
