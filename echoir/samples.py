"""Pictures with a known truth: clean ones that are degraded here, or pairs as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from echoir.data import Picture, Say, check_pictures, find_pairs, list_pictures, read_float
from echoir.degradations import TASKS, Draw, Task, find_task
from echoir.fitting import enlargement, fitted
from echoir.forms import FORMS
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ImageError
from echoir.runtime.output import displayable
from echoir.runtime.tiling import reflect

SHIPPED = Path(__file__).parent / "pictures"
SIGMA = 25.0
SEED = 0
CROP = 256  # pixels: enough of a picture to see a form

Degradation = Callable[[NDArray[np.float32], np.random.Generator], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""A clean picture [H, W, 3] to (degraded, truth)."""


GIVEN = "restore"  # the task of a network that nobody told: pictures go in as they are


@dataclass(frozen=True)
class Sample:
    """One picture.

    Attributes:
        name: the path below its folder, displayable; with what was done to it, where a set holds one picture several
            times.
        degraded: float32, as the network takes it: [H, W, 3] RGB unless it needs something else
            (:func:`echoir.fitting.fitted`).
        truth: float32 [H', W', 3] RGB in [0, 1], as large as what the network gives.
        label: what was done to it: of one label, figures are shown together.
        clean: it is given to a network as it is, which can then only spoil it.
        files: that it was read from.
    """

    name: str
    degraded: NDArray[np.float32]
    truth: NDArray[np.float32]
    label: str = ""
    clean: bool = False
    files: tuple[Path, ...] = ()


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
        network: what the pictures are for, where it enlarges them or does not take RGB; None takes them as they are.
    """

    pictures: tuple[Picture, ...]
    degrade: Degradation | None
    kind: str
    form: str | None = None
    sigma: float | None = None
    seed: int = SEED
    network: Descriptor | None = None

    @property
    def label(self) -> str:
        """The kind, or form and level of noise."""
        if self.form is None:
            return self.kind
        return self.form if self.form == "clean" else f"{self.form} sigma {self.sigma:g}"

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Sample]:
        """Yield every picture.

        Raises:
            ImageError: a file cannot be read, or the two pictures of a pair do not fit each other.
        """
        factor = 1 if self.network is None else enlargement(self.network)
        for index, picture in enumerate(self.pictures):
            check_pictures([picture], factor)
            truth = read_float(picture.clean)
            if picture.degraded is not None:
                degraded = read_float(picture.degraded)
                files: tuple[Path, ...] = (picture.degraded, picture.clean)
            else:
                assert self.degrade is not None
                degraded, truth = self.degrade(truth, np.random.default_rng((self.seed, index)))
                files = (picture.clean,)
            if self.network is not None:
                degraded, truth = fitted(degraded, truth, self.network)
            yield Sample(displayable(picture.name), degraded, truth, self.label, self.form == "clean", files)

    def describe(self) -> dict[str, Any]:
        """What was done to the pictures, for the report."""
        if self.degrade is None:
            return {"kind": self.kind, "pictures": len(self)}
        factor = 1 if self.network is None else enlargement(self.network)
        reduced = f"{factor} times, bicubic" if factor > 1 else None
        known = {"form": self.form, "sigma": self.sigma, "reduced": reduced}
        return {
            "kind": self.kind,
            **{name: value for name, value in known.items() if value is not None},
            "seed": self.seed,
            "pictures": len(self),
        }


@dataclass(frozen=True)
class Several:
    """Sets of pictures one after the other, each under its label."""

    parts: tuple[Samples, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Of all parts; one may be there several times."""
        return tuple(picture for part in self.parts for picture in part.pictures)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Sample]:
        """As :meth:`Samples.__iter__`; names tell what was done where there are several parts."""
        for part in self.parts:
            for sample in part:
                yield sample if len(self.parts) == 1 else replace(sample, name=f"{sample.name}, {sample.label}")

    def describe(self) -> dict[str, Any]:
        """As :meth:`Samples.describe`, with the labels of several parts."""
        first, *others = self.parts
        if not others:
            return first.describe()
        parts = {part.label: len(part) for part in self.parts}
        return {"kind": first.kind, "parts": parts, "seed": first.seed, "pictures": len(self)}


