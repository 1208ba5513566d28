"""The paper's Tables 4 and 6 in small: what guides the upsampler, and how the network is trained.

    python benchmarks/ablations.py --data DIR [--table strategy|halves|upsampler] [--seeds 3] [--steps 400]
        [--start denoise] -o runs/ablations

Every arm trains ``tiny`` for denoising on the same crops from the same weights, seed by seed: random ones, or a
checkpoint's.
A step of AS-BLO costs three forward-backward passes and one forward pass, counted as 10/3: the arms of equal passes
take that many more steps, or as many more as their own step is cheaper. PSNR is that of held-out pictures at
sigma 25, averaged weights, in dB.
Arms that are finished are not run again, so the command can be repeated with more seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from echoir.checkpoint import load_checkpoint
from echoir.data import list_pictures
from echoir.journal import read_csv
from echoir.recipe import BiLevel, Recipe, Stage
from echoir.recipe_network import network_of
from echoir.train import Trainer

PASSES = 10 / 3  # of an AS-BLO step, in forward-backward passes
QUARTER = 1 + 7 / 3 / 4  # the same where the lower level sees a quarter of the batch
# name -> (strategy, share of the steps, switches of the network, or of AS-BLO)
TABLES = {
    "strategy": {
        "single-level, equal steps": ("single-level", 1.0, {}),
        "single-level, equal passes": ("single-level", PASSES, {}),
        "as-blo": ("as-blo", 1.0, {"lower_batch": 1.0}),
        "as-blo, a quarter below, equal passes": ("as-blo", PASSES / QUARTER, {"lower_batch": 0.25}),
    },
    "halves": {
        "single-level, equal passes": ("single-level", PASSES, {}),
        "as-blo, a quarter below, equal passes": ("as-blo", PASSES / QUARTER, {"lower_batch": 0.25}),
        "single-level, as many steps as that": ("single-level", PASSES / QUARTER, {}),
        "as-blo, the same, halves changing places": ("as-blo", PASSES / QUARTER, {"lower_batch": 0.25, "exchange": 50}),
    },
    "upsampler": {
        "echo, guided by the encoder": ("single-level", 1.0, {}),
        "echo, guided by the image": ("single-level", 1.0, {"reference": "image"}),
        "pixel-shuffle": ("single-level", 1.0, {"upsampler": "pixelshuffle"}),
        "transposed convolution": ("single-level", 1.0, {"upsampler": "transpose"}),
    },
}


def train(arguments: argparse.Namespace, strategy: str, share: float, switches: dict[str, Any], seed: int) -> float:
    """PSNR at sigma 25 of one run, or of the same run found in the folder."""
    steps = round(arguments.steps * share)
    name = "-".join([strategy, str(steps), *map(str, switches.values()), str(seed)])
    folder = arguments.output / name
    recipe = Recipe(
        "tiny",
        (Stage(steps, arguments.patch, arguments.batch),),
        learning_rate=arguments.learning_rate,
        warmup=min(50, steps // 4),
        ema=0.98,
        seed=seed,
        holdout=arguments.holdout,
        validate_every=steps,
        checkpoint_every=50,
        autocast=True,
        strategy=strategy,
        network=switches if strategy == "single-level" else {},
        bilevel=BiLevel(**switches) if strategy == "as-blo" else BiLevel(),
    )
    if not (folder / "denoise.safetensors").exists():
        start = load_checkpoint(arguments.start).network if arguments.start else None
        trainer = Trainer("denoise", recipe, list_pictures(arguments.data), folder, start=start)
        trainer.resume()
        trainer.run()
    elif load_checkpoint(str(folder / "denoise.safetensors")).network.config != network_of(recipe).config:
        raise SystemExit(f"{folder} holds the run of another network: move it away")
    return float(read_csv(folder / "validation.csv")[-1]["rgb25"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="clean pictures; may be repeated")
    parser.add_argument("--table", choices=TABLES, action="append", help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--start", help="a checkpoint that every arm starts from (no other tables than of strategies)")
    parser.add_argument("--holdout", type=int, default=24, help="pictures to measure on")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the runs; kept between calls")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tables = {name: TABLES[name] for name in arguments.table or TABLES}
    # Seed by seed, so that a call that is cut short leaves whole comparisons.
    results: dict[tuple[str, str], list[float]] = {}
    for seed in range(arguments.seeds):
        for table, arms in tables.items():
            for arm, settings in arms.items():
                psnr = train(arguments, *settings, seed)
                results.setdefault((table, arm), []).append(psnr)
                print(f"seed {seed}  {arm}: {psnr:.2f} dB", flush=True)
    print(f"\n{arguments.steps} steps of {arguments.batch} crops of {arguments.patch}², {arguments.seeds} seeds")
    for (table, arm), values in results.items():
        # Seeds differ in their held-out pictures: what counts is the difference on the same ones.
        first = results[table, next(iter(tables[table]))]
        difference = [value - other for value, other in zip(values, first, strict=True)]
        print(f"{table:>10} | {arm:<40} | {spread(values)} dB | {spread(difference, '+')} dB to the first")


def spread(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation."""
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.2f}{deviation}"


if __name__ == "__main__":
    main()
