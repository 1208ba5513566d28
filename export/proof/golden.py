"""Golden tiles: what PyTorch made of a few tiles, kept beside the artifact.

A device proves an engine with them where PyTorch is not: the same tiles go through the engine, by the same code that
restores pictures. They lie in one ``.npz``, whose hash is in the manifest: ``input_I`` (uint8, or float16 holding the
very values that PyTorch got) and ``output_I`` of tile I, ``names``, and ``scales``, (least, step) of each. A float
output is stored in 16 bits between its least and its largest value, ``least + step * code``, which is 100 dB or more
from the output itself; float16 would be 77 dB, short of what a float32 engine must reach. 8-bit outputs are stored as
they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from echoir.export.proof.figures import SquaredError, channel_shift, code_error
from echoir.export.proof.provenance import provenance
from echoir.export.proof.results import FORMAT, Gate, default_gate, identity
from echoir.export.proof.spread import Spread
from echoir.metrics import to_8bit
from echoir.runtime.artifact import Artifact
from echoir.runtime.contract import Session
from echoir.runtime.errors import ArtifactError, RejectedOutputError
from echoir.runtime.files import atomic_write, sha256_file
from echoir.runtime.manifest import GoldenRecord, Manifest
from echoir.runtime.restorer import Restorer

if TYPE_CHECKING:
    from collections.abc import Callable

Pixels = NDArray[Any]
SIDE = 256  # pixels of an output: a few MB hold one tile of every form
LEVELS = 65535
PROOF = "golden"


@dataclass(frozen=True)
class GoldenTile:
    """One tile, or the part of a large one that a picture of 256 pixels fills.

    Attributes:
        name: of the picture and the form in which it comes.
        given: [h, w, C] of the artifact's input type: uint8, or float32 with 1 as white.
        expected: what PyTorch made of it, [s * h, s * w, C'] of the output's type; float32 is not clipped.
        rounding: mean squared difference of a float output as stored from the output itself, for a peak of 1.
    """

    name: str
    given: Pixels
    expected: Pixels
    rounding: float = 0.0


@dataclass(frozen=True)
class GoldenFigures:
    """An engine's output against PyTorch's on one tile; see :class:`echoir.export.proof.figures.ImageFigures`.

    Attributes:
        pictures: uint8 [h, w, 3] each with its caption: the input, PyTorch's output, the engine's.
        difference: float32 [h, w, 3], engine minus PyTorch.
    """

    name: str
    error: SquaredError
    code_error: int
    channel_shift: tuple[float, float, float]
    spread: Spread
    pictures: tuple[tuple[NDArray[np.uint8], str], ...]
    difference: NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.error.to_json(),
            "max_code_error": self.code_error,
            "error": self.spread.to_json(),
            "channel_shift": list(self.channel_shift),
        }


@dataclass(frozen=True)
class GoldenReport:
    """How far an engine is from what PyTorch gave when the artifact was exported.

    Attributes:
        manifest: of the artifact.
        tiles: those that gave pixels.
        rejected: (tile, reason) where the engine gave NaN, infinite or constant pixels.
        gate: what was asked; about PyTorch alone, since no ground truth is kept.
        rounding: PSNR in dB that storing alone would leave.
        conditions: where, when and with what it was measured.
    """

    manifest: Manifest
    tiles: tuple[GoldenFigures, ...]
    rejected: tuple[tuple[str, str], ...]
    gate: Gate
    rounding: float
    conditions: dict[str, Any]

    @property
    def worst(self) -> GoldenFigures:
        return max(self.tiles, key=lambda tile: tile.error.mse)

    @property
    def error(self) -> SquaredError:
        """Over all pixels."""
        return sum((tile.error for tile in self.tiles), SquaredError())

    @property
    def spread(self) -> Spread:
        """Of all pixels' errors."""
        return sum((tile.spread for tile in self.tiles), Spread())

    @property
    def failures(self) -> list[str]:
        """Why the gate is not passed; empty if it is."""
        reasons = [f"{name}: {reason}" for name, reason in self.rejected]
        if self.tiles:
            reasons += self.gate.strays(self.worst.error.psnr, self.worst.name)
        return reasons

    @property
    def passed(self) -> bool:
        return not self.failures

    def summary(self) -> dict[str, Any]:
        """What the manifest carries."""
        figures = None
        if self.tiles:
            figures = {
                **self.error.to_json(),
                "psnr_min": self.worst.error.to_json()["psnr"],
                "worst_tile": self.worst.name,
                "max_code_error": max(tile.code_error for tile in self.tiles),
                "error": self.spread.to_json(),
                "tiles": len(self.tiles),
            }
        return {
            "proof": PROOF,
            "conditions": self.conditions,
            "figures": figures,
            "gate": {"min_psnr": self.gate.min_psnr, "passed": self.passed, "failures": self.failures},
        }

    def to_json(self) -> dict[str, Any]:
        """The content of ``parity.json``."""
        return {
            "format": FORMAT,
            "artifact": identity(self.manifest),
            "golden": None if self.manifest.golden is None else self.manifest.golden.sha256,
            **self.summary(),
            "tiles": [tile.to_json() for tile in self.tiles],
            "rejected": [{"name": name, "reason": reason} for name, reason in self.rejected],
        }


def crop_side(manifest: Manifest) -> tuple[int, int]:
    """(height, width) in pixels of the input that a golden tile takes up."""
    tile, most = manifest.tile, SIDE // manifest.network.scale
    return min(tile.height, most), min(tile.width, most)


def make_golden(
    artifact: Artifact, reference: Session, pictures: Iterable[tuple[str, NDArray[np.float32]]]
) -> GoldenRecord:
    """Restore tiles through PyTorch, and write ``NAME.golden.npz`` beside the artifact.

    Args:
        artifact: whose tile, layout and type count.
        reference: PyTorch, of the artifact's input type.
        pictures: (name, float32 [H, W, C]), no larger than :func:`crop_side`.

    Raises:
        ImageError: the file cannot be written.
    """
    manifest, restorer = artifact.manifest, Restorer(reference, artifact.manifest)
    arrays: dict[str, Any] = {}
    names: list[str] = []
    scales: list[tuple[float, float]] = []
    for index, (name, picture) in enumerate(pictures):
        stored, given = _as_given(picture, manifest.input.dtype)
        expected = restorer(given)
        codes, least, step = _as_stored(expected)
        arrays |= {f"input_{index}": stored, f"output_{index}": codes}
        names.append(name)
        scales.append((least, step))
    path = artifact.model_path.with_suffix(".golden.npz")
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, names=np.array(names), scales=np.array(scales), **arrays)
    return GoldenRecord(path.name, sha256_file(path), path.stat().st_size, len(names))