def proof_samples(
    folder: Path | None,
    task: str,
    *,
    forms: tuple[str, ...] = (),
    sigmas: tuple[float, ...] = (),
    limit: int | None = None,
    network: Descriptor | None = None,
    say: Say = lambda _: None,
) -> Several:
    """The pictures that an artifact is measured on.

    Args:
        folder: as of :func:`open_samples`; None takes the shipped pictures. For denoising, and where nothing else is
            asked for, those come whole in the literature's form, and a crop in each of the others.
        forms, sigmas: every form is measured at every level.
        limit, network, say: as of :func:`open_samples`.

    Raises:
        ImageError: as :func:`open_samples`.
    """
    asked = [
        open_samples(folder or SHIPPED, task, form=form, sigma=sigma, limit=limit, network=network, say=say)
        for form in forms or (None,)
        for sigma in ((None,) if form == "clean" else sigmas or (None,))
    ]
    if folder is None and not forms and not sigmas and limit is None and TASKS.get(task) is TASKS["denoise"]:
        asked += shipped_crops(task, CROP, CROP, network).parts[1:]
    return Several(tuple(asked))


def shipped_crops(task: str, height: int, width: int, network: Descriptor | None = None) -> Several:
    """The middle of shipped pictures, at most so large: in every form for denoising, degraded as in training otherwise.

    Raises:
        KeyError: no task of ``TASKS``.
    """
    known = TASKS[task]
    clean = tuple(list_pictures([SHIPPED]))
    if known is not TASKS["denoise"]:
        parts = [task_samples(clean, known)]
    else:
        parts = [noisy_samples((clean[index % len(clean)],), form, SIGMA) for index, form in enumerate(FORMS)]
    return Several(tuple(replace(_cropped(part, height, width), network=network) for part in parts))


def _cropped(samples: Samples, height: int, width: int) -> Samples:
    assert samples.degrade is not None
    return replace(samples, degrade=partial(_crop_first, samples.degrade, height, width))


def _crop_first(
    degrade: Degradation, height: int, width: int, clean: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return degrade(middle(clean, height, width), rng)


def middle(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """The middle of a picture [H, W, C] or [H, W], at most so large."""
    top, left = (max(size - most, 0) // 2 for size, most in zip(image.shape, (height, width), strict=False))
    return image[top : top + height, left : left + width]


def filled(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """The middle of a picture [H, W, C] or [H, W], exactly so large: small ones are extended by reflection."""
    part = middle(image, height, width)
    down, across = (reflect(size, side) for size, side in zip(part.shape, (height, width), strict=False))
    return np.ascontiguousarray(part[down][:, across])


def open_samples(
    folder: Path,
    task: str | Task,
    *,
    form: str | None = None,
    sigma: float | None = None,
    seed: int = SEED,
    limit: int | None = None,
    network: Descriptor | None = None,
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
        network: what they are for. Clean pictures are reduced by what it enlarges, and the truth of a pair is larger.
        say: as for :func:`echoir.data.list_pictures`.

    Raises:
        ImageError: as :func:`echoir.data.find_pairs`; an unknown task, or ``form`` or ``sigma`` given
            for pairs or for another task than denoising.
    """
    given = [f"--{name}" for name, value in (("form", form), ("sigma", sigma)) if value is not None]
    if pairs := find_pairs(folder, say)[:limit]:
        if given:
            raise ImageError(f"{folder}: holds pairs, which are used as they are; drop {given[0]}")
        return Samples(tuple(pairs), None, "pairs", seed=seed, network=network)
    reduced = network is not None and enlargement(network) > 1
    if task == GIVEN or (reduced and (task == "sr" or task not in TASKS)):  # then that alone is done to them
        if given:
            raise ImageError(f"{given[0][2:]} is about Gaussian noise, and {task} has none; drop {given[0]}")
        clean = tuple(list_pictures([folder])[:limit])
        return Samples(clean, as_they_are, "clean pictures", seed=seed, network=network)
    if isinstance(task, str):
        try:
            task = find_task(task, own=False)
        except click.BadParameter:
            raise ImageError(
                f"{folder}: {task} needs pairs, such as in the folders input/ and target/ there; or a task of one's "
                "own, named as module:attribute"
            ) from None
    if task.pairs:
        raise ImageError(f"{folder}: {task.name} needs pairs, such as in the folders input/ and target/ there")
    clean = tuple(list_pictures([folder])[:limit])
    if task is TASKS["denoise"]:
        return replace(noisy_samples(clean, form or "rgb", SIGMA if sigma is None else sigma, seed), network=network)
    if given:
        raise ImageError(f"{given[0][2:]} is about Gaussian noise, and {task.name} has none; drop {given[0]}")
    return replace(task_samples(clean, task, seed), network=network)


def as_they_are(
    clean: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Nothing happens to clean pictures."""
    return clean, clean


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
