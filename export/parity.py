"""Does the deployed engine still do what the trained network did? Figures, and the gate they must pass."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoir import __version__
from echoir.checkpoint import Checkpoint
from echoir.evaluate import restore_whole
from echoir.export.figures import (
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
from echoir.export.reference import PyTorchSession
from echoir.metrics import to_8bit
from echoir.networks.echoir import EchoIR
from echoir.runtime.contract import Session
from echoir.runtime.errors import ArtifactError, ImageError, RejectedOutputError
from echoir.runtime.files import atomic_write
from echoir.runtime.manifest import Manifest
from echoir.runtime.restorer import Restorer
from echoir.runtime.tiling import tile_starts
from echoir.samples import Sample, Samples

FORMAT = 1
MIN_SIDE = 11  # SSIM's window
# Pixels times the network's width that one pass of a whole image may take: 4 megapixels for tiny,
# 1.3 for base, a few GB of activations in either case.
WHOLE_BUDGET = 4_000_000 * 16
EXHIBITS = 6
EXHIBIT_SIDE = 512

OnImage = Callable[[str], None]


@dataclass(frozen=True)
class Gate:
    """What an artifact must reach.

    Attributes:
        min_psnr: engine against PyTorch, in dB, for the worst image of the set; None asks nothing.
        max_drop: the largest change of the mean PSNR against ground truth, in dB, either way.
    """

    min_psnr: float | None
    max_drop: float | None

    def failures(self, figures: SetFigures) -> list[str]:
        """Why the figures do not pass, one sentence each; empty if they do."""
        reasons = []
        worst, delta = figures.worst, figures.truth.delta_psnr
        if self.min_psnr is not None and not worst.error.psnr >= self.min_psnr:
            reasons.append(
                f"engine against PyTorch is {worst.error.psnr:.2f} dB on {worst.name}, the gate is {self.min_psnr:g} dB"
            )
        if self.max_drop is not None and not abs(delta) <= self.max_drop:
            reasons.append(f"PSNR against ground truth changes by {delta:+.4f} dB, the gate is {self.max_drop:g} dB")
        return reasons


# Engine against PyTorch in float32, for an engine that gives floats.
GATES = {
    "fp32": Gate(min_psnr=90.0, max_drop=None),
    "fp16": Gate(min_psnr=55.0, max_drop=0.02),
    "int8": Gate(min_psnr=None, max_drop=0.10),
}


def default_gate(manifest: Manifest, min_psnr: float | None = None, max_drop: float | None = None) -> Gate:
    """The gate of a precision, translated for models that give 8-bit codes; limits that are given replace its own."""
    gate = GATES[manifest.precision.name]
    if manifest.output.dtype == "uint8" and gate.min_psnr is not None:
        gate = replace(gate, min_psnr=round(psnr_of_codes(gate.min_psnr), 1))
    return Gate(gate.min_psnr if min_psnr is None else min_psnr, gate.max_drop if max_drop is None else max_drop)


def psnr_of_codes(psnr: float) -> float:
    """PSNR of two images after each was rounded to 8 bits, from that before rounding.

    For an error e (in codes) much smaller than one, values spread evenly between two codes round
    apart with probability \\|e\\|, and then differ by one code: the squared error is the mean of
    \\|e\\|, for a Gaussian e of standard deviation s it is s * sqrt(2 / pi). Hence 90 dB becomes 70.0
    and 55 dB becomes 52.5. (Against values that are not rounded, rounding noise alone, 1/12 of a
    squared code, would cap any engine at 58.9 dB.)
    """
    deviation = 255 * 10 ** (-psnr / 20)
    return 10 * math.log10(255**2 / (deviation * math.sqrt(2 / math.pi)))


@dataclass(frozen=True)
class Exhibit:
    """What the report shows of an image: its worst tile's surroundings, at most 512 pixels wide and high.

    Attributes:
        window: rows and columns of the image.
        before, after: uint8 [h, w, 3]; the degraded input and the engine's output.
        difference: float32 [h, w, 3], engine minus PyTorch.
    """

    figures: ImageFigures
    window: Window
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    difference: Image


@dataclass(frozen=True)
class ParityReport:
    """Everything that was measured of one artifact.

    Attributes:
        manifest: of the artifact.
        conditions: pictures, degradation, tile, overlap, versions.
        figures: of all images that gave pixels; None if none did.
        rejected: (image, reason) where the engine gave NaN, infinite or constant pixels.
        gate: what was asked.
        exhibits: the worst images, worst first.
        int8: the search behind an int8 artifact, as :attr:`echoir.export.quantized.Int8.sensitivity`; None
            where it is not known.
    """

    manifest: Manifest
    conditions: dict[str, Any]
    figures: SetFigures | None
    rejected: tuple[tuple[str, str], ...]
    gate: Gate
    exhibits: tuple[Exhibit, ...]
    int8: dict[str, Any] | None = None

    @property
    def failures(self) -> list[str]:
        """Why the gate is not passed; empty if it is."""
        reasons = [f"{name}: {reason}" for name, reason in self.rejected]
        return reasons + (self.gate.failures(self.figures) if self.figures else [])

    @property
    def passed(self) -> bool:
        return not self.failures

    def summary(self) -> dict[str, Any]:
        """The figures of the whole set and the gate: what the manifest carries."""
        return {
            "conditions": self.conditions,
            "figures": None if self.figures is None else self.figures.to_json(),
            "gate": {**asdict(self.gate), "passed": self.passed, "failures": self.failures},
        }

    def to_json(self) -> dict[str, Any]:
        """The content of ``parity.json``."""
        manifest = self.manifest
        return {
            "format": FORMAT,
            "artifact": {
                "name": manifest.name,
                "file": manifest.model.file,
                "sha256": manifest.model.sha256,
                "backend": manifest.model.backend,
                "precision": manifest.precision.name,
            },
            "checkpoint": asdict(manifest.checkpoint),
            **self.summary(),
            "images": [image.to_json() for image in self.figures.images] if self.figures else [],
            "rejected": [{"name": name, "reason": reason} for name, reason in self.rejected],
        }

    def write(self, folder: Path) -> None:
        """Write ``parity.json`` and ``report.html`` into an existing folder; ``sensitivity.json`` too, if there is any.

        Raises:
            ImageError: a file cannot be written.
        """
        from echoir.export.report import render

        texts = {"parity.json": _json(self.to_json()), "report.html": render(self)}
        if self.int8 is not None:
            texts["sensitivity.json"] = _json(self.int8)
        for name, text in texts.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def measure_parity(
    manifest: Manifest,
    session: Session,
    checkpoint: Checkpoint,
    samples: Samples,
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
        checkpoint: must be the one the artifact was made from.
        samples: pictures with ground truth.
        gate: None takes the precision's.
        overlap: None takes the manifest's.
        threads: of PyTorch; give the session the same number when it is opened.
        on_image: told the name of each finished picture.

    Raises:
        ArtifactError: another checkpoint, or one whose network gives no restored image itself.
        ImageError: a picture cannot be read or is smaller than 11 pixels.
    """
    if checkpoint.sha256 != manifest.checkpoint.sha256:
        hint = f"the artifact was made from {manifest.checkpoint.name}, name that file with --reference"
        raise ArtifactError("checkpoint.sha256", checkpoint.sha256, manifest.checkpoint.sha256, hint)
    reference = PyTorchSession(
        checkpoint.network, io="uint8" if manifest.input.dtype == "uint8" else "float", threads=threads
    )
    ours, theirs = (Restorer(one, manifest, overlap=overlap) for one in (session, reference))
    images: list[ImageFigures] = []
    rejected: list[tuple[str, str]] = []
    exhibits: list[tuple[float, int, Exhibit]] = []
    for index, sample in enumerate(samples):
        try:
            exhibit = _measure_image(sample, ours, theirs, checkpoint.network)
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
        _conditions(manifest, samples, ours.overlap),
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


