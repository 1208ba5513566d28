"""Measuring whether tiles show, and how much they must share: against the picture in one piece, through the reference.

Engine and reference restore the same tiles, so parity sees neither an overlap that is too small nor a wrong phase or
blend. Here pictures are cut to 2 x 2 tiles that share exactly what they are asked to, and not a pixel more; in a
picture of any other size tiles share more than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoir.export.proof.figures import Image, SquaredError
from echoir.export.proof.parity import as_floats, in_one_piece
from echoir.export.proof.seam import ADVICE, LEAST, Seam
from echoir.export.sources import Source
from echoir.fitting import mosaic
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError, BackendError, RejectedOutputError
from echoir.runtime.manifest import FLOAT_NCHW, Manifest, Model, Precision, TensorSpec, Tile
from echoir.runtime.restorer import Restorer
from echoir.samples import Samples, Several, filled

PICTURES = 2  # that are cut
BAND = 8  # pixels on either side of the line along which tiles meet, at least


def measure_seam(
    source: Source,
    samples: Samples | Several,
    tile: Tile,
    *,
    least: float | None = None,
    threads: int | None = None,
    advice: str = ADVICE,
) -> Seam | None:
    """Restore cuts of pictures in tiles and in one piece, and compare where the tiles meet.

    Args:
        samples: pictures as the network takes them; the first are cut, and small ones filled up by reflection.
        tile: to cut and blend with.
        least: the gate in dB, for any network; None takes 55, for one that is local.
        threads: of PyTorch.
        advice: what to do where the gate is not passed.

    Returns:
        None where no picture goes through the network in one piece: too large, or it takes tiles alone.

    Raises:
        ArtifactError: the network gives no pictures.
        ImageError: a picture cannot be read.
    """
    network = source.descriptor
    manifest = reference_manifest(source, tile)
    sides = tile.height, tile.width
    shared = [shared_of(side, tile.overlap, phase) for side, phase in zip(sides, network.phase, strict=True)]
    height, width = (2 * side - both for side, both in zip(sides, shared, strict=True))
    # The outer quarters are left out: there a reference that wants larger sides is filled up otherwise than a tile.
    inner = tuple(
        slice(network.scale * (side // 4), network.scale * (size - side // 4))
        for side, size in zip(sides, (height, width), strict=True)
    )
    near = [
        np.abs(np.arange(network.scale * size) + 0.5 - network.scale * size / 2)
        < network.scale * max(both / 2, min(BAND, side / 4))
        for side, size, both in zip(sides, (height, width), shared, strict=True)
    ]
    meets = (near[0][:, None] | near[1])[inner]
    band = elsewhere = SquaredError()
    count = 0
    with source.session(threads=threads) as session:
        restorer = Restorer(session, manifest)
        for picture in _cut(samples, network, height, width):
            whole = in_one_piece(source, picture)
            if whole is None:
                return None
            tiled = _restored(restorer, picture)[inner]
            band += SquaredError.between(tiled, whole[inner], meets)
            elsewhere += SquaredError.between(tiled, whole[inner], ~meets)
            count += 1
    strict = network.local or least is not None
    return Seam(tile, count, band, elsewhere, LEAST if least is None else least, strict, advice)


def find_overlap(
    source: Source,
    samples: Samples | Several,
    tile: Tile,
    *,
    least: float | None = None,
    threads: int | None = None,
) -> Tile | float:
    """The tile with the least overlap that keeps it within a budget of the whole picture.

    A tile out of the middle of a picture is compared with the picture, ring by ring from its edge. The margin is where
    the last ring lies that is further off than the budget; two margins are the overlap, since of two tiles that meet
    each is needed up to there. Both are rounded up to what phase and tile allow.

    Args:
        samples, least, threads: as for :func:`measure_seam`; ``least`` is the budget.
        tile: its sides and batch.

    Returns:
        The tile, or how near it is to the whole picture at best, in dB, where not even half of it as overlap is enough:
        of a network that looks at its whole tile.

    Raises:
        ArtifactError: the network gives no pictures.
        BackendError: no picture goes through the network in one piece.
        ImageError: a picture cannot be read.
    """
    least = LEAST if least is None else least
    network, sides = source.descriptor, (tile.height, tile.width)
    rings = _rings(source, samples, tile, threads)
    most = min(sides) // 4
    margin = max((index + 1 for index, ring in enumerate(rings) if ring.psnr < least), default=0)
    inside = sum(rings[most:], SquaredError())
    while margin <= most:
        need = max(2 * margin, network.overlap)
        overlap = min(shared_of(side, need, phase) for side, phase in zip(sides, network.phase, strict=True))
        found = Tile(*sides, overlap, tile.batch, margin=margin)
        seam = measure_seam(source, samples, found, least=least, threads=threads)
        if seam is None or not seam.failures:  # too large in one piece for two tiles: the rings have to do
            return found
        margin += 1  # other places of the pictures than the rings were measured on
    return inside.psnr


def shared_of(side: int, overlap: int, phase: int) -> int:
    """Pixels that two tiles share which lie as far apart as an overlap and a phase allow."""
    return side - (side - overlap) // phase * phase


def reference_manifest(source: Source, tile: Tile) -> Manifest:
    """What a restorer needs to know of a source's own session; it is never written."""
    network = source.descriptor
    floats: dict[str, Any] = FLOAT_NCHW
    return Manifest(
        name="reference",
        network=network,
        checkpoint=source.record,
        model=Model("onnxruntime"),
        precision=Precision("fp32"),
        tile=tile,
        input=TensorSpec("input", **floats, colour=network.input),
        output=TensorSpec("output", **floats, colour=network.output),
        versions={},
    )


