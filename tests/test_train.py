"""Training: resuming repeats the uninterrupted run, divergence stops it, weights come back."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
from builders import SMALL, small_network
from PIL import Image
from running import echoir

from echoir.checkpoint import load_checkpoint
from echoir.crops import Batch
from echoir.data import Picture, list_pictures
from echoir.journal import read_csv
from echoir.networks.echoir import PRESETS
from echoir.recipe import BiLevel, Recipe, Stage
from echoir.runtime.errors import ArtifactError
from echoir.strategy import ASBLOStrategy, DivergedError
from echoir.train import Trainer

RECIPE = Recipe(
    preset="tiny",
    network=SMALL,
    stages=(Stage(3, 16, 2), Stage(3, 32, 1)),
    warmup=2,
    holdout=1,
    validate_every=100,
    checkpoint_every=2,
)


@pytest.fixture
def images(tmp_path: Path) -> list[Picture]:
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return list_pictures([folder])


def losses(folder: Path) -> list[dict[str, str]]:
    return [{name: row[name] for name in row if name != "seconds"} for row in read_csv(folder / "log.csv")]


@pytest.mark.parametrize("strategy", ["single-level", "as-blo"])
def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path, images: list[Picture], strategy: str) -> None:
    recipe = replace(RECIPE, strategy=strategy)
    whole = Trainer("denoise", recipe, images, tmp_path / "whole")
    whole.run()

    class StoppedError(Exception):
        pass

    def stop(step: int, **_: float) -> None:
        if step == 5:  # one past the last state on disk: that step must be repeated
            raise StoppedError

    first = Trainer("denoise", recipe, images, tmp_path / "parts", report=stop)
    with pytest.raises(StoppedError):
        first.run()
    second = Trainer("denoise", recipe, images, tmp_path / "parts")
    assert second.resume()
    assert second.step == 4
    second.run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for a, b in zip(whole.average.parameters(), second.average.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_losses(tmp_path: Path, images: list[Picture]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(replace(RECIPE, stages=(Stage(30, 32, 4),), validate_every=1000, checkpoint_every=1).to_toml())

    def command(out: str) -> list[str]:
        arguments = ["train", "--task", "denoise", "--data", str(images[0].clean.parent), "--recipe", str(recipe)]
        code = "from echoir.cli import run, cli; import sys; run(cli, sys.argv[1:])"
        return [sys.executable, "-c", code, *arguments, "--threads", "1", "-o", str(tmp_path / out), "--resume"]

    process = subprocess.Popen(command("killed"), cwd=tmp_path, stderr=subprocess.DEVNULL)
    state = tmp_path / "killed" / "state.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command("killed"), cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(command("whole"), cwd=tmp_path, check=True, capture_output=True)
    assert len(losses(tmp_path / "whole")) == 30
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_diverged_run_stops_and_names_the_last_good_state(tmp_path: Path, images: list[Picture]) -> None:
    trainer = Trainer("denoise", RECIPE, images, tmp_path / "run")
    with torch.no_grad():
        trainer.network.output.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="loss is nan at step 1; none was saved"):
        trainer.run()
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_divergence_names_the_last_good_state(tmp_path: Path, images: list[Picture]) -> None:
    trainer = Trainer("denoise", RECIPE, images, tmp_path / "run")
    trainer.save_state()
    with torch.no_grad():
        trainer.network.output.weight.fill_(float("inf"))
    with pytest.raises(DivergedError, match=r"at step 1; the last good state is .*state\.safetensors"):
        trainer.run()


def test_every_step_of_bi_level_training_is_inside_the_barrier(tmp_path: Path, images: list[Picture]) -> None:
    seen: list[dict[str, float]] = []
    recipe = replace(RECIPE, strategy="as-blo", stages=(Stage(8, 16, 2),), learning_rate=3e-4)
    trainer = Trainer("denoise", recipe, images, tmp_path / "run", report=lambda **figures: seen.append(figures))
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.run()
    steps = [figures for figures in seen if "zeta" in figures]
    assert len(steps) == 8
    assert all(figures["zeta"] < 0 < figures["barrier"] for figures in steps)
    moved = {name for name, p in trainer.network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before)


def test_each_level_has_its_rate_and_the_lower_one_its_share_of_the_batch(
    tmp_path: Path, images: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BiLevel(beta_rate=0.5, omega_rate=2.0, z_rate=3.0, lower_batch=0.5, look=2)
    recipe = replace(RECIPE, strategy="as-blo", stages=(Stage(2, 16, 4),), warmup=1, bilevel=settings)
    seen: list[dict[str, float]] = []
    sizes: list[int] = []
    trainer = Trainer("denoise", recipe, images, tmp_path / "run", report=lambda **figures: seen.append(figures))
    objective = ASBLOStrategy._objective

    def watched(self: ASBLOStrategy, batch: Batch, lossless: float, *levels: list[torch.Tensor]) -> torch.Tensor:
        sizes.append(len(batch[0]))
        return objective(self, batch, lossless, *levels)

    monkeypatch.setattr(ASBLOStrategy, "_objective", watched)
    trainer.run()
    rate = seen[1]["learning_rate"]
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer.strategy.optimizers.items()}
    assert rates == pytest.approx({"beta": rate / 2, "omega": 2 * rate, "z": 3 * rate})
    # f at z, F at z, f and F at omega, f after its step; the second step does not look at F at z.
    assert sizes[:5] == [2, 4, 2, 4, 2]
    assert math.isfinite(seen[0]["upper_at_z"])
    assert math.isnan(seen[1]["upper_at_z"])


def test_the_two_levels_never_share_an_image(tmp_path: Path, images: list[Picture]) -> None:
    recipe = replace(RECIPE, strategy="as-blo", holdout=0)
    trainer = Trainer("denoise", recipe, images, tmp_path / "run")
    lower, upper = next(trainer.batches())
    assert lower[1].shape == upper[1].shape
    training, validation = trainer.levels()
    assert len(training) == len(validation) == 2
    assert not set(training) & set(validation)


def test_the_two_sets_change_places_when_the_recipe_says_so(tmp_path: Path) -> None:
    """Black pictures and white ones: as many of each, and which set has which is known from the first step."""
    pictures = []
    for index in range(8):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.full((32, 32, 3), 255 * (index % 2), np.uint8)).save(path)
        pictures.append(Picture(path))
    recipe = replace(
        RECIPE, strategy="as-blo", holdout=0, stages=(Stage(8, 16, 2),), bilevel=BiLevel(exchange=2), loss="l1"
    )
    trainer = Trainer("denoise", recipe, pictures, tmp_path / "run", validation=[])
    black, white = ([p for i, p in enumerate(pictures) if i % 2 == shade] for shade in (0, 1))
    trainer.levels = lambda: [black, white]  # type: ignore[method-assign]
    lower = []
    for batches in trainer.batches():
        shades = [float(clean.mean()) for _, clean in batches]
        assert sorted(shades) == pytest.approx([0, 1])
        lower.append(round(shades[0]))
        trainer.step += 1
    assert lower == [0, 0, 1, 1, 0, 0, 1, 1]


def test_another_recipe_in_the_folder_is_refused_by_field(tmp_path: Path, images: list[Picture]) -> None:
    trainer = Trainer("denoise", RECIPE, images, tmp_path / "run")
    trainer.save_state()
    other = Trainer("denoise", replace(RECIPE, learning_rate=5e-4), images, tmp_path / "run")
    with pytest.raises(ArtifactError, match=r"state\.recipe\.learning_rate: found 0\.001, needed 0\.0005"):
        other.resume()


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 48, dtype=np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(np.stack([np.tile(smooth, (48, 1))] * 3, -1)).save(folder / f"{index}.png")
    recipe = replace(RECIPE, stages=(Stage(60, 16, 2),), learning_rate=4e-3)
    Trainer("denoise", recipe, list_pictures([folder]), tmp_path / "run").run()
    values = [float(row["loss"]) for row in losses(tmp_path / "run")]
    assert np.mean(values[-10:]) < 0.7 * np.mean(values[:10])


def test_the_exported_checkpoint_is_the_averaged_network(tmp_path: Path, images: list[Picture]) -> None:
    trainer = Trainer("denoise", RECIPE, images, tmp_path / "run")
    loaded = load_checkpoint(trainer.run())
    assert (loaded.task, loaded.preset) == ("denoise", "tiny")
    assert loaded.metadata["recipe"]["stages"][1]["patch"] == 32
    assert not loaded.network.training
    for a, b in zip(trainer.average.module.parameters(), loaded.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_by_the_clock_ends_in_time_at_the_final_rate(
    tmp_path: Path, images: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(0.0, 0.05)  # seconds, by which it was asked: a busy machine is no other machine
    monkeypatch.setattr("echoir.train.time", SimpleNamespace(monotonic=lambda: next(clock)))
    recipe = replace(RECIPE, minutes=0.05, stages=(Stage(10**6, 16, 1), Stage(10**6, 32, 1)), final_learning_rate=1e-7)
    seen: list[dict[str, float]] = []
    trainer = Trainer("denoise", recipe, images, tmp_path / "run", report=lambda **figures: seen.append(figures))
    trainer.run()
    rates = [figures["learning_rate"] for figures in seen if "loss" in figures]
    assert 3 <= trainer.seconds < 3.2
    assert trainer.step <= 61, "a question a step"
    assert rates[0] < recipe.learning_rate
    assert rates[-1] < 0.02 * recipe.learning_rate
    assert load_checkpoint(trainer.checkpoint_path).metadata["recipe"]["minutes"] == 0.05


def test_accumulated_batches_are_one_large_batch(tmp_path: Path, images: list[Picture]) -> None:
    """Two batches whose gradients are averaged move the network as their concatenation does."""
    one = Stage(2, 16, 4)
    parts = Trainer("denoise", replace(RECIPE, stages=(replace(one, batch=2),), accumulate=2), images, tmp_path / "two")
    whole = Trainer("denoise", replace(RECIPE, stages=(one,)), images, tmp_path / "one")
    for batches in parts.batches():
        together = tuple(torch.cat(tensors) for tensors in zip(*batches, strict=True))
        losses = [float(t._train(b, 1e-4)["loss"]) for t, b in ((parts, batches), (whole, [together]))]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(parts.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--preset", "huge"], 2, "unknown preset 'huge'; there are"),
        (["--device", "nonsense"], 6, "device 'nonsense' cannot be used"),
        (["--strategy", "guess"], 2, "strategy: found 'guess', needed one of single-level, as-blo"),
        (["--data", "missing"], 3, "missing: not a folder"),
        (["--task", "dehaze"], 2, "task: found 'dehaze', needed one of denoise, realnoise"),
        (["--task", "denoise+nowhere:fog"], 2, "task: 'nowhere:fog': No module named 'nowhere'"),
        (["--preset", "json:Net"], 2, "preset: 'json:Net': module json has no 'Net'"),
        (["--preset", "json:loads"], 2, "preset: 'json:loads' with network = {}"),
        (["--loss", "l3"], 2, "loss: found 'l3', needed one of l1, charbonnier, l1+fft, psnr"),
        (["--best", "rgb26"], 2, "best: found 'rgb26', needed one of rgb15, rgb25"),
        (["--learning-rate", "-1"], 2, "learning_rate: found -1.0, needed a number above 0"),
    ],
)
def test_bad_requests_end_with_a_line_and_a_code(
    tmp_path: Path, images: list[Picture], options: list[str], code: int, message: str
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('preset = "tiny"\nholdout = 1\n[[stages]]\nsteps = 1\npatch = 16\nbatch = 1\n')
    arguments = [
        "train",
        "--task",
        "denoise",
        "--data",
        images[0].clean.parent,
        "--recipe",
        recipe,
        "-o",
        tmp_path / "run",
    ]
    result = echoir(*arguments, *options)
    assert result.code == code
    assert message in result.err


def test_a_damaged_state_is_refused(tmp_path: Path, images: list[Picture]) -> None:
    trainer = Trainer("denoise", RECIPE, images, tmp_path / "run")
    trainer.state_path.write_bytes(b"no state")
    with pytest.raises(ArtifactError, match="needed a state of echoir train"):
        trainer.resume()


def test_the_command_settles_what_threads_do_before_torch_is_there() -> None:
    names = ("OMP_WAIT_POLICY", "MKL_CBWR", "MKL_DYNAMIC")
    code = f"""
