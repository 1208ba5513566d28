# ruff: noqa: RUF001 - the page says × and σ as people do
"""``report.html`` and ``parity.json``: what was measured, for whoever gets the artifact."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoir.export.proof import int8_section, page
from echoir.export.proof.figures import AgainstWhole, SetFigures
from echoir.export.proof.golden import GoldenReport
from echoir.export.proof.page import db
from echoir.export.proof.spread import in_codes
from echoir.export.proof.summary import degradation, signed, stored
from echoir.runtime.describe import describe
from echoir.runtime.files import atomic_write

if TYPE_CHECKING:
    from echoir.export.proof.results import Exhibit, Gate, ParityReport


def render(report: ParityReport) -> str:
    """The whole page as HTML text."""
    sections = [page.header(report.manifest.name, _sentence(report), report.failures)]
    if (figures := report.figures) is not None:
        sections += [
            page.cards(_cards(figures, report.gate)),
            _groups(figures, report.before),
            _pictures(report),
            page.errors(figures.spread),
            _images(figures, report.before),
            _tiles(report),
            _seam(report),
        ]
    if report.int8 is not None:
        sections.append(int8_section.section(report.int8))
    sections += [
        page.facts("Artifact", describe(report.manifest)),
        page.facts("Measurement", measurement_facts(report.conditions)),
    ]
    return page.document(f"Parity of {report.manifest.name}", sections)


def render_golden(report: GoldenReport) -> str:
    """The page of a proof without PyTorch."""
    manifest = report.manifest
    sentence = (
        f"{manifest.precision.name} through {manifest.model.backend}, on {len(report.tiles)} golden tiles: what "
        f"PyTorch in float32 gave when the artifact was exported{stored(report.rounding)}."
    )
    sections = [page.header(manifest.name, sentence, report.failures)]
    if report.tiles:
        gate = report.gate.min_psnr
        codes, spread = max(tile.code_error for tile in report.tiles), report.spread
        rows = [
            [
                escape(tile.name),
                db(tile.error.psnr),
                str(tile.code_error),
                in_codes(tile.spread.largest),
                _shift(tile.channel_shift),
            ]
            for tile in report.tiles
        ]
        head = ["tile", "engine to PyTorch", "largest code", "largest before rounding", "shift R, G, B"]
        exhibits = [
            page.exhibit(tile.name, f"engine against PyTorch {db(tile.error.psnr)}", tile.difference, tile.pictures)
            for tile in report.tiles
        ]
        sections += [
            page.cards(
                [
                    (
                        "Engine against PyTorch",
                        db(report.worst.error.psnr),
                        f"worst tile; {db(report.error.psnr)} over all pixels",
                        None if gate is None else f"gate ≥ {gate:g} dB",
                    ),
                    ("Largest error", f"{codes}", f"8-bit codes; {in_codes(spread.largest)} before rounding", None),
                ]
            ),
            f"<section>\n<h2>Tiles</h2>\n<p>{page.DIFFERENCE}</p>\n" + "\n".join(exhibits) + "\n</section>",
            page.errors(spread),
            f"<section>\n<h2>Figures</h2>\n{page.table(head, rows)}\n</section>",
        ]
    sections += [
        page.facts("Artifact", describe(manifest)),
        page.facts("Measurement", measurement_facts(report.conditions)),
    ]
    return page.document(f"Parity of {manifest.name}", sections)


def write_report(report: ParityReport | GoldenReport, folder: Path) -> None:
    """Write ``parity.json`` and ``report.html`` into an existing folder; ``sensitivity.json`` too, if there is any.

    Raises:
        ImageError: a file cannot be written.
    """
    texts = {
        "parity.json": _json(report.to_json()),
        "report.html": render_golden(report) if isinstance(report, GoldenReport) else render(report),
    }
    if not isinstance(report, GoldenReport) and report.int8 is not None:
        texts["sensitivity.json"] = _json(report.int8)
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _sentence(report: ParityReport) -> str:
    manifest = report.manifest
    return (
        f"{manifest.precision.name} through {manifest.model.backend}, against PyTorch in float32 on the same tiles, "
        f"on {degradation(report)}."
    )


def _cards(figures: SetFigures, gate: Gate) -> list[tuple[str, str, str, str | None]]:
    whole = figures.whole
    # Where there are several, the one that changes most: a mean of unlike things says little.
    label, group = max(
        ((label, group) for label, group in figures.groups.items() if not group.clean),
        key=lambda pair: abs(pair[1].truth.delta_psnr),
        default=("", figures),
    )
    truth = group.truth
    note = f"{db(truth.engine_psnr)}, PyTorch {db(truth.pytorch_psnr)}"
    if len(figures.groups) > 1:
        note = f"{label}: {note}"
    shift = max(figures.channel_shift, key=abs)
    cards: list[tuple[str, str, str, str | None]] = [
        (
            "Engine against PyTorch",
            db(figures.worst.error.psnr),
            f"worst picture; {db(figures.error.psnr)} over all pixels",
            None if gate.min_psnr is None else f"gate ≥ {gate.min_psnr:g} dB",
        ),
        (
            "Change against truth",
            f"{signed(truth.delta_psnr)} dB",
            note,
            None if gate.max_drop is None else f"gate ± {gate.max_drop:g} dB",
        ),
        (
            "Largest error",
            f"{figures.code_error}",
            f"8-bit codes after rounding; {in_codes(figures.spread.largest)} before",
            None,
        ),
        ("Largest channel shift", signed(shift), "codes of 255, mean of engine minus PyTorch", None),
    ]
    if whole is not None:
        gain = f"{signed(whole.gain_psnr, 3)} dB against ground truth"
        cards.append(("Tiles against whole image", db(whole.engine.psnr), gain, None))
    return cards


def _groups(figures: SetFigures, before: str) -> str:
    if len(figures.groups) < 2:
        return ""
    head = ["form and level", "pictures", "engine to PyTorch, worst", before, "PyTorch", "engine", "change"]
    rows = []
    for label, group in figures.groups.items():
        truth = group.truth
        values = [db(truth.degraded_psnr), db(truth.pytorch_psnr), db(truth.engine_psnr), signed(truth.delta_psnr)]
        rows.append([escape(label), str(len(group.images)), db(group.worst.error.psnr), *values])
    return f"""<section>
