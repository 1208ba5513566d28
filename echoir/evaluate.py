"""PSNR and SSIM as the restoration field computes them, of a checkpoint or of an artifact."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from echoir.degradations import TASKS, Task
from echoir.metrics import luma, perceptual_distance, psnr, ssim, to_8bit
from echoir.resize import resize
from echoir.samples import Sample

Restore = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Score:
    """One picture: PSNR in dB, SSIM and LPIPS (None if not asked for), of the degraded input and of the output."""

    picture: str
    input_psnr: float
    psnr: float
    input_ssim: float
    ssim: float
    input_lpips: float | None = None
    lpips: float | None = None


def evaluate(restore: Restore, samples: Iterable[Sample], task: str | Task, lpips: bool = False) -> Iterator[Score]:
    """Score every sample; both images are clipped and rounded to 8 bits before they are compared.

    The input of a network that enlarges is enlarged by bicubic interpolation for its figures.

    Args:
        restore: float32 [H, W, 3] in, the same out, or larger; a :class:`echoir.runtime.Restorer`, or
            :func:`restore_whole` with its network bound.
        task: decides between RGB and the Y channel; a name that is not in ``TASKS`` means RGB.
        lpips: measure LPIPS, too.

    Raises:
        BackendError: LPIPS is asked for, and its package is not installed.
    """
    known = TASKS.get(task) if isinstance(task, str) else task
    for sample in samples:
        factor = len(sample.truth) // len(sample.degraded)
        given = resize(sample.degraded, factor) if factor > 1 else sample.degraded
        degraded, restored, truth = (to_8bit(image) / 255 for image in (given, restore(sample.degraded), sample.truth))
        distances = [perceptual_distance(image, truth) for image in (degraded, restored)] if lpips else []
        if known is not None and known.luma:
            degraded, restored, truth = (luma(image) for image in (degraded, restored, truth))
        yield Score(
            sample.name,
            psnr(degraded, truth),
            psnr(restored, truth),
            ssim(degraded, truth),
            ssim(restored, truth),
            *distances,
        )


def mean(scores: list[Score]) -> Score:
    """The mean over pictures, as the literature reports it."""
    names = _figures(scores)
    return Score("mean", **{name: float(np.mean([getattr(score, name) for score in scores])) for name in names})


def to_csv(scores: list[Score]) -> str:
    """A header line and a line per picture."""
    text = io.StringIO()
    columns = ["picture", *_figures(scores)]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in scores)
    return text.getvalue()


def to_json(scores: list[Score]) -> list[dict[str, str | float | None]]:
    """The same as JSON values; null where nothing differs, or for what was not measured."""
    return [{name: _finite(value) for name, value in asdict(score).items()} for score in scores]


def _finite(value: str | float | None) -> str | float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(scores: list[Score]) -> list[str]:
    """The figures that were measured."""
    names = [field.name for field in fields(Score)[1:]]
    return [name for name in names if all(getattr(score, name) is not None for score in scores)]


def restore_whole(network: nn.Module, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network on an image in one piece: what tiles are measured against.

    Args:
        image: float32 [H, W, 3] RGB, nominally in [0, 1].

    Returns:
        float32 [H, W, 3], not clipped.
    """
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        return np.ascontiguousarray(np.asarray(network(batch))[0].transpose(1, 2, 0))
