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
from echoir.metrics import to_8bit
from echoir.runtime.contract import Session
from echoir.runtime.errors import ArtifactError, ImageError, RejectedOutputError
from echoir.runtime.manifest import Manifest
from echoir.runtime.restorer import Restorer
from echoir.runtime.tiling import tile_starts
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
        _conditions(manifest, samples, ours.overlap, session, images),
        SetFigures(tuple(images)) if images else None,
        tuple(rejected),
        default_gate(manifest) if gate is None else gate,
        tuple(exhibit for _, _, exhibit in sorted(exhibits, reverse=True)),
    )


def windows(height: int, width: int, manifest: Manifest, overlap: int) -> list[Window]:
    """The tiles of an image, as far as they lie inside it."""
    tile = manifest.tile
    return [
        (slice(top, min(top + tile.height, height)), slice(left, min(left + tile.width, width)))
        for top in tile_starts(height, tile.height, overlap)
        for left in tile_starts(width, tile.width, overlap)
    ]


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
    codes = ours.manifest.input.dtype == "uint8"
    given = to_8bit(sample.degraded) if codes else sample.degraded
    engine = _floats(ours(given))
    try:
        pytorch = _floats(theirs(given))
    except RejectedOutputError as error:
        raise ArtifactError(
            "checkpoint", f"a network that fails on {sample.name} ({error})", "a trained one"
        ) from error
    tiles = windows(height, width, ours.fitted(height, width).manifest, ours.overlap)
    whole, one_piece = None, source.whole(_floats(given))
    if one_piece is not None:
        one_piece = _floats(to_8bit(one_piece)) if codes else one_piece
        whole = AgainstWhole.measure(engine, pytorch, one_piece, sample.truth, seam_band(height, width, tiles))
    figures = ImageFigures(
        sample.name,
        height,
        width,
        SquaredError.between(engine, pytorch),
        code_error(engine, pytorch),
        channel_shift(engine, pytorch),
        WorstTile.among(sample.name, engine, pytorch, tiles),
        AgainstTruth.measure(_floats(given), pytorch, engine, sample.truth),
        whole,
        sample.label,
        sample.clean,
        Spread.between(engine, pytorch),
        picture_hash(*sample.files),
    )
    window = _around(figures.worst_tile, height, width)
    before, theirs_shown, after = (to_8bit(image)[window] for image in (_floats(given), pytorch, engine))
    return Exhibit(figures, window, before, theirs_shown, after, (engine - pytorch)[window])


def _around(tile: WorstTile, height: int, width: int) -> Window:
    """A window of at most 512 x 512 pixels that is centred on a tile as far as the image allows."""

    def axis(start: int, length: int, size: int) -> slice:
        side = min(EXHIBIT_SIDE, size)
        first = min(max(start + length // 2 - side // 2, 0), size - side)
        return slice(first, first + side)

    return axis(tile.top, tile.height, height), axis(tile.left, tile.width, width)


def _floats(image: NDArray[Any]) -> Image:
    return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image


def _conditions(
    manifest: Manifest, samples: Samples | Several, overlap: int, session: Session, images: list[ImageFigures]
) -> dict[str, Any]:
    import torch

    measured = provenance(session)
    measured["versions"]["torch"] = str(torch.__version__)
    tile = manifest.tile
    return {
        "degradation": samples.describe(),
        "pictures_sha256": fingerprint({image.sha256 for image in images}),
        "tile": {"height": tile.height, "width": tile.width, "overlap": overlap}
        | ({} if tile.most is None else {"most": tile.most}),
        "io": manifest.input.dtype,
        **measured,
    }
