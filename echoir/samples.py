"""Pictures with a known truth: clean ones that are degraded here, or pairs as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoir.data import list_images, read_rgb, to_float
from echoir.degradations import gaussian_noise
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
        inputs: clean pictures if ``sigma`` is given, degraded ones otherwise.
        targets: the truth of each input; the same files if ``sigma`` is given.
        sigma: standard deviation, in 8-bit codes, of the Gaussian noise to add; None for pairs.
        seed: of the noise; picture i draws from the generator ``(seed, i)``, whatever their number.
    """

    inputs: tuple[Path, ...]
    targets: tuple[Path, ...]
    sigma: float | None
    seed: int = SEED

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[Sample]:
        """Yield every picture.

        Raises:
            ImageError: a file cannot be read, or the two pictures of a pair differ in size.
        """
        for index, (source, target) in enumerate(zip(self.inputs, self.targets, strict=True)):
            truth = _read(target)
            if self.sigma is not None:
                degraded = gaussian_noise(truth, self.sigma, np.random.default_rng((self.seed, index)))
            else:
                degraded = _read(source)
                if degraded.shape != truth.shape:
                    raise ImageError(
                        f"{source}: {_size(degraded)} pixels, but its target {target} has {_size(truth)}; "
                        "a pair must be of one size"
                    )
            yield Sample(source.name, degraded, truth)

    def describe(self) -> dict[str, Any]:
        """What was done to the pictures, for the report."""
        if self.sigma is None:
            return {"kind": "pairs", "pictures": len(self)}
        return {"kind": "gaussian noise", "sigma": self.sigma, "seed": self.seed, "pictures": len(self)}


def open_samples(
    folder: Path, task: str, *, sigma: float | None = None, seed: int = SEED, limit: int | None = None
) -> Samples:
    """Find the pictures of a folder.

    A folder that holds ``input/`` and ``target/`` gives the pairs of equal stem. Any other is a
    set of clean pictures, which only denoising can degrade by itself.

    Args:
        task: what the checkpoint restores.
        sigma: noise level in 8-bit codes for clean pictures; 25 if None.
        limit: take the first so many by name.

    Raises:
        ImageError: no picture, an input without its target, clean pictures for another task than
            denoising, or ``sigma`` given for pairs.
    """
    if (folder / "input").is_dir() and (folder / "target").is_dir():
        if sigma is not None:
            raise ImageError(f"{folder}: holds input/ and target/ pairs, which are used as they are; drop --sigma")
        inputs = list_images([folder / "input"])[:limit]
        targets = {path.stem: path for path in list_images([folder / "target"])}
        if lonely := [path.name for path in inputs if path.stem not in targets]:
            raise ImageError(f"{folder / 'target'}: no picture for {', '.join(lonely[:5])}")
        return Samples(tuple(inputs), tuple(targets[path.stem] for path in inputs), None, seed)
    if task != "denoise":
        raise ImageError(f"{folder}: {task} needs pairs, in the folders input/ and target/ there")
    clean = tuple(list_images([folder])[:limit])
    return Samples(clean, clean, SIGMA if sigma is None else sigma, seed)


def _read(path: Path) -> NDArray[np.float32]:
    return to_float(read_rgb(path))


def _size(image: NDArray[np.float32]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
