"""Training crops. Every crop is a function of (seed, number), so a resumed run sees the same ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from echoir.degradations import Pixels, Task
from echoir.recipe import Recipe
from echoir.runtime.errors import ImageError

T = TypeVar("T")
SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"}


def list_images(folders: list[Path]) -> list[Path]:
    """All pictures below the folders, sorted by name within each.

    Raises:
        ImageError: a folder is missing, or there is no picture in any of them.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ImageError(f"{folder}: not a folder")
        found += sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise ImageError(f"no picture ({', '.join(sorted(SUFFIXES))}) in {', '.join(map(str, folders))}")
    return found


@dataclass(frozen=True)
class Picture:
    """A picture to train on: a clean one, and what the world made of it if that is known."""

    clean: Path
    degraded: Path | None = None


def find_pairs(folder: Path) -> list[Picture]:
    """The pairs of equal stem in ``folder``'s subfolders ``input`` (degraded) and ``target``; none if it has no such.

    Raises:
        ImageError: an input has no target.
    """
    if not ((folder / "input").is_dir() and (folder / "target").is_dir()):
        return []
    targets = {path.stem: path for path in list_images([folder / "target"])}
    inputs = list_images([folder / "input"])
    if lonely := [path.name for path in inputs if path.stem not in targets]:
        raise ImageError(f"{folder / 'target'}: no picture for {', '.join(lonely[:5])}")
    return [Picture(targets[path.stem], path) for path in inputs]


def list_pictures(folders: list[Path]) -> list[Picture]:
    """The pairs of folders that hold pairs, and everything below the other folders as clean pictures.

    Raises:
        ImageError: as :func:`list_images` and :func:`find_pairs`.
    """
    found: list[Picture] = []
    for folder in folders:
        found += find_pairs(folder) or [Picture(path) for path in list_images([folder])]
    return found


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """An 8-bit RGB picture as [H, W, 3].

    Raises:
        ImageError: the file is not a readable picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ImageError(f"{path}: cannot be read as a picture ({error})") from None


def to_float(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """8-bit codes to float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(255)


def split(pictures: Sequence[T], holdout: int, seed: int) -> tuple[list[T], list[T]]:
    """Set ``holdout`` pictures aside, by a shuffle that ``seed`` fixes; returns (training, held out).

    Raises:
        ImageError: too few pictures to train on the rest.
    """
    if len(pictures) <= holdout:
        raise ImageError(f"{len(pictures)} pictures are too few to hold {holdout} out")
    order = np.random.default_rng(seed).permutation(len(pictures))
    held = set(order[:holdout].tolist())
    return [p for i, p in enumerate(pictures) if i not in held], [p for i, p in enumerate(pictures) if i in held]


@dataclass(frozen=True)
class CropKey:
    """Which crop: its running number over the whole training, and its side in pixels."""

    number: int
    patch: int


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Random crops, mirrored and turned, with their degraded version.

    Indexing with a :class:`CropKey` gives ``(degraded, clean)``, both float32 [3, patch, patch],
    clean in [0, 1]. Decoded pictures stay in memory up to ``cache_bytes``.

    Args:
        pictures: clean ones are degraded as the task does; pairs are taken as they are. If the task is
            additive and there are pairs, clean pictures receive a pair's difference instead (a real layer of
            rain on another photograph).
        pairs: share of the crops that come from pairs, where there are both kinds.
    """

    def __init__(
        self, pictures: Sequence[Picture], task: Task, seed: int, pairs: float = 0.5, cache_bytes: int = 4 << 30
    ) -> None:
        self.task, self.seed = task, seed
        self.clean = [picture for picture in pictures if picture.degraded is None]
        self.pairs = [picture for picture in pictures if picture.degraded is not None]
        self.pair_share = (pairs if self.clean else 1.0) if self.pairs else 0.0
        self._cache: dict[Path, NDArray[np.uint8]] = {}
        self._room = cache_bytes

    def __len__(self) -> int:
        return len(self.clean) + len(self.pairs)

    def __getitem__(self, key: CropKey) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, key.number))
        turns = int(rng.integers(4)) if self.task.turns else 0
        mirrored = bool(rng.integers(2))
        if rng.random() < self.pair_share:
            crops = self._pair(key.patch, rng)
        else:
            margin = self.task.margin
            (window,) = self._windows([self._choose(self.clean, rng).clean], key.patch, margin, rng)
            inside = (slice(margin, margin + key.patch),) * 2
            if self.task.additive and self.pairs:
                degraded, clean = self._pair(key.patch, rng)
                layer = (degraded - clean)[:, :: rng.choice([1, -1])]
                crops = (window[inside] + layer).clip(0, 1), window[inside]
            else:
                crops = self.task.degrade(window, rng)[inside], window[inside]
        degraded, clean = (np.rot90(crop, turns)[:, :: -1 if mirrored else 1] for crop in crops)
        return _tensor(degraded), _tensor(clean)

    def _pair(self, patch: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        picture = self._choose(self.pairs, rng)
        assert picture.degraded is not None
        degraded, clean = self._windows([picture.degraded, picture.clean], patch, 0, rng)
        return degraded, clean

    def _choose(self, pictures: list[Picture], rng: np.random.Generator) -> Picture:
        return pictures[int(rng.integers(len(pictures)))]

    def _windows(self, paths: list[Path], patch: int, margin: int, rng: np.random.Generator) -> list[Pixels]:
        """The same random window of each picture, [patch + 2 margin] squared; what lies outside is reflected."""
        pictures = [self._read(path) for path in paths]
        if len({picture.shape for picture in pictures}) > 1:
            raise ImageError(f"{paths[0]} and {paths[1]} differ in size; a pair must be of one size")
        places = []
        for side in pictures[0].shape[:2]:
            start = int(rng.integers(max(side - patch, 0) + 1))
            places.append(_reflected(np.arange(start - margin, start + patch + margin), side))
        return [to_float(picture[np.ix_(*places)]) for picture in pictures]

    def _read(self, path: Path) -> NDArray[np.uint8]:
        picture = self._cache.get(path)
        if picture is None:
            picture = read_rgb(path)
            if picture.nbytes <= self._room:
                self._room -= picture.nbytes
                self._cache[path] = picture
        return picture


class CropSchedule(Sampler[list[CropKey]]):
    """The batches of a recipe from ``first_step`` on; rank r of w takes every w-th crop."""

    def __init__(self, recipe: Recipe, first_step: int = 0, rank: int = 0, world: int = 1) -> None:
        self.recipe, self.first_step, self.rank, self.world = recipe, first_step, rank, world

    def __len__(self) -> int:
        return self.recipe.steps - self.first_step

    def __iter__(self) -> Iterator[list[CropKey]]:
        number = 0
        for step in range(self.recipe.steps):
            stage = self.recipe.stage_at(step)
            count = stage.batch * self.world
            if step >= self.first_step:
                yield [CropKey(number + i, stage.patch) for i in range(self.rank, count, self.world)]
            number += count


def data_folders(given: tuple[str, ...]) -> list[Path]:
    """Folders named on the command line, else ``ECHOIR_DATA`` (several separated by the path separator)."""
    named = list(given) or [part for part in os.environ.get("ECHOIR_DATA", "").split(os.pathsep) if part]
    return [Path(part) for part in named]


def _reflected(places: NDArray[np.int_], size: int) -> NDArray[np.int_]:
    """Places on an axis, with those outside [0, size) bounced back in without repeating the border."""
    period = max(2 * (size - 1), 1)
    places = places % period
    return np.minimum(places, period - places)


def _tensor(image: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
