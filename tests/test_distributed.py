"""Two gloo processes train as one process with the double batch does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from echoir.checkpoint import load_checkpoint
from echoir.crops import Batch
from echoir.data import list_pictures
from echoir.distributed import ALONE, World
from echoir.journal import read_csv
from echoir.recipe import Recipe
from echoir.train import Trainer

RECIPE = """
preset = "tiny"
strategy = "{strategy}"
learning_rate = 1e-4
warmup = 1
ema = 0.0
holdout = 1
validate_every = 1000
checkpoint_every = 1000
[[stages]]
steps = {steps}
patch = 16
batch = 2
[network]
width = 8
blocks = [1, 1, 1]
middle = 1
[bilevel]
lower_batch = 0.5
"""
STEPS = 3
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single-level", "as-blo"])
def test_two_processes_train_as_one_with_the_double_batch(tmp_path: Path, strategy: str) -> None:
    rng = np.random.default_rng(0)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(pictures / f"{index}.png")

    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(strategy=strategy, steps=STEPS))
    arguments = ["train", "--task", "denoise", "--data", pictures, "--recipe", recipe, "-o", tmp_path / "two"]
    command = [sys.executable, *TORCHRUN, "-m", "echoir", *map(str, arguments), "--threads", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "two" / "denoise.safetensors")]

    def trainer(name: str, world: World) -> Trainer:
        return Trainer("denoise", Recipe.load(recipe), list_pictures([pictures]), tmp_path / name, world)

    one, ranks = trainer("one", ALONE), [trainer(f"rank{rank}", World(rank, 2)) for rank in range(2)]

    def together() -> Iterator[list[Batch]]:
        for batches in zip(*(rank.batches() for rank in ranks), strict=True):
            # In turns, so that the lower level's share of the whole batch is each rank's share of its own.
            yield [
                tuple(torch.stack(tensors, 1).flatten(0, 1) for tensors in zip(*parts, strict=True))
                for parts in zip(*batches, strict=True)
            ]
            for rank in ranks:
                rank.step += 1

    one.batches = together  # type: ignore[method-assign]
    one.run()
    folders = [tmp_path / "one", tmp_path / "two"]
    a, b = (load_checkpoint(folder / "denoise.safetensors").network for folder in folders)
    untrained, apart = 0.0, []
    torch.manual_seed(0)
    for before, x, y in zip(type(a)(a.config).parameters(), a.parameters(), b.parameters(), strict=True):
        apart.append((x - y).detach().abs().flatten())
        untrained = max(untrained, float((before - x).detach().abs().max()))
    assert untrained > 1e-4  # the networks did move
    # Where a gradient is zero but for rounding, Adam takes a whole step of either sign.
    assert float((torch.cat(apart) > 2e-5).float().mean()) < 5e-3
    assert float(torch.cat(apart).max()) < 3e-4
    rows = [read_csv(folder / "log.csv") for folder in folders]
    assert len(rows[0]) == len(rows[1]) == STEPS
    for x, y in zip(*rows, strict=True):
        assert float(x["loss"]) == pytest.approx(float(y["loss"]), rel=1e-4)
    assert len(list((tmp_path / "two").glob("events.out.tfevents.*"))) == 1  # the first process alone keeps the books
