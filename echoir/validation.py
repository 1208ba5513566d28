"""What a run is watched on: pictures degraded in the same way every time, restored by the averaged network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from echoir.data import Picture
from echoir.degradations import TASKS, Task
from echoir.metrics import perceptual_distance, psnr, to_8bit
from echoir.runtime.descriptor import Descriptor
from echoir.samples import Sample, Samples, noisy_samples, task_samples

SIDE = 256  # of the middles that are looked at
WATCHED = (("rgb", 15.0), ("rgb", 25.0), ("rgb", 50.0), ("gray", 25.0), ("jpeg420", 25.0), ("clean", 0.0))
SHOWN_PICTURES = 4
LPIPS = ".lpips"  # behind a check's name


class Validation:
    """Figures of a network on pictures that it is not trained on.

    Args:
        pictures: clean ones, which are degraded for the task, and pairs.
        task: for denoising, clean pictures come in several forms and strengths.
        lpips: measure LPIPS besides PSNR.
        network: what they are for, where it enlarges.
    """

    def __init__(
        self, pictures: Sequence[Picture], task: Task, lpips: bool = False, network: Descriptor | None = None
    ) -> None:
        self.lpips = lpips
        pairs = tuple(picture for picture in pictures if picture.degraded is not None)
        clean = tuple(picture for picture in pictures if picture.degraded is None)
        self.checks: dict[str, Samples] = {}
        if clean and task is TASKS["denoise"]:
            self.checks = {f"{form}{sigma:g}": noisy_samples(clean, form, sigma) for form, sigma in WATCHED}
        elif clean:
            self.checks = {task.name: task_samples(clean, task)}
        if pairs:
            self.checks["pairs"] = Samples(pairs, None, "pairs")
        self.checks = {name: replace(samples, network=network) for name, samples in self.checks.items()}
        if lpips and self.checks:
            blank = np.zeros((64, 64, 3))
            perceptual_distance(blank, blank)  # a package that is missing is known before the first step

    @property
    def figures(self) -> list[str]:
        """Names of what :meth:`measure` gives: of the checks, and of the same with ``.lpips`` behind."""
        return [name + part for name in self.checks for part in ("", *([LPIPS] if self.lpips else []))]

    def require(self, figure: str) -> None:
        """Refuse a figure that is not measured.

        Raises:
            click.BadParameter: it is not.
        """
        if figure not in self.figures:
            needed = f"one of {', '.join(self.figures)}" if self.checks else "pictures to measure it on: holdout is 0"
            raise click.BadParameter(f"best: found {figure!r}, needed {needed}")

    @staticmethod
    def better(figure: str, value: float, than: float) -> bool:
        """LPIPS is a distance; PSNR is not."""
        return value < than if figure.endswith(LPIPS) else value > than

    def measure(self, network: nn.Module, device: str) -> tuple[dict[str, float], list[NDArray[np.uint8]]]:
        """The network on the middles of the pictures.

        Returns:
            Means by figure: PSNR in dB, LPIPS; and a few pictures of the last check: degraded, restored, clean side
            by side.
        """
        network.eval()
        figures: dict[str, float] = {}
        shown: list[NDArray[np.uint8]] = []
        for name, samples in self.checks.items():
            triples = [_restored(network, sample, device) for sample in samples]
            figures[name] = float(np.mean([psnr(restored, clean, 255) for _, restored, clean in triples]))
            if self.lpips:
                distances = [perceptual_distance(restored / 255, clean / 255) for _, restored, clean in triples]
                figures[name + LPIPS] = float(np.mean(distances))
            shown = [np.concatenate(triple, axis=1) for triple in triples[:SHOWN_PICTURES]]
        return figures, shown


@torch.no_grad()
def _restored(network: nn.Module, sample: Sample, device: str) -> list[NDArray[np.uint8]]:
    """The middle of a picture in 8 bits: degraded, restored, clean, all of the clean one's size."""
    scale = sample.truth.shape[0] // sample.degraded.shape[0]
    side = SIDE // scale
    top, left = (max(length - side, 0) // 2 for length in sample.degraded.shape[:2])
    degraded = sample.degraded[top : top + side, left : left + side]
    truth = sample.truth[scale * top : scale * (top + side), scale * left : scale * (left + side)]
    image = torch.from_numpy(np.ascontiguousarray(degraded.transpose(2, 0, 1)[None])).to(device)
    restored = network(image)[0].permute(1, 2, 0).cpu().numpy()
    return [to_8bit(part) for part in (degraded.repeat(scale, 0).repeat(scale, 1), restored, truth)]