def why_not(source: Source) -> str:
    """Why no picture goes through a source in one piece."""
    network = source.descriptor
    if network.multiple == network.tile:
        return f"{network.name} takes {network.tile[0]} x {network.tile[1]} pixels alone"
    return "two tiles of this size are too large to go through PyTorch in one piece"


def _rings(source: Source, samples: Samples | Several, tile: Tile, threads: int | None) -> list[SquaredError]:
    """The differences between a tile and the picture it is cut from, by distance from the tile's edge in pixels."""
    network, sides = source.descriptor, (tile.height, tile.width)
    starts = [-(-(side // 2) // phase) * phase for side, phase in zip(sides, network.phase, strict=True)]
    height, width = (
        -(-(start + side + side // 2) // multiple) * multiple
        for start, side, multiple in zip(starts, sides, network.multiple, strict=True)
    )
    cell, scale = mosaic(network), network.scale
    given, made = (
        tuple(slice(times * start, times * (start + side)) for start, side in zip(starts, sides, strict=True))
        for times in (cell, scale)
    )
    down, across = (np.minimum(np.arange(scale * side), np.arange(scale * side)[::-1]) // scale for side in sides)
    distance = np.minimum(down[:, None], across)
    count = np.bincount(distance.ravel())
    total, taken = np.zeros(len(count)), 0
    with source.session(threads=threads) as session:
        restorer = Restorer(session, reference_manifest(source, tile))
        for picture in _cut(samples, network, height, width):
            whole = in_one_piece(source, picture)
            if whole is None:
                raise BackendError(
                    f"--overlap auto compares tiles with whole pictures: {why_not(source)}; give a number"
                )
            difference: Image = _restored(restorer, picture[given]) - whole[made]
            total += np.bincount(distance.ravel(), np.square(difference.astype(np.float64)).sum(axis=2).ravel())
            taken += 1
    values = 3 * taken * count
    return [SquaredError(float(one), int(many)) for one, many in zip(total, values, strict=True)]


def _restored(restorer: Restorer, picture: NDArray[np.float32]) -> Image:
    try:
        return as_floats(restorer(picture))
    except RejectedOutputError as error:
        raise ArtifactError("checkpoint", f"a network that fails on a picture ({error})", "a trained one") from error


def _cut(samples: Samples | Several, network: Descriptor, height: int, width: int) -> Iterator[NDArray[np.float32]]:
    """The middle of the first pictures, as the network takes so many of its pixels."""
    cell = mosaic(network)
    for sample in islice(samples, PICTURES):
        yield filled(sample.degraded, cell * height, cell * width)
