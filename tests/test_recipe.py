from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import pytest

from echoir.recipe import SHIPPED, Recipe, Stage


def test_schedule_warms_up_holds_and_ends_at_the_final_rate() -> None:
    recipe = Recipe("tiny", (Stage(1000, 64, 8),), learning_rate=1.0, final_learning_rate=0.1, warmup=10, hold=100)
    assert recipe.learning_rate_at(0) == pytest.approx(0.1)
    assert recipe.learning_rate_at(9) == recipe.learning_rate_at(100) == pytest.approx(1.0)
    assert recipe.learning_rate_at(550) == pytest.approx(0.55)  # halfway down the cosine
    assert recipe.learning_rate_at(1000) == pytest.approx(0.1)
    rates = [recipe.learning_rate_at(step) for step in range(100, 1001)]
    assert rates == sorted(rates, reverse=True)


def test_stages_follow_each_other() -> None:
    recipe = Recipe("tiny", (Stage(2, 64, 8), Stage(1, 128, 2)))
    assert recipe.steps == 3
    assert [recipe.stage_at(step).patch for step in range(3)] == [64, 64, 128]
    assert [recipe.bounds(step) for step in range(3)] == [(0, 2), (0, 2), (2, 3)]


def test_a_run_by_the_clock_goes_through_the_same_schedule() -> None:
    recipe = Recipe("tiny", (Stage(100, 64, 8), Stage(100, 128, 2)), minutes=2.0)
    assert recipe.position(7, 60) == 100
    assert recipe.stage_at(recipe.position(7, 30)).patch == 64
    assert recipe.stage_at(recipe.position(7, 90)).patch == 128
    assert recipe.position(10**6, 120) == recipe.steps
    with pytest.raises(click.BadParameter, match="minutes is for single-level"):
        Recipe("tiny", (Stage(1, 64, 8),), minutes=1.0, strategy="as-blo")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_and_survive_a_round_trip(path: Path) -> None:
    recipe = Recipe.load(path.stem)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_overrides_win_and_none_does_not() -> None:
    assert Recipe.load("tiny", seed=7, preset=None).seed == 7
    assert Recipe.load("tiny", seed=7, preset=None).preset == "tiny"


STAGE = "\n[[stages]]\nsteps=1\npatch=8\nbatch=1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset = tiny", "recipe.toml: Invalid value"),
        ("preset = 'tiny'\nspeed = 3" + STAGE, "speed: no such field; there are preset, stages"),
        ("preset = 'tiny'", "stages: found none, needed at least one"),
        ("preset = 'tiny'\nstages = []", "stages: found none, needed at least one"),
        ("preset = 'tiny'\n[[stages]]\nsteps=1\npatch=8", "stages[0].batch: found nothing, needed a value"),
        (
            "preset = 'tiny'\n[[stages]]\nsteps=1\npatch=8\nbatch=1.5",
            "stages[0].batch: found 1.5, needed a whole number",
        ),
        ("preset = 'tiny'\nlearning_rate = '1e-3'" + STAGE, "learning_rate: found '1e-3', needed a finite number"),
        ("preset = 'tiny'\nlearning_rate = inf" + STAGE, "learning_rate: found inf, needed a number above 0"),
        ("preset = 'tiny'\nseed = true" + STAGE, "seed: found True, needed a whole number"),
        ("preset = 'tiny'\nbetas = [0.9]" + STAGE, "betas: found 1 values, needed 2"),
        ("preset = 'tiny'\nstrategy = 'guess'" + STAGE, "strategy: found 'guess', needed one of"),
        ("preset = 'tiny'" + STAGE + "\n[bilevel]\nmu = 0.0", "bilevel.mu: found 0.0, needed a number above 0"),
        ("preset = 'tiny'" + STAGE + "\n[bilevel]\nkappa = 2.0", "bilevel.kappa: found 2.0, needed a number in"),
        (
            "preset = 'tiny'" + STAGE + "\n[bilevel]\nz_steps = 0",
            "bilevel.z_steps: found 0, needed a whole number from 1",
        ),
        ("preset = 'tiny'" + STAGE + "\n[bilevel]\nnu = 0", "bilevel.nu: no such field"),
    ],
)
def test_bad_recipes_are_usage_errors_that_name_the_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(click.BadParameter) as caught:
        Recipe.load(path)
    assert message in caught.value.format_message()


def test_overrides_are_held_to_the_same_ranges() -> None:
    with pytest.raises(click.BadParameter, match=r"learning_rate: found -1\.0, needed a number above 0"):
        Recipe.load("tiny", learning_rate=-1.0)


def test_a_recipe_written_as_toml_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = Recipe.load("base", task="denoise", network={"blocks": [1, 1, 2], "stem": 2}, best="rgb25", seed=3)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert Recipe.load(tmp_path / "recipe.toml") == recipe


def test_a_run_may_be_extended_and_watched_otherwise_but_not_changed() -> None:
    begun = Recipe("tiny", (Stage(10, 64, 8), Stage(5, 128, 2)))
    stages = begun.stages

    def difference(step: int, **changes: object) -> object:
        found = replace(begun, **changes).difference(begun.to_dict(), step)
        return found and found[0]

    assert difference(12, validate_every=3, checkpoint_every=7, best="rgb25") is None
    assert difference(15, stages=(stages[0], Stage(9, 128, 2))) is None
    assert difference(15, stages=(*stages, Stage(9, 256, 1))) is None
    assert difference(3, stages=(Stage(20, 64, 8), stages[1])) is None  # its end is still to come
    assert difference(12, stages=(Stage(20, 64, 8), stages[1])) == "stages"  # it is over
    assert difference(12, stages=(stages[0], Stage(9, 128, 4))) == "stages"
    assert difference(3, stages=(stages[0],)) == "stages"
    assert difference(3, learning_rate=1e-4) == "learning_rate"


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(click.BadParameter, match="no recipe 'huge': give a TOML file or one of"):
        Recipe.load("huge")
