"""Training crops, made where the network trains: pictures, crops, turns and degradations on one device.

Every chunk of batches is a function of (seed, set, process, first step), so a resumed run sees the same crops.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from echoir.data import Picture, read_rgb
from echoir.degradations import Draw, Task
from echoir.recipe import Stage
from echoir.resize import axis_weights
from echoir.runtime.errors import ImageError
from echoir.runtime.images import picture_size
from echoir.runtime.machine import all_cores

CHUNK = 512  # crops that are degraded together: many kinds of noise, few of each in a batch
LAYERED = 0.75  # share of the clean crops that receive a real layer, where there are any
_DECODERS = min(all_cores(), 16)  # each holds a picture

Batch = tuple[Tensor, Tensor]
"""(degraded, clean): float32 [N, 3, P, P] and [N, 3, scale * P, scale * P]."""


class Store:
    """Decoded pictures in one piece of memory, from which crops of many are cut at once.

    They lie on the device if they take less than half of what is free there, else in the host's memory,
    else in a file that is mapped into it.

    Args:
        paths: of pictures.
        device: where crops are wanted.
        scratch: where that file goes, if it is needed.

    Raises:
        ImageError: a file is not a readable picture.
    """

    def __init__(self, paths: Sequence[Path], device: torch.device, scratch: Path) -> None:
        sizes = torch.tensor([picture_size(path, upright=True) for path in paths])  # (height, width)
        pixels = sizes.prod(1)
        starts = torch.cumsum(pixels, 0) - pixels
        total = int(pixels.sum())
        memory = _memory(total, device, scratch)

        rows = memory.numpy()

        def decode(index: int) -> None:
            rows[int(starts[index]) :][: int(pixels[index])] = read_rgb(paths[index]).reshape(-1, 3)

        with ThreadPoolExecutor(_DECODERS) as pool:
            for _ in pool.map(decode, range(len(paths))):
                pass
        self.device = device
        self.pixels = memory.to(device) if 3 * total < _free(device) / 2 else memory
        self.starts, self.sizes = starts.to(self.pixels.device), sizes.to(self.pixels.device)
        # Large pictures show more, but not in proportion to their pixels.
        self.weights = pixels.double().sqrt()

    def windows(self, which: Tensor, side: int, margin: int, draw: Draw, turns: bool) -> tuple[Tensor, Tensor]:
        """Random windows: where their pixels lie, and those pixels.

        Args:
            which: pictures, int64 [N].
            side: of the crops.
            margin: around them; what lies outside a picture is reflected.
            turns: whether they may be turned by 90 degrees; all may be mirrored.

        Returns:
            ``(index, crops)``: int64 [N, S, S] into :attr:`pixels`, for the same windows of another picture
            of the same size at another start; float32 [N, 3, S, S] in [0, 1], S = side + 2 margin.
        """
        which = which.to(self.pixels.device)
        sizes = self.sizes[which]
        n, full = len(which), side + 2 * margin
        room = (sizes - side).clamp_min(0) + 1
        first = (draw.uniform(0, 1, n, 2).to(sizes.device) * room).long() - margin
        i, j = torch.meshgrid(*(torch.arange(full, device=sizes.device),) * 2, indexing="ij")
        mirrored, turn = (draw.integers(high, n, 1, 1).to(sizes.device) for high in (2, 4 if turns else 1))
        j = torch.where(mirrored == 1, full - 1 - j, j)
        i = i.expand_as(j)
        rows = torch.where(turn == 0, i, torch.where(turn == 1, j, full - 1 - torch.where(turn == 2, i, j)))
        columns = torch.where(
            turn == 0, j, torch.where(turn == 1, full - 1 - i, torch.where(turn == 2, full - 1 - j, i))
        )
        y = _reflected(rows + first[:, :1, None], sizes[:, :1, None])
        x = _reflected(columns + first[:, 1:, None], sizes[:, 1:, None])
        index = y * sizes[:, 1:, None] + x
        return index, self.cut(which, index)

    def cut(self, which: Tensor, index: Tensor) -> Tensor:
        """The pixels of windows; see :meth:`windows`."""
        which = which.to(self.pixels.device)
        crops = self.pixels[self.starts[which][:, None, None] + index]
        return crops.to(self.device).permute(0, 3, 1, 2).float() / 255


class Crops:
    """Random crops, mirrored and turned, with their degraded version, in batches.

    Args:
        pictures: clean ones are degraded as the task does; pairs are taken as they are. If the task knows
            layers and there are pairs, most clean pictures receive a pair's difference instead (a real layer
            of rain on another photograph).
        seed: of everything that is drawn.
        device: where crops are made.
        scratch: a folder for what does not fit in memory.
        pairs: share of the crops that come from pairs, where there are both kinds.
        scale: of the network. Where it enlarges, clean crops are that much larger, and reduced as the field does
            (:mod:`echoir.resize`); pairs are then no use.

    Raises:
        ImageError: a picture cannot be read, or the two of a pair differ in size.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        task: Task,
        seed: Sequence[int],
        device: torch.device,
        scratch: Path,
        pairs: float = 0.5,
        scale: int = 1,
    ) -> None:
        self.task, self.seed, self.device, self.scale = task, tuple(seed), device, scale
        clean = [picture.clean for picture in pictures if picture.degraded is None]
        both = [picture for picture in pictures if picture.degraded is not None]
        self.clean, self.pairs = len(clean), len(both)
        self.pair_share = (pairs if clean else 1.0) if both else 0.0
        degraded = [picture.degraded for picture in both if picture.degraded is not None]
        self.store = Store([*clean, *degraded, *(picture.clean for picture in both)], device, scratch)
        sizes = self.store.sizes[len(clean) :]
        for picture, one, other in zip(both, sizes[: len(both)], sizes[len(both) :], strict=True):
            if not torch.equal(one, other):
                raise ImageError(f"{picture.degraded} and {picture.clean} differ in size; a pair must be of one size")

    def batches(self, stage: Stage, step: int, stop: int, stream: int = 0) -> Iterator[Batch]:
        """The batches of steps ``step`` to ``stop``, degraded together.

        Args:
            stage: size and number of the crops.
            stream: of several that are drawn apart.
        """
        made = self.make((stop - step) * stage.batch, stage.patch, (stream, step))
        yield from zip(*(tensor.split(stage.batch) for tensor in made), strict=True)

    def make(self, count: int, patch: int, number: Sequence[int]) -> Batch:
        """``count`` crops in random order, drawn from the seed and ``number``."""
        draw = Draw((*self.seed, *number), self.device)
        layers = LAYERED if self.task.layered and self.pairs else 0.0
        single = 1 - self.pair_share
        of_pairs, layered, made = draw.parts(count, [self.pair_share, single * layers, single * (1 - layers)])
        parts: list[Batch] = []
        if of_pairs:
            parts.append(self._pairs(of_pairs, patch, draw))
        if layered:
            assert self.task.layered is not None
            degraded, truth = self._pairs(layered, patch, draw)
            parts.append(self.task.layered(self._clean(layered, patch, 0, draw), degraded - truth, draw))
        if made:
            margin, scale = self.task.margin, self.scale
            small, large = (slice(m, m + side) for m, side in ((margin // scale, patch), (margin, scale * patch)))
            degraded, truth = self.task.degrade(self._clean(made, scale * patch, margin, draw), draw)
            degraded = reduced(degraded, scale) if scale > 1 else degraded
            parts.append((degraded[..., small, small], truth[..., large, large]))
        order = torch.randperm(count, generator=draw.generator, device=self.device)
        degraded, truth = (torch.cat(part)[order] for part in zip(*parts, strict=True))
        return degraded, truth

    def _clean(self, count: int, patch: int, margin: int, draw: Draw) -> Tensor:
        which = self._choose(count, 0, self.clean, draw)
        return self.store.windows(which, patch, margin, draw, self.task.turns)[1]

    def _pairs(self, count: int, patch: int, draw: Draw) -> Batch:
        which = self._choose(count, self.clean, self.pairs, draw)
        index, degraded = self.store.windows(which, patch, 0, draw, self.task.turns)
        return degraded, self.store.cut(which + self.pairs, index)

    def _choose(self, count: int, first: int, among: int, draw: Draw) -> Tensor:
        weights = self.store.weights[first : first + among].numpy()
        return torch.from_numpy(first + draw.host.choice(among, count, p=weights / weights.sum()))


def reduced(image: Tensor, factor: int) -> Tensor:
    """Pictures [N, 3, H, W] as :func:`echoir.resize.resize` reduces them, in 8-bit codes: [N, 3, H / f, W / f]."""
    down, across = (
        torch.from_numpy(axis_weights(side, Fraction(1, factor))).to(image.device, torch.float32)
        for side in image.shape[-2:]
    )
    return ((down @ image @ across.mT).clamp(0, 1) * 255).round() / 255


def _reflected(places: Tensor, sizes: Tensor) -> Tensor:
    """Places on an axis, with those outside [0, size) bounced back in without repeating the border."""
    period = (2 * (sizes - 1)).clamp_min(1)
    places = places.remainder(period)
    return torch.minimum(places, period - places)


def _free(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory(pixels: int, device: torch.device, scratch: Path) -> Tensor:
    """Room for decoded pictures on the host: uint8 [pixels, 3]."""
    if 3 * pixels < _free(torch.device("cpu")) / 2:
        return torch.empty(pixels, 3, dtype=torch.uint8)
    path = scratch / "pictures.raw"
    return torch.from_file(str(path), shared=True, size=3 * pixels, dtype=torch.uint8).view(pixels, 3)
