"""Two gloo processes train as one process with the double batch does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from echoir.checkpoint import load_checkpoint
from echoir.journal import read_csv

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
batch = {batch}
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

    def train(name: str, batch: int, launcher: list[str]) -> Path:
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(RECIPE.format(strategy=strategy, steps=STEPS, batch=batch))
        arguments = ["train", "--task", "denoise", "--data", pictures, "--recipe", recipe, "-o", tmp_path / name]
        command = [sys.executable, *launcher, "-m", "echoir", *map(str, arguments), "--threads", "1"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [str(tmp_path / name / "denoise.safetensors")]
        return tmp_path / name

    one, two = train("one", 4, []), train("two", 2, TORCHRUN)
    a, b = (load_checkpoint(folder / "denoise.safetensors").network for folder in (one, two))
    untrained = 0.0
    torch.manual_seed(0)
    for before, x, y in zip(type(a)(a.config).parameters(), a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-5)
        untrained = max(untrained, float((before - x).detach().abs().max()))
    assert untrained > 1e-4  # the networks did move
    rows = [read_csv(folder / "log.csv") for folder in (one, two)]
    assert len(rows[0]) == len(rows[1]) == STEPS
    for x, y in zip(*rows, strict=True):
        assert float(x["loss"]) == pytest.approx(float(y["loss"]), rel=1e-4)
    assert len(list(two.glob("events.out.tfevents.*"))) == 1  # the first process alone keeps the books