<h2>Forms in which pictures come</h2>
<p>Pictures as the world delivers them: clipped to 8 bits, gray, as JPEG, as frames of video.
{before.capitalize()}, PyTorch and engine are PSNR against ground truth, means over pictures. What a network makes of
a form is its own affair; the engine's is to do the same. Clean pictures have no part in the gate on the change: a
network can only spoil them.</p>
{page.table(head, rows)}
</section>"""


def _pictures(report: ParityReport) -> str:
    rows = "\n".join(_exhibit(exhibit) for exhibit in report.exhibits)
    shown = len(report.exhibits)
    count = "" if shown == report.conditions["degradation"]["pictures"] else f"The {shown} worst pictures. "
    return f"""<section>
<h2>Pictures</h2>
<p>{count}Worst first, around the tile in which engine and PyTorch differ most. {page.DIFFERENCE}</p>
{rows}
</section>"""


def _exhibit(exhibit: Exhibit) -> str:
    figures, truth = exhibit.figures, exhibit.figures.truth
    rows, columns = exhibit.window
    note = f"{figures.width} × {figures.height}"
    if (rows.stop - rows.start, columns.stop - columns.start) != (figures.height, figures.width):
        note += f", rows {rows.start} to {rows.stop - 1}, columns {columns.start} to {columns.stop - 1}"
    before = "before" if exhibit.enlarged is None else "bicubic"
    pictures = [
        (exhibit.before, f"{before}, {db(truth.degraded_psnr)}"),
        (exhibit.pytorch, f"PyTorch, {db(truth.pytorch_psnr)}"),
        (exhibit.after, f"engine, {db(truth.engine_psnr)}"),
    ]
    if exhibit.enlarged is not None:
        given, original = exhibit.enlarged
        pictures = [(given, "input"), *pictures, (original, "truth")]
    note = f"{note}; engine against PyTorch {db(figures.error.psnr)}"
    return page.exhibit(figures.name, note, exhibit.difference, pictures)


def _images(figures: SetFigures, before: str) -> str:
    head = [
        "picture", "engine to PyTorch", "largest code", "shift R, G, B", "worst tile",
        before, "PyTorch", "engine", "change", "SSIM PyTorch", "SSIM engine",
    ]  # fmt: skip
    rows = []
    for image in figures.images:
        tile, truth = image.worst_tile, image.truth
        rows.append([
            escape(image.name), db(image.error.psnr), str(image.code_error), _shift(image.channel_shift),
            f"{db(tile.error.psnr)} at {tile.top}, {tile.left}", *_truth(truth),
        ])  # fmt: skip
    tile = figures.worst_tile
    total = [
        "all", db(figures.error.psnr), str(figures.code_error), _shift(figures.channel_shift),
        db(tile.error.psnr), *_truth(figures.truth),
    ]  # fmt: skip
    return f"""<section>
