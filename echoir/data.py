"""Pictures to train and to measure on: folders of clean ones, and of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

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
