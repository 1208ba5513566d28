"""Does the deployed engine still do what the trained network did? Figures, and the gate they must pass."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoir.export.proof.figures import (
    AgainstTruth,
    AgainstWhole,
    Image,
    ImageFigures,
    SetFigures,
    SquaredError,
    Window,
    WorstTile,
    channel_shift,
    code_error,
)
from echoir.export.proof.provenance import fingerprint, picture_hash, provenance
from echoir.export.proof.results import Exhibit, Gate, ParityReport, default_gate
from echoir.export.proof.spread import Spread
from echoir.export.sources import Source
from echoir.fitting import enlargement
from echoir.metrics import to_8bit
from echoir.resize import resize
from echoir.runtime.channels import route
from echoir.runtime.contract import Session
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError, ImageError, RejectedOutputError
from echoir.runtime.manifest import Manifest
from echoir.runtime.restorer import Restorer
from echoir.runtime.tiling import tile_axis
from echoir.samples import Sample, Samples, Several

MIN_SIDE = 11  # SSIM's window
EXHIBITS = 6
EXHIBIT_SIDE = 512

OnImage = Callable[[str], None]


def measure_parity(
    manifest: Manifest,
    session: Session,
    source: Source,
    samples: Samples | Several,
    *,
    gate: Gate | None = None,
    overlap: int | None = None,
    threads: int | None = None,
    on_image: OnImage | None = None,
) -> ParityReport:
    """Restore pictures through an engine and through PyTorch, on the same tiles, and compare.

    Args:
        manifest: of the artifact.
        session: runs the artifact's model.
        source: must be the one the artifact was made from.
        samples: pictures with ground truth.
        gate: None takes the precision's.
        overlap: None takes the manifest's.
        threads: of PyTorch; give the session the same number when it is opened.
        on_image: told the name of each finished picture.

    Raises:
        ArtifactError: another source, or one whose network gives no restored image itself.
        ImageError: a picture cannot be read or is smaller than 11 pixels.
    """
    if source.record.sha256 != manifest.checkpoint.sha256:
        hint = f"the artifact was made from {manifest.checkpoint.name}, name that file with --weights"
        raise ArtifactError("checkpoint.sha256", source.record.sha256, manifest.checkpoint.sha256, hint)
    reference = source.session(io="uint8" if manifest.input.dtype == "uint8" else "float", threads=threads)
    ours, theirs = (Restorer(one, manifest, overlap=overlap) for one in (session, reference))
    images: list[ImageFigures] = []
    rejected: list[tuple[str, str]] = []
    exhibits: list[tuple[float, int, Exhibit]] = []
    for index, sample in enumerate(samples):
        try:
            exhibit = _measure_image(sample, ours, theirs, source)
        except RejectedOutputError as error:
            rejected.append((sample.name, str(error)))
        else:
            images.append(exhibit.figures)
            heapq.heappush(exhibits, (exhibit.figures.error.mse, -index, exhibit))
            if len(exhibits) > EXHIBITS:
                heapq.heappop(exhibits)
        if on_image is not None:
            on_image(sample.name)
    return ParityReport(
        manifest,
        _conditions(manifest, source, samples, ours.overlap, session, images),
        SetFigures(tuple(images)) if images else None,
        tuple(rejected),
        default_gate(manifest) if gate is None else gate,
        tuple(exhibit for _, _, exhibit in sorted(exhibits, reverse=True)),
    )


def windows(height: int, width: int, manifest: Manifest, overlap: int) -> list[Window]:
    """The tiles of an image, as far as they lie inside it, in pixels of what the network makes of it.

    Args:
        height, width: of the network's input.
    """
    network, tile = manifest.network, manifest.tile
    down, across = (
        [slice(network.scale * start, network.scale * end) for start, end in zip(axis.starts, axis.ends, strict=True)]
        for axis in (
            tile_axis(size, side, overlap, phase)
            for size, side, phase in zip((height, width), (tile.height, tile.width), network.phase, strict=True)
        )
    )
    return [(rows, columns) for rows in down for columns in across]


def seam_band(height: int, width: int, tiles: list[Window]) -> NDArray[np.bool_]:
    """[H, W], true where more than one tile contributes to a pixel."""
    count = np.zeros((height, width), np.int32)
    for window in tiles:
        count[window] += 1
    return count > 1


def _measure_image(sample: Sample, ours: Restorer, theirs: Restorer, source: Source) -> Exhibit:
    height, width, _ = sample.truth.shape
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{sample.name}: {width}x{height} pixels are too few, SSIM needs {MIN_SIDE} on each side")
    codes, network = ours.manifest.input.dtype == "uint8", ours.manifest.network
    given = to_8bit(sample.degraded) if codes else sample.degraded
    _check_size(sample, network)
    engine = as_floats(ours(given))
    try:
        pytorch = as_floats(theirs(given))
    except RejectedOutputError as error:
        raise ArtifactError(
            "checkpoint", f"a network that fails on {sample.name} ({error})", "a trained one"
        ) from error
    size = height // network.scale, width // network.scale  # of the network's input
    tiles = windows(*size, ours.fitted(*size).manifest, ours.overlap)
    whole, one_piece = None, in_one_piece(source, as_floats(given, colour=False))
    if one_piece is not None:
        one_piece = as_floats(to_8bit(one_piece)) if codes else one_piece
        whole = AgainstWhole.measure(engine, pytorch, one_piece, sample.truth, seam_band(height, width, tiles))
    shown = as_output(as_floats(given, colour=False), network)
    figures = ImageFigures(
        sample.name,
        height,
        width,
        SquaredError.between(engine, pytorch),
        code_error(engine, pytorch),
        channel_shift(engine, pytorch),
        WorstTile.among(sample.name, engine, pytorch, tiles),
        AgainstTruth.measure(shown, pytorch, engine, sample.truth),
        whole,
        sample.label,
        sample.clean,
        Spread.between(engine, pytorch),
        picture_hash(*sample.files),
    )
    window = _around(figures.worst_tile, height, width)
    before, theirs_shown, after = (to_8bit(image)[window] for image in (shown, pytorch, engine))
    enlarged = None
    if enlargement(network) > 1:
        repeated = as_output(as_floats(given, colour=False), network, _repeated)
        enlarged = to_8bit(repeated)[window], to_8bit(sample.truth)[window]
    return Exhibit(figures, window, before, theirs_shown, after, (engine - pytorch)[window], enlarged)


def _around(tile: WorstTile, height: int, width: int) -> Window:
    """A window of at most 512 x 512 pixels that is centred on a tile as far as the image allows."""

    def axis(start: int, length: int, size: int) -> slice:
        side = min(EXHIBIT_SIDE, size)
        first = min(max(start + length // 2 - side // 2, 0), size - side)
        return slice(first, first + side)

    return axis(tile.top, tile.height, height), axis(tile.left, tile.width, width)


def in_one_piece(source: Source, image: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """A picture, as :class:`~echoir.runtime.Restorer` takes it, through the reference in one piece; [H, W, 3].

    None where that needs too much memory, or the network takes tiles alone.
    """
    network = source.descriptor
    way = route(network, 1 if image.ndim == 2 else image.shape[2])
    packed = way.packed(image)
    packed = packed[..., None] if packed.ndim == 2 else packed
    if way.given > packed.shape[2]:
        packed = np.repeat(packed, way.given, axis=2)
    pieces = []
    for part in np.split(packed, way.passes, axis=2) if way.passes > 1 else [packed]:
        piece = source.whole(np.ascontiguousarray(part))
        if piece is None:
            return None
        pieces.append(piece)
    made = np.concatenate(pieces, axis=2)
    if way.result < made.shape[2]:
        made = made.mean(axis=2, keepdims=True)
    return np.repeat(made, 3, axis=2) if made.shape[2] == 1 else made


def as_output(
    image: NDArray[np.float32],
    network: Descriptor,
    enlarge: Callable[[NDArray[np.float32], int], NDArray[np.float32]] = resize,
) -> Image:
    """What went in, of the size and with the channels of what comes out: the figure that a network has to beat."""
    if network.input == "RGB pair":
        image = image[..., :3]
    factor = enlargement(network)
    if factor > 1:
        image = enlarge(image, factor)
    if network.output == "gray" and image.ndim == 3 and network.input != "gray":
        image = image.mean(axis=2)
    return as_floats(image)


def _repeated(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Every pixel as a square: what a small picture holds, and no more."""
    return image.repeat(factor, 0).repeat(factor, 1)


