"""A parity report in a few lines of plain text, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from echoir.export.proof.figures import AgainstTruth
    from echoir.export.proof.golden import GoldenReport
    from echoir.export.proof.results import Gate, ParityReport
    from echoir.runtime.manifest import Manifest

WORDS = [
    "to PyTorch: from engine to PyTorch before clipping; codes: their largest difference in 8-bit codes",
    "input, PyTorch, engine: against ground truth; change: engine minus PyTorch",
    "seam band: where tiles overlap and are blended; elsewhere: where a single tile counts",
    "whole image: PyTorch on it in one piece; a positive gain means that tiles are nearer to ground truth",
]
HEAD = ["picture", "to PyTorch", "codes", "input", "PyTorch", "engine", "change", "SSIM"]


def lines(report: ParityReport) -> list[str]:
    """The figures of every picture and of all, in dB, and the gate's verdict."""
    manifest, tile = report.manifest, report.conditions["tile"]
    against = report.conditions.get("reference", "PyTorch in float32")
    text = [
        f"{subject(manifest)}, against {against}, run here",
        f"{degradation(report)}; tiles {tile['height']} x {tile['width']}, overlap {tile['overlap']}; PSNR in dB",
        "",
    ]
    figures = report.figures
    if figures is not None:
        rows = [
            [image.name, db(image.error.psnr), str(image.code_error), *_truth(image.truth)] for image in figures.images
        ]
        groups = figures.groups
        for label, group in groups.items() if len(groups) > 1 else ():
            if len(group.images) > 1:
                rows.append([f"all {label}", db(group.error.psnr), str(group.code_error), *_truth(group.truth)])
        truth = _truth(figures.truth) if len(groups) == 1 else ["-"] * (len(HEAD) - 3)  # a mean of unlike things
        rows.append(["all", db(figures.error.psnr), str(figures.code_error), *truth])
        text += [*table([report.before if name == "input" else name for name in HEAD], rows), ""]
        red, green, blue = figures.channel_shift
        text.append(f"channel shift {signed(red)}, {signed(green)}, {signed(blue)} codes (R, G, B)")
        worst = figures.worst_tile
        text.append(f"worst tile {db(worst.error.psnr)} dB, row {worst.top}, column {worst.left} of {worst.image}")
        if manifest.precision.name == "int8":
            drop = figures.largest_drop
            text.append(f"largest change against ground truth {signed(drop.truth.delta_psnr)} dB, in {drop.name}")
        if (whole := figures.whole) is not None:
            text.append(
                f"tiles against the whole image {db(whole.engine.psnr)} dB (seam band {db(whole.seam.psnr)}, "
                f"elsewhere {db(whole.elsewhere.psnr)}), {signed(whole.gain_psnr, 3)} dB against ground truth"
            )
        if report.seam is not None:
            text.append(report.seam.sentence)
        words = [line.replace("input", report.before) for line in WORDS[: 4 if whole is not None else 2]]
        text += ["", *words, ""]
    text += [f"rejected {name}: {reason}" for name, reason in report.rejected]
    text.append(f"gate {'passed' if report.passed else 'FAILED'}: {asked(report.gate)}")
    return text + [f"  {reason}" for reason in report.failures]


def golden_lines(report: GoldenReport) -> list[str]:
    """The figures of every golden tile, in dB, and the gate's verdict."""
    manifest = report.manifest
    text = [
        f"{subject(manifest)}, against golden tiles: what PyTorch in float32 gave at the export",
        "PyTorch is not run here" + stored(report.rounding),
        "",
    ]
    if report.tiles:
        rows = [[tile.name, db(tile.error.psnr), str(tile.code_error)] for tile in report.tiles]
        codes = max(tile.code_error for tile in report.tiles)
        text += [*table(HEAD[:3], [*rows, ["all", db(report.error.psnr), str(codes)]]), ""]
    text += [f"rejected {name}: {reason}" for name, reason in report.rejected]
    text.append(f"gate {'passed' if report.passed else 'FAILED'}: {asked(report.gate)}")
    return text + [f"  {reason}" for reason in report.failures]


def subject(manifest: Manifest) -> str:
    """What was measured, in words."""
    return f"{manifest.name}: {manifest.precision.name} through {manifest.model.backend}"


def stored(rounding: float) -> str:
    """What storing golden tiles does to the figures, in words."""
    return "" if math.isinf(rounding) else f"; its outputs were stored in 16 bits, which alone is {rounding:.1f} dB"


def degradation(report: ParityReport) -> str:
    """What the pictures are, in words."""
    done = report.conditions["degradation"]
    pictures = f"{done['pictures']} picture{'s' if done['pictures'] > 1 else ''}"
    kind = done["kind"][:1].upper() + done["kind"][1:]
    if "parts" in done:
        count = len(done["parts"])
        return f"{pictures}, {kind} in {count} forms or levels, seed {done['seed']}"
    if done["kind"] == "pairs":
        return f"{pictures} with their targets"
    sigma = f" of sigma {done['sigma']:g}" if "sigma" in done else ""
    reduced = f", reduced {done['reduced']}" if "reduced" in done else ""
    return f"{pictures}, {kind}{sigma}{reduced}, seed {done['seed']}"


def asked(gate: Gate) -> str:
    """A gate in words."""
    parts = []
    if gate.min_psnr is not None:
        parts.append(f"at least {gate.min_psnr:g} dB from engine to PyTorch on every picture")
    if gate.max_drop is not None:
        parts.append(f"at most {gate.max_drop:g} dB of change against ground truth")
    return ", ".join(parts) or "finite, not constant"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    first, *rest = widths

    def line(row: Sequence[str]) -> str:
        return "  ".join([row[0].ljust(first), *(cell.rjust(w) for cell, w in zip(row[1:], rest, strict=True))])

    return [line(head), "  ".join("-" * width for width in widths), *map(line, rows)]


def db(value: float) -> str:
    """Decibels with two digits; a dash over no pixels."""
    return "-" if math.isnan(value) else "equal" if math.isinf(value) else f"{value:.2f}"


def signed(value: float, digits: int = 4) -> str:
    """With a sign, which is a plus where the digits are all zero."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _truth(truth: AgainstTruth) -> list[str]:
    values = [db(truth.degraded_psnr), db(truth.pytorch_psnr), db(truth.engine_psnr)]
    return [*values, signed(truth.delta_psnr), f"{truth.engine_ssim:.4f}"]
