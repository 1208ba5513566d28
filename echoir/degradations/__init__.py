"""What the tasks undo: clean crops in, degraded crops out, in batches, on the device that trains.

A degradation takes float32 [N, 3, H, W] RGB in [0, 1] and a :class:`Draw`, and returns the degraded crops
and the clean ones they stand for, both of the same size. It is a function of the crops and the draw's seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from echoir.degradations.blur import LONGEST, motion_blur
from echoir.degradations.camera import camera_and_other_noise
from echoir.degradations.draw import Draw
from echoir.degradations.noise import Pair, noise
from echoir.degradations.rain import rain, rained_on

__all__ = ["TASKS", "Degradation", "Draw", "Pair", "Task"]

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
    """

    degrade: Degradation
    margin: int = 0
    turns: bool = True
    layered: Callable[[Tensor, Tensor, Draw], Pair] | None = None
    luma: bool = False


TASKS: dict[str, Task] = {
    "denoise": Task(noise),
    "realnoise": Task(camera_and_other_noise, margin=4),
    "derain": Task(rain, turns=False, layered=rained_on, luma=True),
    "deblur": Task(motion_blur, margin=LONGEST // 2 + 1),
}
