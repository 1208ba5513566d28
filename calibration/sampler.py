"""Which tiles a network is calibrated on: real, varied, all different, the same for the same seed.

Ranges are only as good as the pictures behind them, and a folder of the wrong ones goes unnoticed:
random pixels, black frames or one picture in fifty copies all give ranges. So they are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoir.runtime.errors import ImageError
from echoir.runtime.output import displayable

Floats = NDArray[np.float32]
Degradation = Callable[[Floats, np.random.Generator], tuple[Floats, Floats]]
"""A clean picture [H, W, 3] to what is degraded and what is true of it (a gray picture, perhaps)."""
Source = tuple[Path, "Path | None"]  # a clean picture, and what the world made of it if that is known
Read = Callable[[Path], Floats]

PICTURES = 64  # that are looked at, at most: more cost time and change the ranges no longer
CROPS = 4  # of every picture
# Neighbouring pixels of photographs correlate by 0.9 and more, those of white noise by 0.
LEAST_CORRELATION = 0.3
LEAST_DEVIATION = 2 / 255
SIGNATURE = 8  # pictures shrunk to 8 x 8 grays ...
DUPLICATE = 3 / 255  # ... that differ by less than this (root mean square) are one picture


@dataclass(frozen=True)
class Practice:
    """What a task's clean pictures go through.

    Attributes:
        degrade: as in training.
        margin: pixels around a crop that ``degrade`` draws on.
        checks: degradations of fixed strength, by name, that the task is watched with.
    """

    degrade: Degradation
    margin: int = 0
    checks: Mapping[str, Degradation] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """What pictures become for one network.

    Attributes:
        mosaic: pixels of the degraded picture for each of a tile, each side.
        enlargement: pixels of the truth for each of the degraded picture, each side.
        fitted: (degraded, truth), [H, W, 3] each, to (tile, truth), [1, C, side, side] and [1, 3, ...]; a degraded
            picture as large as its truth has not been reduced yet.
    """

    mosaic: int
    enlargement: int
    fitted: Callable[[Floats, Floats], tuple[Floats, Floats]]

    @property
    def step(self) -> int:
        """Pixels of the truth for each of a tile, each side; crops start at multiples of it."""
        return self.mosaic * self.enlargement

    def margin(self, practice: Practice | None) -> int:
        """Pixels around a crop that a degradation draws on, at least."""
        return 0 if practice is None else -(-practice.margin // self.step) * self.step


AS_IT_IS = Fit(1, 1, lambda degraded, truth: (_planes(degraded), _planes(truth)))


@dataclass(frozen=True)
class Tile:
    """A piece of a picture, float32: degraded (by what strength, if that is fixed) and true.

    [1, C, side, side] as the network takes it, and [1, 3, ...] of the size it gives.
    """

    name: str
    degraded: Floats
    truth: Floats
    strength: str = ""


@dataclass(frozen=True)
class Tiles:
    """Two sets from different pictures.

    Attributes:
        calibration: what ranges are set on.
        sensitivity: what layers are judged on.
        fingerprint: SHA-256 of every pixel of both.
        pictures: how many they come from.
        degradation: what was done to clean pictures, or ``"pairs"``.
    """

    calibration: tuple[Tile, ...]
    sensitivity: tuple[Tile, ...]
    fingerprint: str
    pictures: int
    degradation: str


def sample(
    sources: Sequence[Source],
    task: str,
    degradation: Practice | None,
    read: Read,
    *,
    side: int,
    fit: Fit = AS_IT_IS,
    calibration: int = 24,
    sensitivity: int = 12,
    seed: int = 0,
) -> Tiles:
    """Draw tiles from pictures.

    Pictures are shuffled and dealt out: two of three to calibration, one to sensitivity. Of each, a few
    crops are taken and degraded. Calibration keeps those that lie furthest apart in brightness, detail and strength
    of the degradation, so that ranges see the extremes; sensitivity, whose mean is to be that of all pictures,
    those at even steps from the least detail to the most.

    Args:
        sources: clean pictures, or pairs.
        task: its name, for messages.
        degradation: what the task undoes, for clean pictures; calibration sees it as training did, and
            sensitivity at the strengths the task is watched with, if there are such.
        read: a file to float32 [H, W, 3] in [0, 1].
        side: of a tile in pixels.
        fit: what pictures become for the network.
        calibration, sensitivity: how many tiles; a picture gives at most four.
        seed: of everything drawn.

    Raises:
        ImageError: a picture cannot be read, or too few of them are large enough, different from each
            other, neither constant nor noise; the message says how many fell to what, with a name.
    """
    rng = np.random.default_rng(seed)
    chosen = [sources[i] for i in rng.permutation(len(sources))[:PICTURES]]
    pictures = _pictures(chosen, task, degradation, read, side, fit)
    needed = -(-calibration // CROPS) + -(-sensitivity // CROPS)
    pictures.check(needed)
    third = max(len(pictures.good) // 3, -(-sensitivity // CROPS))
    watched = dict(degradation.checks) if degradation else {}
    sets = []
    for part, count, strengths, keep in (
        (pictures.good[third:], calibration, {}, _apart),
        (pictures.good[:third], sensitivity, watched, _even),
    ):
        crops = [
            crop
            for number, picture in enumerate(part)
            for crop in _crops(picture, degradation, strengths, number, side, fit, rng)
        ]
        kinds = sorted({crop.strength for crop in crops})
        shares = [len(range(index, count, len(kinds))) for index in range(len(kinds))]
        sets.append(
            [
                crop
                for kind, share in zip(kinds, shares, strict=True)
                for crop in keep([crop for crop in crops if crop.strength == kind], share)
            ]
        )
    digest = hashlib.sha256()
    for tile in (*sets[0], *sets[1]):
        digest.update(tile.degraded.tobytes())
        digest.update(tile.truth.tobytes())
    made = "pairs" if all(degraded is not None for _, degraded in sources) else task
    return Tiles(tuple(sets[0]), tuple(sets[1]), digest.hexdigest(), len(pictures.good), made)


@dataclass(frozen=True)
class _Picture:
    name: str
    clean: Floats  # [H, W, 3]
    degraded: Floats | None


@dataclass
class _Pictures:
    """Pictures that will do, and the others by what is wrong with them."""

    good: list[_Picture]
    bad: dict[str, list[str]]

    def check(self, needed: int) -> None:
        if len(self.good) >= needed:
            return
        reasons = [f"{len(names)} {reason} ({min(names)})" for reason, names in self.bad.items()]
        raise ImageError(
            f"calibration needs {needed} different pictures and has {len(self.good)}"
            + (f"; {', '.join(reasons)}" if reasons else "")
        )


def _pictures(
    sources: Sequence[Source], task: str, degradation: Practice | None, read: Read, side: int, fit: Fit
) -> _Pictures:
    found = _Pictures([], {})
    large = fit.step * side
    signatures: list[Floats] = []
    for clean_path, degraded_path in sources:
        clean = read(clean_path)
        degraded = None if degraded_path is None else read(degraded_path)
        if degraded is None and degradation is None:
            raise ImageError(f"{clean_path}: {task} needs pairs, in the folders input/ and target/")
        if degraded is not None and clean.shape[:2] != tuple(fit.enlargement * size for size in degraded.shape[:2]):
            times = f"{fit.enlargement} times larger" if fit.enlargement > 1 else "of its size"
            raise ImageError(f"{degraded_path}: another size than its target {clean_path}, which must be {times}")
        gray = clean.mean(axis=2)
        signature = _shrunk(gray)
        room = large + 2 * (fit.margin(degradation) if degraded is None else 0)
        if min(gray.shape) < room:
            reason = f"smaller than {room} x {room}"
        elif gray.std() < LEAST_DEVIATION:
            reason = "constant"
        elif _correlation(gray) < LEAST_CORRELATION:
            reason = "random noise"
        elif any(np.sqrt(np.square(signature - other).mean()) < DUPLICATE for other in signatures):
            reason = "a copy of another"
        else:
            signatures.append(signature)
            found.good.append(_Picture(displayable(clean_path.name), clean, degraded))
            continue
        found.bad.setdefault(reason, []).append(clean_path.name)
    return found


def _crops(
    picture: _Picture,
    degradation: Practice | None,
    strengths: Mapping[str, Degradation],
    number: int,
    side: int,
    fit: Fit,
    rng: np.random.Generator,
) -> list[Tile]:
    margin = fit.margin(degradation) if picture.degraded is None else 0
    height, width, _ = picture.clean.shape
    side, step = fit.step * side, fit.step
    made = []
    for index in range(CROPS):
        y = int(rng.integers(margin, height - side - margin + 1)) // step * step
        x = int(rng.integers(margin, width - side - margin + 1)) // step * step
        inner = (slice(y, y + side), slice(x, x + side))
        strength = ""
        truth = picture.clean[inner]
        if picture.degraded is not None:
            rows, columns = (slice(a.start // fit.enlargement, a.stop // fit.enlargement) for a in inner)
            degraded = picture.degraded[rows, columns]
        else:
            assert degradation is not None
            degrade = degradation.degrade
            if strengths:
                strength = list(strengths)[(number + index) % len(strengths)]
                degrade = strengths[strength]
            outer = picture.clean[y - margin : y + side + margin, x - margin : x + side + margin]
            inside = (slice(margin, margin + side),) * 2
            degraded, truth = (part[inside] for part in degrade(outer, rng))
        name = f"{picture.name} at {y}, {x}"
        made.append(Tile(name, *fit.fitted(degraded, truth), strength))
    return made


def _even(crops: list[Tile], count: int) -> list[Tile]:
    """One crop for every step of detail: smooth crops suffer most, and are as common here as among all."""
    ordered = sorted(crops, key=lambda crop: _features(crop)[1])
    count = min(count, len(ordered))
    return [ordered[(2 * index + 1) * len(ordered) // (2 * count)] for index in range(count)]


def _apart(crops: list[Tile], count: int) -> list[Tile]:
    """The crops that lie furthest apart in brightness, detail and degradation, each measured by rank."""
    features = np.array([_features(crop) for crop in crops])
    ranks = features.argsort(axis=0).argsort(axis=0) / max(len(crops) - 1, 1)
    chosen = [int(np.square(ranks - 0.5).sum(axis=1).argmin())]
    distance = np.full(len(crops), np.inf)
    while len(chosen) < min(count, len(crops)):
        distance = np.minimum(distance, np.square(ranks - ranks[chosen[-1]]).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return [crops[index] for index in sorted(chosen)]


def _features(crop: Tile) -> tuple[float, float, float]:
    gray = crop.truth.mean(axis=(0, 1))
    detail = np.abs(np.diff(gray, axis=0)).mean() + np.abs(np.diff(gray, axis=1)).mean()
    given = crop.degraded
    if given.shape != crop.truth.shape:  # for what was reduced, what is lost of the detail
        step = gray.shape[0] // given.shape[2]
        given = given.mean(axis=1, keepdims=True).repeat(step, axis=2).repeat(step, axis=3)
    return float(gray.mean()), float(detail), float(np.square(given - crop.truth).mean())


def _correlation(gray: Floats) -> float:
    """Of horizontal and vertical neighbours, the larger; photographs reach 0.9."""
    pairs = ((gray[:, :-1], gray[:, 1:]), (gray[:-1], gray[1:]))
    return max(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in pairs)


def _shrunk(gray: Floats) -> Floats:
    """Means over a grid of 8 x 8 cells, [64]."""
    rows, columns = (np.linspace(0, size, SIGNATURE + 1).astype(int) for size in gray.shape)
    means = [
        gray[top:bottom, left:right].mean() if bottom > top and right > left else 0.0
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]
    return np.array(means, np.float32)


def _planes(pixels: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
