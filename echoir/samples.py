"""Pictures with a known truth: clean ones that are degraded here, or pairs as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoir.data import Picture, find_pairs, list_images, read_rgb, to_float
from echoir.degradations import TASKS, Degradation, gaussian_noise
from echoir.runtime.errors import ImageError

SHIPPED = Path(__file__).parent / "pictures"
SIGMA = 25.0
SEED = 0


@dataclass(frozen=True)
class Sample:
    """One picture: ``degraded`` and ``truth``, both float32 [H, W, 3] RGB; truth in [0, 1]."""

    name: str
    degraded: NDArray[np.float32]
    truth: NDArray[np.float32]


@dataclass(frozen=True)
class Samples:
    """A set of pictures, read one at a time.

    Attributes:
        pictures: clean ones, or pairs.
        degrade: what happens to the clean ones; None for pairs, which are used as they are.
        kind: what that is, for reports, such as ``"gaussian noise"``.
        sigma: standard deviation of Gaussian noise in 8-bit codes; None for anything else.
        seed: of the degradation; picture i draws from the generator ``(seed, i)``, whatever their number.
    """

    pictures: tuple[Picture, ...]
    degrade: Degradation | None
    kind: str
    sigma: float | None = None
    seed: int = SEED

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Sample]:
        """Yield every picture.

        Raises:
            ImageError: a file cannot be read, or the two pictures of a pair differ in size.
        """
        for index, picture in enumerate(self.pictures):
            truth = _read(picture.clean)
            if picture.degraded is not None:
                degraded = _read(picture.degraded)
                if degraded.shape != truth.shape:
                    raise ImageError(
                        f"{picture.degraded}: {_size(degraded)} pixels, but its target {picture.clean} has "
                        f"{_size(truth)}; a pair must be of one size"
                    )
                yield Sample(picture.degraded.name, degraded, truth)
            else:
                assert self.degrade is not None
                degraded = self.degrade(truth, np.random.default_rng((self.seed, index)))
                yield Sample(picture.clean.name, degraded, truth)

    def describe(self) -> dict[str, Any]:
        """What was done to the pictures, for the report."""
        if self.degrade is None:
            return {"kind": self.kind, "pictures": len(self)}
        sigma = {} if self.sigma is None else {"sigma": self.sigma}
        return {"kind": self.kind, **sigma, "seed": self.seed, "pictures": len(self)}


def open_samples(
    folder: Path, task: str, *, sigma: float | None = None, seed: int = SEED, limit: int | None = None
) -> Samples:
    """Find the pictures of a folder.

    A folder that holds ``input/`` and ``target/`` gives the pairs of equal stem. Any other is a set of
    clean pictures: they receive Gaussian noise of one level for denoising, and what the task's training
    crops receive otherwise, each picture at a strength of its own.

    Args:
        task: what the checkpoint restores.
        sigma: noise level in 8-bit codes for clean pictures of denoising; 25 if None.
        limit: take the first so many by name.

    Raises:
        ImageError: no picture, an input without its target, an unknown task, or ``sigma`` given for
            pairs or for another task than denoising.
    """
    if pairs := find_pairs(folder)[:limit]:
        if sigma is not None:
            raise ImageError(f"{folder}: holds input/ and target/ pairs, which are used as they are; drop --sigma")
        return Samples(tuple(pairs), None, "pairs", seed=seed)
    if task not in TASKS:
        raise ImageError(f"{folder}: {task} needs pairs, in the folders input/ and target/ there")
    clean = tuple(Picture(path) for path in list_images([folder])[:limit])
    if task == "denoise":
        sigma = SIGMA if sigma is None else sigma
        return Samples(clean, partial(_with_noise, sigma), "gaussian noise", sigma, seed)
    if sigma is not None:
        raise ImageError(f"sigma is the level of Gaussian noise, and {task} has none; drop --sigma")
    return Samples(clean, TASKS[task].degrade, f"synthetic {task}", None, seed)


def _with_noise(sigma: float, clean: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    return gaussian_noise(clean, sigma, rng)


def _read(path: Path) -> NDArray[np.float32]:
    return to_float(read_rgb(path))


def _size(image: NDArray[np.float32]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
