"""What the tasks undo: clean crops in, degraded crops out, in batches, on the device that trains.

A degradation takes float32 [N, 3, H, W] RGB in [0, 1] and a :class:`Draw`, and returns the degraded crops
and the clean ones they stand for, both of the same size. It is a function of the crops and the draw's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import click
import torch
from torch import Tensor

from echoir.degradations.blur import LONGEST, motion_blur
from echoir.degradations.camera import camera_and_other_noise, mosaicked
from echoir.degradations.draw import Draw
from echoir.degradations.jpeg import compressed
from echoir.degradations.noise import Pair, noise
from echoir.degradations.rain import rain, rained_on
from echoir.named import find, is_own
from echoir.runtime.forms import FORMS

__all__ = ["TASKS", "Degradation", "Draw", "Pair", "Task", "find_task", "mixed"]

Degradation = Callable[[Tensor, Draw], Pair]


@dataclass(frozen=True)
class Task:
    """How pictures are degraded for a task.

    Attributes:
        degrade: what clean crops go through.
        margin: pixels around a crop that ``degrade`` draws on.
        turns: whether crops may be turned by 90 degrees; rain falls downwards.
        layered: puts the difference of a pair on another clean picture, where a task can: (clean,
            difference, draw).
        luma: figures are those of the Y channel.
        pairs: what ``degrade`` does is not how such pictures come about: clean ones are not trained on.
        name: of one's own task, for files and reports.
        forms: kinds of pictures that ``degrade`` makes (:mod:`echoir.forms`), where they are told apart.
    """

    degrade: Degradation
    margin: int = 0
    turns: bool = True
    layered: Callable[[Tensor, Tensor, Draw], Pair] | None = None
    luma: bool = False
    pairs: bool = False
    name: str = "task"
    forms: tuple[str, ...] = ()


def unchanged(clean: Tensor, draw: Draw) -> Pair:
    """Nothing: a network that enlarges is given the crops reduced (:class:`echoir.crops.Crops`)."""
    return clean, clean


TASKS: dict[str, Task] = {
    "denoise": Task(noise, name="denoise", forms=tuple(FORMS)),
    "realnoise": Task(camera_and_other_noise, margin=10, name="realnoise", forms=tuple(FORMS)),
    "derain": Task(rain, turns=False, layered=rained_on, luma=True, name="derain"),
    "deblur": Task(motion_blur, margin=LONGEST // 2 + 1, name="deblur"),
    "sr": Task(unchanged, margin=12, name="sr"),  # what a stretched cubic reaches; a multiple of 2, 3 and 4
    "jpeg": Task(compressed, name="jpeg"),
    "demosaic": Task(mosaicked, margin=2, name="demosaic"),
    "defocus": Task(unchanged, pairs=True, name="defocus"),
}


def mixed(shares: Mapping[Task, float]) -> Task:
    """One task of several: every crop goes through one of them, drawn by share.

    Pairs are taken as they are, but lend their layers to no other picture. Crops are turned if those of every
    task are, and figures are of the Y channel if those of every task are.

    Args:
        shares: positive numbers; what they sum to does not matter.

    Raises:
        ValueError: no task, or a share that is not positive.
        click.BadParameter: a task that does not mix, such as ``sr``.
    """
    if not shares or min(shares.values()) <= 0:
        raise ValueError(f"a mixed task needs tasks with positive shares, got {list(shares.values())}")
    tasks = list(shares)
    if alone := [task.name for task in tasks if task.pairs or task is TASKS["sr"]]:
        raise click.BadParameter(f"task: found {alone[0]} among others, needed alone")
    margin = max(task.margin for task in tasks)

    def degrade(clean: Tensor, draw: Draw) -> Pair:
        counts = draw.parts(len(clean), list(shares.values()))
        parts = [
            task.degrade(crops, draw) for task, crops in zip(tasks, clean.split(counts), strict=True) if len(crops)
        ]
        return torch.cat([degraded for degraded, _ in parts]), torch.cat([truth for _, truth in parts])

    return Task(
        degrade,
        margin,
        turns=all(task.turns for task in tasks),
        luma=all(task.luma for task in tasks),
        name="+".join(task.name for task in tasks),
        forms=tuple(form for form in FORMS if any(form in task.forms for task in tasks)),
    )


def find_task(name: str, own: bool = True) -> Task:
    """A task by its name in :data:`TASKS`, one's own by ``module:attribute``, or several in equal shares by ``A+B``.

    Args:
        own: whether ``module:attribute`` is looked for, which runs the module: not for names that files hold.

    Raises:
        click.BadParameter: there is none of that name.
    """
    if "+" in name:
        return mixed(dict.fromkeys((find_task(part, own) for part in name.split("+")), 1.0))
    if own and is_own(name):
        task = find(name, "task")
        if not isinstance(task, Task):
            raise click.BadParameter(f"task: found {name!r}, {type(task).__name__}, needed an echoir.degradations.Task")
        return task
    if name not in TASKS:
        raise click.BadParameter(f"task: found {name!r}, needed one of {', '.join(TASKS)}, or module:attribute")
    return TASKS[name]