<h2>Figures</h2>
<p>Engine to PyTorch: PSNR before clipping, same tiles, for a peak of 1. {before.capitalize()}, PyTorch and engine:
PSNR against ground truth, RGB in 8-bit after clipping and rounding. The last row pools pixels for the former and is
the mean over pictures for the latter. The place of a tile is its top row and left column.</p>
{page.table(head, rows, total)}
</section>"""


def _truth(truth: Any) -> list[str]:
    values = [db(truth.degraded_psnr), db(truth.pytorch_psnr), db(truth.engine_psnr), signed(truth.delta_psnr)]
    return [*values, f"{truth.pytorch_ssim:.5f}", f"{truth.engine_ssim:.5f}"]


def _tiles(report: ParityReport) -> str:
    assert report.figures is not None
    whole, tile = report.figures.whole, report.conditions["tile"]
    if whole is None:
        return "<section><h2>Tiles</h2><p>Every picture is too large to go through PyTorch in one piece.</p></section>"
    head = ["picture", "engine", "PyTorch", "seam band", "elsewhere", "band's share", "whole image", "tiled", "gain"]
    rows = [
        [escape(image.name), *(_whole(image.whole) if image.whole else ["too large", *[""] * 7])]
        for image in report.figures.images
    ]
    return f"""<section>
<h2>Tiles</h2>
<p>Attention and channel gates look at everything they are given, so a tile's result differs from the whole image's.
Here are tiles of {tile["height"]} × {tile["width"]} that share at least {tile["overlap"]} pixels, against the image
in one piece through PyTorch: for the engine, for PyTorch (what tiling alone does), and for the engine inside the band
where tiles are blended and elsewhere. The last three columns are PSNR against ground truth.</p>
{page.table(head, rows, ["all", *_whole(whole)])}
</section>"""


def _seam(report: ParityReport) -> str:
    if (seam := report.seam) is None:
        return ""
    count = f"{seam.pictures} picture{'s' * (seam.pictures > 1)}"
    return f"""<section>
<h2>Where tiles meet</h2>
<p>{count}, cut so that 2 × 2 tiles share exactly the overlap, in PyTorch: {escape(seam.sentence)}.
The gate is {seam.least:g} dB where they meet{"" if seam.strict else ", for a network that is said to be local"}.</p>
</section>"""


def _whole(whole: AgainstWhole) -> list[str]:
    errors = [db(one.psnr) for one in (whole.engine, whole.pytorch, whole.seam, whole.elsewhere)]
    against_truth = [db(whole.whole_psnr), db(whole.tiled_psnr), signed(whole.gain_psnr, 3)]
    return [*errors, f"{100 * whole.seam_share:.0f} %", *against_truth]


def measurement_facts(conditions: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Where, when, with what and on what was measured."""
    for name in ("date", "command", "host"):
        if name in conditions:
            yield name, conditions[name]
    for name in ("session", "machine", "versions"):
        if entries := conditions.get(name):
            yield name, ", ".join(f"{key} {value}" for key, value in entries.items())
    if "pictures_sha256" in conditions:
        yield "pictures", f"SHA-256 {conditions['pictures_sha256']}; of each picture in parity.json"


def _shift(shift: Sequence[float]) -> str:
    return ", ".join(signed(value, 3) for value in shift)
