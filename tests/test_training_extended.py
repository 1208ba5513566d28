"""Training with parts of one's own, what a run leaves and how it goes on: the documented examples, run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image
from running import echoir
from torch import Tensor, nn

from echoir.checkpoint import load_checkpoint, load_own
from echoir.data import Picture, list_pictures
from echoir.degradations import TASKS, Draw, Task, find_task, mixed
from echoir.losses import LOSSES
from echoir.metrics import perceptual_distance
from echoir.named import UNNAMED, find, name_of
from echoir.recipe import Recipe, Stage
from echoir.runtime.errors import ArtifactError, BackendError, ImageError
from echoir.samples import open_samples
from echoir.train import Trainer
from echoir.validation import Validation

EXAMPLES = Path(__file__).parents[1] / "examples"
RECIPE = Recipe("own_parts:Plain", (Stage(2, 16, 2),), warmup=1, holdout=1, network={"width": 4, "depth": 2})


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the example in it, and with no trace left of having imported it."""
    for name in ("own_parts.py", "own_parts.toml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_parts", None)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return list_pictures([folder])


def test_the_documented_example_trains_resumes_and_is_evaluated(working_folder: Path, pictures: list[Picture]) -> None:
    recipe = (working_folder / "own_parts.toml").read_text()
    small = recipe.replace("steps = 1000\npatch = 64\nbatch = 8", "steps = 3\npatch = 16\nbatch = 2")
    (working_folder / "short.toml").write_text(small.replace("warmup", "holdout = 1\nwarmup"))
    train = ["train", "--recipe", "short.toml", "--data", "pictures", "-o", "run"]
    done = echoir(*train, "--resume")
    assert done.code == 0
    assert "run holds no state to resume from: the run begins" in done.err
    assert done.out.strip() == "run/haze.safetensors"
    again = echoir(*train)
    assert again.code == 2
    assert "holds a run already" in again.err
    assert echoir(*train, "--resume").code == 0

    evaluate = ["evaluate", "run/haze.safetensors", "--data", "pictures"]
    refused = echoir(*evaluate)
    assert refused.code == 4
    assert "own_parts:Plain" in refused.err
    assert "--network module:attribute" in refused.err
    own = [*evaluate, "--network", "own_parts:Plain"]
    unknown = echoir(*own)
    assert unknown.code == 3
    assert "haze needs pairs" in unknown.err
    measured = echoir(*own, "--task", "own_parts:haze")
    assert measured.code == 0
    assert "synthetic haze" in measured.out
    network, task = load_own("run/haze-best.safetensors", find("own_parts:Plain", "network"))
    assert task == "haze"
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_a_run_says_where_it_comes_from(working_folder: Path, pictures: list[Picture]) -> None:
    trainer = Trainer("own_parts:haze", RECIPE, pictures, working_folder / "run")
    trainer.run()
    assert Recipe.load(working_folder / "run/recipe.toml") == replace(RECIPE, task="own_parts:haze")
    (described,) = json.loads((working_folder / "run/run.json").read_text())
    assert described["pictures"]["count"] == 4
    assert len(described["pictures"]["sha256"]) == 64
    assert described["code"]["torch"] == str(torch.__version__)
    (working_folder / "pictures").rename(working_folder / "moved")
    moved = Trainer("own_parts:haze", RECIPE, list_pictures([working_folder / "moved"]), working_folder / "run")
    assert moved.resume()  # the same pictures elsewhere
    fewer = Trainer("own_parts:haze", RECIPE, moved.pictures[1:], working_folder / "run")
    with pytest.raises(ArtifactError, match=r"state\.pictures: found 4 pictures .*, needed 3"):
        fewer.resume()


def test_parts_may_be_given_as_objects_and_such_a_run_is_not_resumed(tmp_path: Path, pictures: list[Picture]) -> None:
    seen: list[float] = []

    def loss(restored: Tensor, clean: Tensor) -> Tensor:
        seen.append(1.0)
        return (restored - clean).square().mean()

    def run() -> Trainer:
        own = Task(lambda clean, draw: (clean * 0.5, clean), name="dim")
        network = nn.Conv2d(3, 3, 3, padding=1)
        return Trainer(own, RECIPE, pictures, tmp_path / "run", network=network, loss=loss)

    path = run().run()
    assert path.name == "dim.safetensors"
    assert len(seen) == 2
    with pytest.raises(ArtifactError, match=r"state\.recipe\.task: found an object without a name"):
        run().resume()


