"""Training of any network of the table, and the tasks that come with them."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image
from running import echoir

from echoir.checkpoint import load_checkpoint
from echoir.crops import Crops
from echoir.data import Picture, list_pictures
from echoir.degradations import TASKS, Draw, find_task
from echoir.journal import read_csv
from echoir.networks.grl import GRL
from echoir.recipe import Recipe, Stage
from echoir.recipe_network import network_of
from echoir.resize import resize
from echoir.samples import open_samples
from echoir.train import Trainer

RECIPE = Recipe(
    preset="grl-t",
    network={"width": 4, "heads": 1, "depths": (1,), "window": 8, "stripe": (16, 16), "scale": 2},
    stages=(Stage(2, 16, 2),),
    warmup=1,
    holdout=1,
)


def pictures(folder: Path, count: int = 3) -> list[Picture]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (48, 60, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return list_pictures([folder])


def test_grl_learns_to_enlarge_and_its_weights_come_back(tmp_path: Path) -> None:
    trainer = Trainer("sr", RECIPE, pictures(tmp_path / "clean"), tmp_path / "run")
    path = trainer.run()
    assert trainer.validation.figures == ["sr"]
    assert float(read_csv(tmp_path / "run" / "validation.csv")[-1]["sr"]) > 5
    loaded = load_checkpoint(path)
    assert isinstance(loaded.network, GRL)
    described = loaded.descriptor
    assert (described.name, described.task, described.scale) == ("GRL t", "sr", 2)
    image = torch.rand(1, 3, 20, 16)
    torch.testing.assert_close(loaded.network(image), trainer.average.module.eval()(image))
    shown = echoir("evaluate", path, "--data", tmp_path / "clean", "--threads", 1, "--json", "-")
    assert shown.code == 0, shown.err
    figures = [entry["input_psnr"] for entry in json.loads(shown.out)[:-1]]
    truth = np.asarray(Image.open(tmp_path / "clean" / "0.png")) / np.float32(255)
    small = np.rint(resize(truth, Fraction(1, 2)).clip(0, 1) * 255) / np.float32(255)
    bicubic = np.rint(resize(small, 2).clip(0, 1) * 255)
    assert figures[0] == pytest.approx(-10 * np.log10(np.mean((bicubic / 255 - truth) ** 2)), abs=1e-3)
    again = Trainer("sr", RECIPE, trainer.pictures, tmp_path / "again", start=loaded.network)
    assert torch.equal(again.network.embed.weight, loaded.network.embed.weight)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_are_reduced_as_pictures_are(tmp_path: Path, scale: int) -> None:
    made = Crops(pictures(tmp_path / "clean"), TASKS["sr"], (0,), torch.device("cpu"), tmp_path, scale=scale)
    degraded, clean = made.make(3, 12, (0,))
    assert degraded.shape == (3, 3, 12, 12)
    assert clean.shape == (3, 3, 12 * scale, 12 * scale)
    whole = resize(clean[0].permute(1, 2, 0).numpy(), Fraction(1, scale))
    inside = slice(2, -2)  # a crop's border knows the picture beyond it, `whole` does not
    difference = degraded[0].permute(1, 2, 0).numpy()[inside, inside] - whole.clip(0, 1)[inside, inside]
    assert np.abs(difference).max() < 0.51 / 255


def test_a_mosaic_keeps_its_colours(tmp_path: Path) -> None:
    made = Crops(pictures(tmp_path / "clean"), TASKS["demosaic"], (0,), torch.device("cpu"), tmp_path)
    degraded, clean = made.make(2, 16, (0,))
    assert torch.equal(degraded[:, 0, ::2, ::2], clean[:, 0, ::2, ::2])
    assert torch.equal(degraded[:, 1, ::2, 1::2], clean[:, 1, ::2, 1::2])
    assert torch.equal(degraded[:, 1, 1::2, ::2], clean[:, 1, 1::2, ::2])
    assert torch.equal(degraded[:, 2, 1::2, 1::2], clean[:, 2, 1::2, 1::2])
    between = (clean[:, 0, ::2, 0:-2:2] + clean[:, 0, ::2, 2::2]) / 2
    torch.testing.assert_close(degraded[:, 0, ::2, 1:-1:2], between)


def test_jpeg_blocks_lie_at_the_corner_for_half_of_the_crops() -> None:
    ramp = torch.linspace(0.2, 0.8, 128).expand(400, 3, 128, 128)
    degraded, clean = TASKS["jpeg"].degrade(ramp, Draw((1,)))
    assert clean is ramp
    assert degraded.shape == ramp.shape
    steps = (degraded[..., 1:] - degraded[..., :-1]).abs().mean((1, 2))  # [N, 127]: largest between blocks
    grid = torch.stack([steps[:, 7 + phase :: 8].mean(1) for phase in range(8)], 1)
    strong = grid.amax(1) > 2 * grid.median(1).values  # of low quality: the grid shows
    assert 0.4 < (grid[strong].argmax(1) == 0).float().mean() < 0.8


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("sr", {"strategy": "as-blo"}, "found as-blo for GRL, needed single-level"),
        ("sr", {"network": {}, "preset": "tiny"}, "found a network of scale 1 for sr, needed one that enlarges"),
        ("denoise", {}, "a 'conv' head has scale 1, not 2"),
        ("denoise", {"network": RECIPE.network | {"task": "sr"}}, "found a network of scale 2 for denoise, needed sc"),
        ("sr", {"stages": (Stage(1, 24, 1),)}, "found 24, needed a multiple of 16"),
        ("defocus", {"network": {}}, "defocus is learned from pairs, and there are 3 clean pictures"),
        ("denoise", {"network": {"task": "dual-defocus"}}, r"found \(6, 3\) planes"),
        ("denoise", {"preset": "grl-xl", "network": {}}, "unknown preset 'grl-xl'; there are .*grl-t, grl-s, grl-b"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, task: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(click.BadParameter, match=message):
        Trainer(task, replace(RECIPE, **changes), pictures(tmp_path / "clean"), tmp_path / "run")


def test_tasks_of_their_own_kind_do_not_mix() -> None:
    with pytest.raises(click.BadParameter, match="found sr among others"):
        find_task("denoise+sr")


def test_defocus_is_measured_on_pairs(tmp_path: Path) -> None:
    pictures(tmp_path / "clean")
    with pytest.raises(Exception, match="defocus needs pairs"):
        open_samples(tmp_path / "clean", "defocus")


@pytest.mark.parametrize(("name", "scale"), [("grl-t", 1), ("grl-t-x2", 2)])
def test_shipped_recipes_name_networks_that_take_their_crops(name: str, scale: int) -> None:
    recipe = Recipe.load(name)
    with torch.device("meta"):
        network = network_of(replace(recipe, task=recipe.task or "denoise"))
    assert isinstance(network, GRL)
    assert network.config.scale == scale
    assert all(stage.patch % network.config.multiple == 0 for stage in recipe.stages)