def _measure_image(sample: Sample, ours: Restorer, theirs: Restorer, network: EchoIR) -> Exhibit:
    height, width, _ = sample.truth.shape
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{sample.name}: {width}x{height} pixels are too few, SSIM needs {MIN_SIDE} on each side")
    manifest, codes = ours.manifest, ours.manifest.input.dtype == "uint8"
    given = to_8bit(sample.degraded) if codes else sample.degraded
    engine = _floats(ours(given))
    try:
        pytorch = _floats(theirs(given))
    except RejectedOutputError as error:
        raise ArtifactError(
            "checkpoint", f"a network that fails on {sample.name} ({error})", "a trained one"
        ) from error
    tiles = windows(height, width, manifest, ours.overlap)
    whole = None
    if height * width * network.config.width <= WHOLE_BUDGET:
        one_piece = restore_whole(network, _floats(given))
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
    )
    window = _around(figures.worst_tile, height, width)
    before, after = to_8bit(_floats(given))[window], to_8bit(engine)[window]
    return Exhibit(figures, window, before, after, (engine - pytorch)[window])


def _around(tile: WorstTile, height: int, width: int) -> Window:
    """A window of at most 512 x 512 pixels that is centred on a tile as far as the image allows."""

    def axis(start: int, length: int, size: int) -> slice:
        side = min(EXHIBIT_SIDE, size)
        first = min(max(start + length // 2 - side // 2, 0), size - side)
        return slice(first, first + side)

    return axis(tile.top, tile.height, height), axis(tile.left, tile.width, width)


def _floats(image: NDArray[Any]) -> Image:
    return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image


def _conditions(manifest: Manifest, samples: Samples, overlap: int) -> dict[str, Any]:
    import torch

    return {
        "degradation": samples.describe(),
        "tile": {"height": manifest.tile.height, "width": manifest.tile.width, "overlap": overlap},
        "io": manifest.input.dtype,
        "versions": {"echoir": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
    }
