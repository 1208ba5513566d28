"""What a measurement of parity gives: figures beside the gate they must pass."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoir.export.proof.figures import Image, ImageFigures, SetFigures, Window
from echoir.export.proof.seam import Seam
from echoir.fitting import enlargement
from echoir.runtime.manifest import Manifest

FORMAT = 1


@dataclass(frozen=True)
class Gate:
    """What an artifact must reach.

    Attributes:
        min_psnr: engine against PyTorch, in dB, for the worst image of the set; None asks nothing.
        max_drop: the largest change of the mean PSNR against ground truth, in dB, either way; for the images of each
            label, but for clean ones, of which a network makes no better ones.
    """

    min_psnr: float | None
    max_drop: float | None

    def failures(self, figures: SetFigures) -> list[str]:
        """Why the figures do not pass, one sentence each; empty if they do."""
        reasons = self.strays(figures.worst.error.psnr, figures.worst.name)
        groups = figures.groups
        for label, group in groups.items():
            delta, where = group.truth.delta_psnr, f" ({label})" if len(groups) > 1 else ""
            if self.max_drop is not None and not group.clean and not abs(delta) <= self.max_drop:
                reasons.append(
                    f"PSNR against ground truth changes by {delta:+.4f} dB{where}, the gate is {self.max_drop:g} dB"
                )
        return reasons

    def strays(self, psnr: float, name: str) -> list[str]:
        """Why an engine that is so near to PyTorch, in dB, where it is furthest does not pass; empty if it does."""
        if self.min_psnr is None or psnr >= self.min_psnr:
            return []
        return [f"engine against PyTorch is {psnr:.2f} dB on {name}, the gate is {self.min_psnr:g} dB"]


# Engine against PyTorch in float32, for an engine that gives floats.
GATES = {
    "fp32": Gate(min_psnr=90.0, max_drop=None),
    "fp16": Gate(min_psnr=55.0, max_drop=0.02),
    "int8": Gate(min_psnr=40.0, max_drop=0.10),
}


def default_gate(manifest: Manifest, min_psnr: float | None = None, max_drop: float | None = None) -> Gate:
    """The gate of a precision, translated for models that give 8-bit codes; limits that are given replace its own."""
    gate = GATES[manifest.precision.name]
    if manifest.output.dtype == "uint8" and gate.min_psnr is not None:
        gate = replace(gate, min_psnr=round(psnr_of_codes(gate.min_psnr), 1))
    return Gate(gate.min_psnr if min_psnr is None else min_psnr, gate.max_drop if max_drop is None else max_drop)


def psnr_of_codes(psnr: float) -> float:
    """PSNR of two images after each was rounded to 8 bits, from that before rounding.

    Two values an error e (in codes) apart, spread evenly between codes, round to whole numbers that differ by e on
    average: by one of the two next to it. The squared difference is e^2 + f (1 - f), f being the fraction of \\|e\\|.
    Its mean over a Gaussian e of standard deviation s is s^2 + 1/6 - sum over n of exp(-2 (pi n s)^2) / (pi n)^2, by
    the Fourier series of f (1 - f); s * sqrt(2 / pi) where s is small. Hence 90 dB becomes 70.0, 55 dB 52.4 and 40 dB
    39.9. (Against values that are not rounded, rounding noise alone, 1/12 of a squared code, would cap any engine at
    58.9 dB.)
    """
    deviation = 255 * 10 ** (-psnr / 20)
    n = math.pi * np.arange(1, 100_001)
    mse = deviation**2 + 1 / 6 - float((np.exp(-2 * (n * deviation) ** 2) / n**2).sum())
    return 10 * math.log10(255**2 / mse)


def identity(manifest: Manifest) -> dict[str, str]:
    """Which artifact a report is about."""
    return {
        "name": manifest.name,
        "file": manifest.model.file,
        "sha256": manifest.model.sha256,
        "backend": manifest.model.backend,
        "precision": manifest.precision.name,
    }


@dataclass(frozen=True)
class Exhibit:
    """What the report shows of an image: its worst tile's surroundings, at most 512 pixels wide and high.

    Attributes:
        window: rows and columns of the image.
        before, pytorch, after: uint8 [h, w, 3]; the degraded input, PyTorch's output and the engine's. Of a network
            that enlarges, `before` is the input enlarged by bicubic interpolation.
        difference: float32 [h, w, 3], engine minus PyTorch.
        enlarged: the input with its pixels repeated, and the truth, both uint8 [h, w, 3]; None for other networks.
    """

    figures: ImageFigures
    window: Window
    before: NDArray[np.uint8]
    pytorch: NDArray[np.uint8]
    after: NDArray[np.uint8]
    difference: Image
    enlarged: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None


@dataclass(frozen=True)
class ParityReport:
    """Everything that was measured of one artifact.

    Attributes:
        manifest: of the artifact.
        conditions: pictures, degradation, tile, overlap, and where, when and with what it was measured.
        figures: of all images that gave pixels; None if none did.
        rejected: (image, reason) where the engine gave NaN, infinite or constant pixels.
        gate: what was asked.
        exhibits: the worst images, worst first.
        int8: the search behind an int8 artifact, as :attr:`echoir.export.quantized.Int8.sensitivity`; None
            where it is not known.
        seam: of tiles against whole pictures, with its own gate; None where it was not measured.
    """

    manifest: Manifest
    conditions: dict[str, Any]
    figures: SetFigures | None
    rejected: tuple[tuple[str, str], ...]
    gate: Gate
    exhibits: tuple[Exhibit, ...]
    int8: dict[str, Any] | None = None
    seam: Seam | None = None

    @property
    def before(self) -> str:
        """What stands before the network in figures and pictures, in a word."""
        return "bicubic" if enlargement(self.manifest.network) > 1 else "input"

    @property
    def failures(self) -> list[str]:
        """Why the gate is not passed; empty if it is."""
        reasons = [f"{name}: {reason}" for name, reason in self.rejected]
        reasons += self.gate.failures(self.figures) if self.figures else []
        return reasons + (self.seam.failures if self.seam else [])

    @property
    def passed(self) -> bool:
        return not self.failures

    def summary(self) -> dict[str, Any]:
        """The figures of the whole set and the gate: what the manifest carries."""
        return {
            "proof": "pytorch",
            "conditions": self.conditions,
            "figures": None if self.figures is None else self.figures.to_json(),
            "seam": None if self.seam is None else self.seam.to_json(),
            "gate": {**asdict(self.gate), "passed": self.passed, "failures": self.failures},
        }

    def to_json(self) -> dict[str, Any]:
        """The content of ``parity.json``."""
        return {
            "format": FORMAT,
            "artifact": identity(self.manifest),
            "checkpoint": asdict(self.manifest.checkpoint),
            **self.summary(),
            "images": [image.to_json() for image in self.figures.images] if self.figures else [],
            "rejected": [{"name": name, "reason": reason} for name, reason in self.rejected],
        }
