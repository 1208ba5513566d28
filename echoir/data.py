"""Training crops. Every crop is a function of (seed, number), so a resumed run sees the same ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from echoir.degradations import Degradation
from echoir.recipe import Recipe
from echoir.runtime.errors import ImageError

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


def split_images(paths: list[Path], holdout: int, seed: int) -> tuple[list[Path], list[Path]]:
    """Set ``holdout`` images aside, by a shuffle that ``seed`` fixes; returns (training, held out).

    Raises:
        ImageError: too few images to train on the rest.
    """
    if len(paths) <= holdout:
        raise ImageError(f"{len(paths)} pictures are too few to hold {holdout} out")
    order = np.random.default_rng(seed).permutation(len(paths))
    held = set(order[:holdout].tolist())
    return [p for i, p in enumerate(paths) if i not in held], [p for i, p in enumerate(paths) if i in held]


@dataclass(frozen=True)
class CropKey:
    """Which crop: its running number over the whole training, and its side in pixels."""

    number: int
    patch: int


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Random crops, flipped and rotated, with their degraded version.

    Indexing with a :class:`CropKey` gives ``(degraded, clean)``, both float32 [3, patch, patch],
    clean in [0, 1]. Decoded pictures stay in memory up to ``cache_bytes``.
    """

    def __init__(self, paths: list[Path], degrade: Degradation, seed: int, cache_bytes: int = 4 << 30) -> None:
        self.paths, self.degrade, self.seed = paths, degrade, seed
        self._cache: dict[int, NDArray[np.uint8]] = {}
        self._room = cache_bytes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: CropKey) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, key.number))
        picture = self._picture(int(rng.integers(len(self.paths))))
        grow = [(0, max(key.patch - side, 0)) for side in picture.shape[:2]]
        if any(after for _, after in grow):
            picture = np.pad(picture, [*grow, (0, 0)], mode="reflect")
        y, x = (int(rng.integers(side - key.patch + 1)) for side in picture.shape[:2])
        crop = to_float(picture[y : y + key.patch, x : x + key.patch])
        crop = np.rot90(crop, int(rng.integers(4)))
        if rng.integers(2):
            crop = crop[:, ::-1]
        crop = np.ascontiguousarray(crop)
        return _tensor(self.degrade(crop, rng)), _tensor(crop)

    def _picture(self, index: int) -> NDArray[np.uint8]:
        picture = self._cache.get(index)
        if picture is None:
            picture = read_rgb(self.paths[index])
            if picture.nbytes <= self._room:
                self._room -= picture.nbytes
                self._cache[index] = picture
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


def _tensor(image: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
