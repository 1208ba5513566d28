"""Pictures with a known truth: clean ones that are degraded here, or pairs as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from echoir.data import Picture, Say, check_pictures, find_pairs, list_pictures, read_float
from echoir.degradations import TASKS, Draw, Task, find_task
from echoir.forms import FORMS
from echoir.runtime.errors import ImageError
from echoir.runtime.output import displayable

SHIPPED = Path(__file__).parent / "pictures"
SIGMA = 25.0
SEED = 0

Degradation = Callable[[NDArray[np.float32], np.random.Generator], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""A clean picture [H, W, 3] to (degraded, truth)."""


@dataclass(frozen=True)
class Sample:
    """One picture by a displayable name: ``degraded`` and ``truth``, both float32 [H, W, 3] RGB; truth in [0, 1]."""

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
        form: the pictures' form (:mod:`echoir.forms`), where noise was added to them.
        sigma: standard deviation of Gaussian noise in 8-bit codes; None for anything else.
        seed: of the degradation; picture i draws from the generator ``(seed, i)``, whatever their number.
    """

    pictures: tuple[Picture, ...]
    degrade: Degradation | None
    kind: str
    form: str | None = None
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
            check_pictures([picture])
            truth = read_float(picture.clean)
            if picture.degraded is not None:
                degraded = read_float(picture.degraded)
                yield Sample(displayable(picture.degraded.name), degraded, truth)
            else:
                assert self.degrade is not None
                degraded, truth = self.degrade(truth, np.random.default_rng((self.seed, index)))
                yield Sample(displayable(picture.clean.name), degraded, truth)

    def describe(self) -> dict[str, Any]:
        """What was done to the pictures, for the report."""
        if self.degrade is None:
            return {"kind": self.kind, "pictures": len(self)}
        known = {"form": self.form, "sigma": self.sigma}
        return {
            "kind": self.kind,
            **{name: value for name, value in known.items() if value is not None},
            "seed": self.seed,
            "pictures": len(self),
        }


def open_samples(
    folder: Path,
    task: str | Task,
    *,
    form: str | None = None,
    sigma: float | None = None,
    seed: int = SEED,
    limit: int | None = None,
    say: Say = lambda _: None,
) -> Samples:
    """Find the pictures of a folder.

    Pairs are found as :func:`echoir.data.list_pictures` does. Any other folder is a set of clean pictures: for
    denoising they come in one form with Gaussian noise of one level, and otherwise with what the task's training
    crops receive, each picture at a strength of its own.

    Args:
        task: what the checkpoint restores: a key of ``TASKS``, several as ``A+B``, or the task itself.
        form: a key of ``echoir.forms.FORMS``, for clean pictures of denoising; ``"rgb"`` if None.
        sigma: noise level in 8-bit codes for clean pictures of denoising; 25 if None.
        limit: take the first so many by name.
        say: as for :func:`echoir.data.list_pictures`.

    Raises:
        ImageError: as :func:`echoir.data.find_pairs`; an unknown task, or ``form`` or ``sigma`` given
            for pairs or for another task than denoising.
    """
    given = [f"--{name}" for name, value in (("form", form), ("sigma", sigma)) if value is not None]
    if pairs := find_pairs(folder, say)[:limit]:
        if given:
            raise ImageError(f"{folder}: holds pairs, which are used as they are; drop {given[0]}")
        return Samples(tuple(pairs), None, "pairs", seed=seed)
    if isinstance(task, str):
        try:
            task = find_task(task, own=False)
        except click.BadParameter:
            raise ImageError(
                f"{folder}: {task} needs pairs, such as in the folders input/ and target/ there; or a task of one's "
                "own, named as module:attribute"
            ) from None
    clean = tuple(list_pictures([folder])[:limit])
    if task is TASKS["denoise"]:
        return noisy_samples(clean, form or "rgb", SIGMA if sigma is None else sigma, seed)
    if given:
        raise ImageError(f"{given[0][2:]} is about Gaussian noise, and {task.name} has none; drop {given[0]}")
    return task_samples(clean, task, seed)


def in_training(task: str | Task) -> Degradation:
    """What a clean picture receives in training for a task, as float32 [H, W, 3]."""
    return partial(_as_in_training, find_task(task, own=False) if isinstance(task, str) else task)


def in_form(form: str, sigma: float) -> Degradation:
    """Gaussian noise in a form of ``echoir.forms.FORMS``; ``sigma`` in 8-bit codes."""
    return partial(_in_form, form, sigma)


def noisy_samples(clean: tuple[Picture, ...], form: str, sigma: float, seed: int = SEED) -> Samples:
    """Clean pictures with Gaussian noise, in a form of ``echoir.forms.FORMS``; ``sigma`` in 8-bit codes."""
    return Samples(clean, in_form(form, sigma), "gaussian noise", form, sigma, seed)


def task_samples(clean: tuple[Picture, ...], task: str | Task, seed: int = SEED) -> Samples:
    """Clean pictures with what a task's training crops receive."""
    task = find_task(task, own=False) if isinstance(task, str) else task
    return Samples(clean, in_training(task), f"synthetic {task.name}", seed=seed)


def _in_form(
    form: str, sigma: float, clean: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return FORMS[form](clean, sigma, rng)


def _as_in_training(
    task: Task, clean: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    batch = torch.from_numpy(np.ascontiguousarray(clean.transpose(2, 0, 1)))[None]
    degraded, truth = task.degrade(batch, Draw((int(rng.integers(2**62)),)))
    return tuple(np.ascontiguousarray(part[0].permute(1, 2, 0).numpy()) for part in (degraded, truth))  # type: ignore[return-value]