def read_golden(artifact: Artifact) -> list[GoldenTile]:
    """The tiles that an artifact's manifest names.

    Raises:
        ArtifactError: it names none, or the file is missing, another one, or damaged.
    """
    record = artifact.manifest.golden
    if record is None:
        raise ArtifactError("golden", "nothing", "golden tiles", "this artifact has none: export it again")
    path = artifact.model_path.with_name(record.file)
    try:
        sha256 = sha256_file(path)
    except OSError:
        hint = "the tiles that prove the artifact belong beside it; copy them from where it was exported"
        raise ArtifactError("golden.file", f"no file at {path}", record.file, hint) from None
    if sha256 != record.sha256:
        raise ArtifactError("golden.sha256", sha256, record.sha256, f"{path.name} was edited, damaged or swapped")
    try:
        with np.load(path, allow_pickle=False) as file:
            return [
                _tile(str(name), file[f"input_{i}"], file[f"output_{i}"], *file["scales"][i])
                for i, name in enumerate(file["names"])
            ]
    except (KeyError, ValueError, BadZipFile) as error:
        raise ArtifactError("golden.file", f"{path.name}, which cannot be read ({error})", "golden tiles") from None


def measure_golden(
    manifest: Manifest,
    session: Session,
    tiles: list[GoldenTile],
    *,
    min_psnr: float | None = None,
    on_tile: Callable[[str], None] | None = None,
) -> GoldenReport:
    """Restore golden tiles through an engine, and compare with what PyTorch made of them.

    Args:
        min_psnr: the gate, in dB; None takes the precision's.
        on_tile: told the name of each finished tile.
    """
    restorer = Restorer(session, manifest)
    done: list[GoldenFigures] = []
    rejected: list[tuple[str, str]] = []
    for tile in tiles:
        try:
            restored = restorer(tile.given)
        except RejectedOutputError as error:
            rejected.append((tile.name, str(error)))
        else:
            ours, theirs = (_floats(pixels) for pixels in (restored, tile.expected))
            shift = channel_shift(ours, theirs)
            shown = zip((tile.given, theirs, ours), ("before", "PyTorch, at the export", "engine"), strict=True)
            done.append(
                GoldenFigures(
                    tile.name,
                    SquaredError.between(ours, theirs),
                    code_error(ours, theirs),
                    shift,
                    Spread.between(ours, theirs),
                    tuple((to_8bit(_floats(pixels)), caption) for pixels, caption in shown),
                    ours - theirs,
                )
            )
        if on_tile is not None:
            on_tile(tile.name)
    stored = max((tile.rounding for tile in tiles), default=0.0)
    gate = replace(default_gate(manifest, min_psnr), max_drop=None)
    rounding = -10 * math.log10(stored) if stored else math.inf
    return GoldenReport(manifest, tuple(done), tuple(rejected), gate, rounding, provenance(session))


