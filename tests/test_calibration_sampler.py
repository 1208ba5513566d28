"""Which pictures calibration takes, which it refuses and why, and that it draws the same tiles again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echoir.calibration.sampler import CROPS, Practice, Tiles, sample
from echoir.data import to_float
from echoir.runtime.errors import ImageError

SIDE = 32
Pictures = dict[Path, np.ndarray[Any, np.dtype[np.uint8]]]


def scene(seed: int, side: int = 48) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth picture unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(2 * np.pi * (rng.uniform(-2, 2) * x + rng.uniform(-2, 2) * y + rng.uniform())) for _ in range(3)]
    return np.rint(255 * (0.5 + 0.45 * np.stack(waves, axis=2))).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return {Path(f"{seed:02}.png"): scene(seed) for seed in range(12)}


def noisy(clean: np.ndarray[Any, Any], rng: np.random.Generator, sigma: float | None = None) -> tuple[Any, Any]:
    sigma = rng.uniform(0, 55) if sigma is None else sigma
    return clean + (rng.standard_normal(clean.shape) * sigma / 255).astype(np.float32), clean


NOISE = Practice(
    noisy,
    checks={f"sigma{sigma}": lambda clean, rng, s=sigma: noisy(clean, rng, s) for sigma in (15, 25, 50)},
)


def draw(pictures: Pictures, task: Practice | None = NOISE, **options: Any) -> Tiles:
    options = {"side": SIDE, "calibration": 12, "sensitivity": 6, **options}
    return sample(
        [(path, None) for path in pictures], "denoise", task, lambda path: to_float(pictures[path]), **options
    )


def test_sets_have_the_sizes_asked_for_and_come_from_different_pictures(pictures: Pictures) -> None:
    tiles = draw(pictures)
    assert len(tiles.calibration) == 12
    assert len(tiles.sensitivity) == 6
    assert tiles.pictures == 12
    names = [{tile.name.split(" at ")[0] for tile in part} for part in (tiles.calibration, tiles.sensitivity)]
    assert not names[0] & names[1]
    for tile in (*tiles.calibration, *tiles.sensitivity):
        assert tile.degraded.shape == tile.truth.shape == (1, 3, SIDE, SIDE)
        assert tile.degraded.dtype == tile.truth.dtype == np.float32
        assert 0 <= tile.truth.min() <= tile.truth.max() <= 1


def test_a_tile_is_a_piece_of_its_picture(pictures: Pictures) -> None:
    for tile in draw(pictures).calibration:
        name, place = tile.name.split(" at ")
        y, x = map(int, place.split(", "))
        codes = pictures[Path(name)][y : y + SIDE, x : x + SIDE].transpose(2, 0, 1)
        np.testing.assert_allclose(255 * tile.truth[0], codes, atol=1e-3)


def test_the_seed_decides(pictures: Pictures) -> None:
    assert draw(pictures).fingerprint == draw(pictures).fingerprint
    assert draw(pictures).fingerprint != draw(pictures, seed=1).fingerprint


def test_noise_levels_spread_over_the_whole_range(pictures: Pictures) -> None:
    levels = [255 * float((tile.degraded - tile.truth).std()) for tile in draw(pictures).calibration]
    assert min(levels) < 15
    assert max(levels) > 40


def test_sensitivity_sees_the_strengths_the_task_is_watched_with(pictures: Pictures) -> None:
    tiles = draw(pictures).sensitivity
    assert [tile.strength for tile in tiles] == ["sigma15"] * 2 + ["sigma25"] * 2 + ["sigma50"] * 2
    for tile in tiles:
        assert 255 * float((tile.degraded - tile.truth).std()) == pytest.approx(float(tile.strength[5:]), rel=0.05)


def test_sensitivity_has_a_tile_for_every_step_of_detail(pictures: Pictures) -> None:
    seen = []

    def spy(clean: np.ndarray[Any, Any], rng: np.random.Generator) -> tuple[Any, Any]:
        seen.append(detail(clean))
        return clean, clean

    def detail(crop: np.ndarray[Any, Any]) -> float:
        gray = crop.mean(axis=2)
        return float(np.abs(np.diff(gray, axis=0)).mean() + np.abs(np.diff(gray, axis=1)).mean())

    tiles = draw(pictures, Practice(noisy, checks={"clean": spy}), sensitivity=8).sensitivity
    places = [(np.array(seen) < detail(tile.truth[0].transpose(1, 2, 0)) - 1e-6).mean() for tile in tiles]
    assert [int(8 * place) for place in places] == list(range(8))


def test_a_degradation_gets_the_margin_it_draws_on(pictures: Pictures) -> None:
    seen = []

    def spy(clean: np.ndarray[Any, Any], rng: np.random.Generator) -> tuple[Any, Any]:
        seen.append(clean.shape)
        return clean, clean

    tiles = draw(pictures, Practice(spy, margin=5))
    assert set(seen) == {(SIDE + 10, SIDE + 10, 3)}
    assert all((tile.degraded == tile.truth).all() for tile in tiles.calibration)


def test_a_degradation_says_what_is_true(pictures: Pictures) -> None:
    def gray(clean: np.ndarray[Any, Any], rng: np.random.Generator) -> tuple[Any, Any]:
        truth = np.repeat(clean.mean(2, keepdims=True), 3, 2)
        return truth + np.float32(0.1), truth

    for tile in draw(pictures, Practice(gray)).calibration:
        assert np.ptp(tile.truth, axis=1).max() == 0
        np.testing.assert_allclose(tile.degraded - tile.truth, 0.1, atol=1e-6)


def test_pairs_are_taken_as_they_are(pictures: Pictures) -> None:
    inputs = {
        Path("input") / path: np.rint(
            255 * noisy(picture.astype(np.float32) / 255, np.random.default_rng(0), 20)[0].clip(0, 1)
        ).astype(np.uint8)
        for path, picture in pictures.items()
    }
    both = pictures | inputs
    sources = [(path, Path("input") / path) for path in pictures]
    tiles = sample(sources, "any", None, lambda path: to_float(both[path]), side=SIDE, calibration=8, sensitivity=4)
    assert tiles.degradation == "pairs"
    for tile in tiles.sensitivity:
        assert 14 < 255 * float((tile.degraded - tile.truth).std()) < 22


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rng, picture: np.zeros_like(picture), "constant"),
        (lambda rng, picture: np.full_like(picture, 255), "constant"),
        (lambda rng, picture: rng.integers(0, 256, picture.shape, np.uint8), "random noise"),
        (lambda rng, picture: picture[:20], "smaller than 32 x 32"),
        (lambda rng, picture: scene(0), "a copy of another"),
        (
            lambda rng, picture: (scene(0).astype(int) + rng.integers(0, 2, (48, 48, 3))).clip(0, 255),
            "a copy of another",
        ),
    ],
)
def test_pictures_that_will_not_do_are_counted_and_named(pictures: Pictures, change: Any, message: str) -> None:
    rng = np.random.default_rng(0)
    bad = {path: change(rng, picture).astype(np.uint8) for path, picture in pictures.items()}
    with pytest.raises(ImageError, match=rf"calibration needs 5 different pictures.*\d+ {message} \(\d\d.png\)"):
        draw(bad)


def test_one_picture_is_too_few(pictures: Pictures) -> None:
    with pytest.raises(ImageError, match="needs 5 different pictures and has 1"):
        draw(dict(list(pictures.items())[:1]))


def test_a_few_bad_ones_among_enough_good_ones_are_left_out(pictures: Pictures) -> None:
    bad = {Path("black.png"): np.zeros((48, 48, 3), np.uint8)}
    tiles = draw(pictures | bad)
    assert tiles.pictures == 12
    assert not [tile for tile in tiles.calibration if tile.name.startswith("black")]


def test_a_task_that_cannot_degrade_needs_pairs(pictures: Pictures) -> None:
    with pytest.raises(ImageError, match="needs pairs"):
        draw(pictures, None)


def test_the_two_pictures_of_a_pair_are_of_one_size(pictures: Pictures) -> None:
    both = pictures | {Path("input.png"): scene(0, 50)}
    with pytest.raises(ImageError, match="another size than its target"):
        sample([(Path("00.png"), Path("input.png"))], "any", None, lambda path: to_float(both[path]), side=SIDE)


def test_a_picture_gives_several_tiles(pictures: Pictures) -> None:
    few = dict(list(pictures.items())[:5])
    tiles = draw(few)
    assert len({tile.name.split(" at ")[0] for tile in tiles.calibration}) >= len(tiles.calibration) / CROPS