def test_a_network_that_does_not_fit_is_refused_before_the_first_step(tmp_path: Path, pictures: list[Picture]) -> None:
    with pytest.raises(click.BadParameter, match=r"stages\[0\].patch: found 16: the network gives \(1, 3, 8, 8\)"):
        Trainer("denoise", RECIPE, pictures, tmp_path / "run", network=nn.AvgPool2d(2))
    with pytest.raises(click.BadParameter, match="which the network cannot take"):
        Trainer("denoise", RECIPE, pictures, tmp_path / "run", network=nn.Conv2d(4, 4, 1))
    with pytest.raises(click.BadParameter, match=r"unexpected keyword argument 'size'"):
        Trainer("denoise", replace(RECIPE, network={"size": 3}), pictures, tmp_path / "run")
    with pytest.raises(click.BadParameter, match=r"strategy: found as-blo for Plain, needed single-level"):
        Trainer("denoise", replace(RECIPE, strategy="as-blo"), pictures, tmp_path / "run")


@pytest.mark.parametrize("strategy", ["single-level", "as-blo"])
def test_crops_that_the_network_cannot_halve_are_named(tmp_path: Path, pictures: list[Picture], strategy: str) -> None:
    recipe = Recipe("tiny", (Stage(1, 16, 1), Stage(1, 30, 1)), holdout=1, strategy=strategy)
    with pytest.raises(click.BadParameter, match=r"stages\[1\]\.patch: found 30, needed a multiple of (8|16)"):
        Trainer("denoise", recipe, pictures, tmp_path / "run")


def test_pictures_that_do_not_suffice_are_named_by_the_field(tmp_path: Path, pictures: list[Picture]) -> None:
    with pytest.raises(click.BadParameter, match="holdout: found 8, needed fewer than the 4 pictures"):
        Trainer("denoise", replace(RECIPE, holdout=8), pictures, tmp_path / "run")
    one = Recipe("tiny", (Stage(1, 16, 1),), holdout=0, strategy="as-blo")
    with pytest.raises(click.BadParameter, match=r"bilevel\.validation: found 0\.5 of 1 pictures"):
        Trainer("denoise", one, pictures[:1], tmp_path / "run")


def test_validation_pictures_take_the_place_of_the_hold_out(tmp_path: Path, pictures: list[Picture]) -> None:
    recipe = replace(RECIPE, holdout=8, best="haze")
    trainer = Trainer("own_parts:haze", recipe, pictures[1:], tmp_path / "run", validation=pictures[:1])
    assert trainer.training == pictures[1:]
    trainer.run()
    best = load_own(trainer.best_path, find("own_parts:Plain", "network"))[0]
    assert trainer.best is not None
    assert Validation(pictures[:1], trainer.task).measure(best, "cpu")[0]["haze"] == pytest.approx(
        trainer.best["value"]
    )


def test_a_run_may_go_on_for_longer(tmp_path: Path, pictures: list[Picture]) -> None:
    Trainer("denoise", RECIPE, pictures, tmp_path / "run").run()
    said: list[str] = []
    longer = replace(RECIPE, stages=(Stage(4, 16, 2),), validate_every=1)
    trainer = Trainer("denoise", longer, pictures, tmp_path / "run", note=said.append)
    assert trainer.resume()
    assert "extended" in said[0]
    trainer.run()
    assert trainer.step == 4


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_the_state_first(
    tmp_path: Path, pictures: list[Picture], number: signal.Signals, error: type[BaseException]
) -> None:
    recipe = replace(RECIPE, stages=(Stage(5, 16, 2),), checkpoint_every=1000)

    def interrupt(step: int, **_: float) -> None:
        if step == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    said: list[str] = []
    trainer = Trainer("denoise", recipe, pictures, tmp_path / "run", report=interrupt, note=said.append)
    with pytest.raises(error):
        trainer.run()
    assert signal.getsignal(number) is before
    stopped = trainer.step
    assert f"stopped after step {stopped}; its state is saved" in said[-1]
    again = Trainer("denoise", recipe, pictures, tmp_path / "run")
    assert again.resume()
    assert again.step == stopped < 5
    again.run()
    whole = Trainer("denoise", recipe, pictures, tmp_path / "whole")
    whole.run()
    for a, b in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_deterministic_algorithms_are_a_matter_of_the_run_alone(tmp_path: Path, pictures: list[Picture]) -> None:
    seen: list[bool] = []

    def report(**_: float) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())

    recipe = replace(RECIPE, deterministic=True)
    Trainer("denoise", recipe, pictures, tmp_path / "run", report=report).run()
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_mixed_task_gives_every_kind_its_share() -> None:
    dark = Task(lambda clean, draw: (clean * 0, clean), margin=2, turns=False, name="dark")
    same = Task(lambda clean, draw: (clean, clean), luma=True, name="same")
    both = mixed({dark: 3, same: 1})
    assert (both.margin, both.turns, both.luma, both.name) == (2, False, False, "dark+same")
    clean = torch.full((4000, 3, 1, 1), 0.5)
    degraded, truth = both.degrade(clean, Draw((0,)))
    assert torch.equal(truth, clean)
    assert float((degraded == 0).float().mean()) == pytest.approx(0.75, abs=0.03)
    assert find_task("denoise+deblur").margin == TASKS["deblur"].margin
    with pytest.raises(ValueError, match="positive shares"):
        mixed({dark: 0})