def _check_size(sample: Sample, network: Descriptor) -> None:
    """Pictures that were opened for another network would go through, and fail where they are compared."""
    factor = enlargement(network)
    height, width = sample.degraded.shape[:2]
    if sample.truth.shape[:2] != (factor * height, factor * width):
        found, needed = (f"{size[1]} x {size[0]}" for size in (sample.truth.shape, (factor * height, factor * width)))
        raise ImageError(f"{sample.name}: its truth is {found}, and {network.name} makes {needed} of it")


def as_floats(image: NDArray[Any], colour: bool = True) -> Image:
    """Codes as floats where 1 is white; gray in three channels, unless it may stay as it is."""
    image = image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image
    if not colour:
        return image
    image = image[..., None] if image.ndim == 2 else image
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _conditions(
    manifest: Manifest,
    source: Source,
    samples: Samples | Several,
    overlap: int,
    session: Session,
    images: list[ImageFigures],
) -> dict[str, Any]:
    import torch

    measured = provenance(session)
    measured["versions"]["torch"] = str(torch.__version__)
    tile = manifest.tile
    # What "PyTorch" stands for in the figures, where it is something else.
    reference = {} if source.reference == "PyTorch" else {"reference": source.reference}
    return {
        **reference,
        "degradation": samples.describe(),
        "pictures_sha256": fingerprint({image.sha256 for image in images}),
        "tile": {"height": tile.height, "width": tile.width, "overlap": overlap}
        | ({} if tile.most is None else {"most": tile.most}),
        "io": manifest.input.dtype,
        **measured,
    }