def engine_tensors(manifest: Manifest, tile: GoldenTile) -> tuple[Pixels, Pixels]:
    """A golden tile as the model itself takes and gives it: [N, ...] of the manifest's layouts.

    N is the artifact's batch, or 1; a tile larger than the picture is filled by reflection, and of the output only the
    part that belongs to the picture is there.
    """
    from echoir.runtime.tiling import reflect

    size, count = manifest.tile, manifest.tile.batch or 1
    height, width = tile.given.shape[:2]
    given = tile.given[reflect(height, size.height)][:, reflect(width, size.width)]
    return _batch(given, manifest.input.layout, count), _batch(tile.expected, manifest.output.layout, count)


def _batch(image: Pixels, layout: str, count: int) -> Pixels:
    one = image if layout == "NHWC" else image.transpose(2, 0, 1)
    return np.ascontiguousarray(np.repeat(one[None], count, axis=0))


def _as_given(picture: NDArray[np.float32], dtype: str) -> tuple[Pixels, Pixels]:
    """(what the file holds, what the model gets): 8-bit codes where the pixels are such, else float16."""
    codes = to_8bit(picture)
    if dtype == "uint8":
        return codes, codes
    exact = _floats(codes)
    if np.array_equal(exact, picture):
        return codes, exact
    rounded = picture.astype(np.float16)
    return rounded, rounded.astype(np.float32)


def _as_stored(image: Pixels) -> tuple[Pixels, float, float]:
    """(codes, least, step) of an output."""
    if image.dtype == np.uint8:
        return image, 0.0, 0.0
    least, largest = float(image.min()), float(image.max())
    step = (largest - least) / LEVELS or 1.0
    return np.rint((image.astype(np.float64) - least) / step).astype(np.uint16), least, step


def _tile(name: str, given: Pixels, codes: Pixels, least: float, step: float) -> GoldenTile:
    """As the model takes it, from the file's arrays; a uint8 output means that the model takes uint8 as well."""
    if codes.dtype == np.uint8:
        return GoldenTile(name, given, codes)
    expected = (least + step * codes.astype(np.float64)).astype(np.float32)
    return GoldenTile(name, _floats(given), expected, float(step) ** 2 / 12)


def _floats(image: Pixels) -> Pixels:
    return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image.astype(np.float32)
