"""PSNR and SSIM as the restoration field computes them, of a checkpoint or of an artifact."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from echoir.degradations import TASKS
from echoir.metrics import luma, psnr, ssim, to_8bit
from echoir.networks.echoir import EchoIR
from echoir.samples import Sample

Restore = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Score:
    """One picture: PSNR in dB and SSIM, of the degraded input and of the restored output."""

    picture: str
    input_psnr: float
    psnr: float
    input_ssim: float
    ssim: float


def evaluate(restore: Restore, samples: Iterable[Sample], task: str) -> Iterator[Score]:
    """Score every sample; both images are clipped and rounded to 8 bits before they are compared.

    Args:
        restore: float32 [H, W, 3] in, the same out; a :class:`echoir.runtime.Restorer`, or
            :func:`restore_whole` with its network bound.
        task: decides between RGB and the Y channel.
    """
    for sample in samples:
        degraded, restored, truth = (
            to_8bit(image) / 255 for image in (sample.degraded, restore(sample.degraded), sample.truth)
        )
        if task in TASKS and TASKS[task].luma:
            degraded, restored, truth = (luma(image) for image in (degraded, restored, truth))
        yield Score(
            sample.name,
            psnr(degraded, truth),
            psnr(restored, truth),
            ssim(degraded, truth),
            ssim(restored, truth),
        )


def mean(scores: list[Score]) -> Score:
    """The mean over pictures, as the literature reports it."""
    figures = {
        field.name: float(np.mean([getattr(score, field.name) for score in scores])) for field in fields(Score)[1:]
    }
    return Score("mean", **figures)


def to_csv(scores: list[Score]) -> str:
    """A header line and a line per picture."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in scores)
    return text.getvalue()


def restore_whole(network: EchoIR, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network on an image in one piece: what tiles are measured against.

    Args:
        image: float32 [H, W, 3] RGB, nominally in [0, 1].

    Returns:
        float32 [H, W, 3], not clipped.
    """
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        return np.ascontiguousarray(np.asarray(network(batch))[0].transpose(1, 2, 0))