import os, sys
from click.testing import CliRunner
from echoir.commands import train
assert "torch" not in sys.modules
assert CliRunner().invoke(train, ["--data", "nowhere"]).exit_code
print(*(os.environ[name] for name in {names}))
"""
    surroundings = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PASSIVE", "AUTO", "FALSE"]


def test_a_state_of_a_preset_that_has_changed_is_refused_by_name(
    tmp_path: Path, images: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer("denoise", RECIPE, images, tmp_path / "run").run()
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], residual_blocks=3))
    trainer = Trainer("denoise", RECIPE, images, tmp_path / "run")
    with pytest.raises(ArtifactError, match=r"residuals\.2\.conv1\.weight: found no such tensor.*preset has changed"):
        trainer.resume()


def test_weights_of_another_network_are_no_start(tmp_path: Path, images: list[Picture]) -> None:
    other = small_network(channel_attention=False)
    with pytest.raises(ArtifactError, match="the recipe trains another network"):
        Trainer("denoise", RECIPE, images, tmp_path / "run", start=other)


def test_a_smaller_network_is_a_start_and_the_log_says_so(tmp_path: Path, images: list[Picture]) -> None:
    said: list[str] = []
    start = small_network(expansion=2.66)
    recipe = replace(RECIPE, network=SMALL | {"residual_blocks": 1})
    trainer = Trainer("denoise", recipe, images, tmp_path / "run", start=start, note=said.append)
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(trainer.network(image), start(image), atol=1e-5, rtol=1e-4)
    trainer.run()
    assert sum("of a smaller network; grown" in line for line in said) == 1
    again = Trainer("denoise", recipe, images, tmp_path / "run", start=start, note=said.append)
    assert again.resume()
    again.run()
    assert sum("of a smaller network; grown" in line for line in said) == 1, "a resumed run starts from its state"


def test_a_recipe_can_change_the_network(tmp_path: Path, images: list[Picture]) -> None:
    recipe = replace(RECIPE, stages=(Stage(1, 16, 1),), network=SMALL | {"upsampler": "transpose"})
    loaded = load_checkpoint(Trainer("denoise", recipe, images, tmp_path / "run").run())
    assert loaded.network.config.upsampler == "transpose"
    with pytest.raises(click.BadParameter, match="upsampler must be one of"):
        Trainer("denoise", replace(RECIPE, network={"upsampler": "nearest"}), images, tmp_path / "other")
