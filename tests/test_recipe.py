from __future__ import annotations

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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset = tiny", "Invalid value"),
        ("preset = 'tiny'\nspeed = 3\n[[stages]]\nsteps=1\npatch=8\nbatch=1", "unknown field in the recipe: speed"),
        ("preset = 'tiny'", "at least one"),
        ("preset = 'tiny'\n[[stages]]\nsteps=1\npatch=8", "in the recipe: "),
    ],
)
def test_bad_recipes_are_usage_errors(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(click.BadParameter) as caught:
        Recipe.load(path)
    assert message in caught.value.format_message()


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(click.BadParameter, match="no recipe 'huge': give a TOML file or one of"):
        Recipe.load("huge")


@pytest.mark.parametrize(
    ("field", "value", "needed"),
    [
        ("mu", 0.0, "a positive number"),
        ("kappa", 2.0, r"a number in \(0, 1\]"),
        ("z_steps", 0, "a whole number from 1"),
    ],
)
def test_bi_level_settings_out_of_range_are_named(field: str, value: float, needed: str) -> None:
    with pytest.raises(click.BadParameter, match=rf"bilevel\.{field} must be {needed}.*, got {value}"):
        Recipe.from_dict(
            {"preset": "tiny", "stages": [{"steps": 1, "patch": 8, "batch": 1}], "bilevel": {field: value}}
        )