def test_evaluation_takes_a_task_of_ones_own(pictures: list[Picture]) -> None:
    half = Task(lambda clean, draw: (clean * 0.5, clean), name="half")
    sample = next(iter(open_samples(pictures[0].clean.parent, half)))
    np.testing.assert_array_equal(sample.degraded, sample.truth * np.float32(0.5))


def test_names_in_files_import_nothing(pictures: list[Picture]) -> None:
    with pytest.raises(ImageError, match="own_parts:haze needs pairs"):
        open_samples(pictures[0].clean.parent, "own_parts:haze")
    assert "own_parts" not in sys.modules


def test_losses_are_what_they_say() -> None:
    clean = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    restored = clean + 0.1
    assert float(LOSSES["l1"](restored, clean)) == pytest.approx(0.1)
    assert float(LOSSES["charbonnier"](restored, clean)) == pytest.approx((0.01 + 1e-6) ** 0.5)
    assert float(LOSSES["charbonnier"](clean, clean)) == pytest.approx(1e-3)
    # A constant error has one coefficient, 64 x 0.1, among the 2 x 8 x 5 numbers of a real transform.
    assert float(LOSSES["l1+fft"](restored, clean)) == pytest.approx(0.1 + 0.1 * 6.4 / 80, rel=1e-3)


def test_names_are_those_that_find_the_same_again() -> None:
    assert name_of(LOSSES["l1"]) == "echoir.losses:l1"
    assert find(name_of(LOSSES["l1"]), "loss") is LOSSES["l1"]
    assert name_of(lambda: None) == name_of(nn.L1Loss()) == UNNAMED


def test_lpips_is_its_package_and_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the package gives is passed on; without it, the command that brings it is said."""
    from echoir import metrics

    class Distance(nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, a: Tensor, b: Tensor, normalize: bool) -> Tensor:
            assert normalize
            assert a.shape == b.shape == (1, 3, 4, 5)
            return (a - b).abs().mean()

    metrics._lpips.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(BackendError, match="lpips is not installed; run: pip install lpips"):
        perceptual_distance(np.zeros((4, 5, 3)), np.ones((4, 5, 3)))
    package = types.ModuleType("lpips")
    monkeypatch.setattr(package, "LPIPS", Distance, raising=False)
    monkeypatch.setitem(sys.modules, "lpips", package)
    assert perceptual_distance(np.zeros((4, 5, 3)), np.ones((4, 5, 3))) == 1
    assert Validation.better("rgb25.lpips", 0.1, than=0.2)
    assert Validation.better("rgb25", 30.1, than=30.0)
    metrics._lpips.cache_clear()


def test_a_checkpoint_of_ones_own_is_never_loaded_unasked(tmp_path: Path, pictures: list[Picture]) -> None:
    path = Trainer("denoise", RECIPE, pictures, tmp_path / "run").run()
    sys.modules.pop("own_parts")
    with pytest.raises(ArtifactError, match="own_parts:Plain"):
        load_checkpoint(path)
    assert "own_parts" not in sys.modules
