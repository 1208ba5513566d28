# ruff: noqa: RUF001 - the page says × and σ as people do
"""``report.html``: one file, nothing loaded from anywhere, light or dark as the reader's system is."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from echoir.export.proof import int8_section
from echoir.export.proof.figures import AgainstWhole, SetFigures
from echoir.export.proof.golden import GoldenReport
from echoir.export.proof.summary import degradation, signed
from echoir.runtime.files import atomic_write

if TYPE_CHECKING:
    from echoir.export.proof.results import Exhibit, Gate, ParityReport
    from echoir.runtime.manifest import Manifest


def render(report: ParityReport) -> str:
    """The whole page as HTML text."""
    name = escape(report.manifest.name)
    sections = [_header(report)]
    if report.figures is not None:
        sections += [
            _cards(report.figures, report.gate),
            _pictures(report),
            _images(report.figures),
            _tiles(report),
        ]
    if report.int8 is not None:
        sections.append(int8_section.section(report.int8))
    sections.append(_facts(report))
    body = "\n".join(section for section in sections if section)
    style = _STYLE + (int8_section.STYLE if report.int8 else "")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Parity of {name}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<style>{style}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def write_report(report: ParityReport | GoldenReport, folder: Path) -> None:
    """Write ``parity.json`` and ``report.html`` into an existing folder; ``sensitivity.json`` too, if there is any.

    Raises:
        ImageError: a file cannot be written.
    """
    texts = {"parity.json": _json(report.to_json())}
    if not isinstance(report, GoldenReport):
        texts["report.html"] = render(report)
        if report.int8 is not None:
            texts["sensitivity.json"] = _json(report.int8)
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def amplification(difference: NDArray[np.float32]) -> int:
    """The power of two that brings the 99.5th percentile of a difference to about a quarter of the range."""
    spread = float(np.quantile(np.abs(difference), 0.995))
    return 1 if spread == 0 else 2 ** min(max(round(math.log2(0.25 / spread)), 0), 20)


def _header(report: ParityReport) -> str:
    verdict = "passed" if report.passed else "failed"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.failures)
    return f"""<header>
<p class="verdict {verdict}">Gate {verdict}</p>
<h1>{escape(report.manifest.name)}</h1>
<p class="lead">{escape(_sentence(report))}</p>
{f'<ul class="reasons">{reasons}</ul>' if reasons else ""}
</header>"""


def _sentence(report: ParityReport) -> str:
    manifest = report.manifest
    return (
        f"{manifest.precision.name} through {manifest.model.backend}, against PyTorch in float32 on the same tiles, "
        f"on {degradation(report)}."
    )


def _cards(figures: SetFigures, gate: Gate) -> str:
    truth, whole = figures.truth, figures.whole
    shift = max(figures.channel_shift, key=abs)
    cards = [
        (
            "Engine against PyTorch",
            _db(figures.worst.error.psnr),
            f"worst picture; {_db(figures.error.psnr)} over all pixels",
            None if gate.min_psnr is None else f"gate ≥ {gate.min_psnr:g} dB",
        ),
        (
            "Change against truth",
            f"{signed(truth.delta_psnr)} dB",
            f"{_db(truth.engine_psnr)}, PyTorch {_db(truth.pytorch_psnr)}",
            None if gate.max_drop is None else f"gate ± {gate.max_drop:g} dB",
        ),
        ("Largest 8-bit error", f"{figures.code_error}", "codes, after clipping and rounding", None),
        ("Largest channel shift", signed(shift), "codes of 255, mean of engine minus PyTorch", None),
    ]
    if whole is not None:
        gain = f"{signed(whole.gain_psnr, 3)} dB against ground truth"
        cards.append(("Tiles against whole image", _db(whole.engine.psnr), gain, None))
    return '<section class="cards">' + "".join(_card(*card) for card in cards) + "</section>"


def _card(title: str, value: str, note: str, gate: str | None) -> str:
    asked = f'<p class="gate">{escape(gate)}</p>' if gate else ""
    return f'<div class="card"><h2>{escape(title)}</h2><p class="value">{value}</p><p>{escape(note)}</p>{asked}</div>'


def _pictures(report: ParityReport) -> str:
    rows = "\n".join(_exhibit(exhibit) for exhibit in report.exhibits)
    shown = len(report.exhibits)
    count = "" if shown == report.conditions["degradation"]["pictures"] else f"The {shown} worst pictures. "
    return f"""<section>
<h2>Pictures</h2>
<p>{count}Worst first, around the tile in which engine and PyTorch differ most. In the difference, mid-grey is
equality; brighter means that the engine's value is higher.</p>
{rows}
</section>"""


def _exhibit(exhibit: Exhibit) -> str:
    figures, factor = exhibit.figures, amplification(exhibit.difference)
    difference = np.rint(np.clip(0.5 + factor * exhibit.difference, 0, 1) * 255).astype(np.uint8)
    rows, columns = exhibit.window
    cut = ""
    if (rows.stop - rows.start, columns.stop - columns.start) != (figures.height, figures.width):
        cut = f", rows {rows.start} to {rows.stop - 1}, columns {columns.start} to {columns.stop - 1}"
    equal = "no difference" if figures.error.total == 0 else f"difference × {factor:,}"
    truth = figures.truth
    return f"""<div class="exhibit">
<h3>{escape(figures.name)} <small>{figures.width} × {figures.height}{cut}</small></h3>
<div class="triple">
{_figure(exhibit.before, f"before, {_db(truth.degraded_psnr)}")}
{_figure(exhibit.after, f"after, {_db(truth.engine_psnr)}")}
{_figure(difference, f"{equal}, {_db(figures.error.psnr)}")}
</div>
</div>"""


def _figure(pixels: NDArray[np.uint8], caption: str) -> str:
    height, width, _ = pixels.shape
    return (
        f'<figure><img src="{_data_uri(pixels)}" width="{width}" height="{height}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _images(figures: SetFigures) -> str:
    head = [
        "picture", "engine to PyTorch", "largest code", "shift R, G, B", "worst tile",
        "input", "PyTorch", "engine", "Δ", "SSIM PyTorch", "SSIM engine",
    ]  # fmt: skip
    rows = []
    for image in figures.images:
        tile, truth = image.worst_tile, image.truth
        rows.append([
            escape(image.name), _db(image.error.psnr), str(image.code_error), _shift(image.channel_shift),
            f"{_db(tile.error.psnr)} at {tile.top}, {tile.left}", *_truth(truth),
        ])  # fmt: skip
    tile = figures.worst_tile
    total = [
        "all", _db(figures.error.psnr), str(figures.code_error), _shift(figures.channel_shift),
        f"{_db(tile.error.psnr)} in {escape(tile.image)}", *_truth(figures.truth),
    ]  # fmt: skip
    return f"""<section>
<h2>Figures</h2>
<p>Engine to PyTorch: PSNR before clipping, same tiles, for a peak of 1. Input, PyTorch and engine: PSNR against
ground truth, RGB in 8-bit after clipping and rounding. The last row pools pixels for the former and is the mean
over pictures for the latter. The place of a tile is its top row and left column.</p>
{_table(head, rows, total)}
</section>"""


def _truth(truth: Any) -> list[str]:
    values = [_db(truth.degraded_psnr), _db(truth.pytorch_psnr), _db(truth.engine_psnr), signed(truth.delta_psnr)]
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
{_table(head, rows, ["all", *_whole(whole)])}
</section>"""


def _whole(whole: AgainstWhole) -> list[str]:
    errors = [_db(one.psnr) for one in (whole.engine, whole.pytorch, whole.seam, whole.elsewhere)]
    against_truth = [_db(whole.whole_psnr), _db(whole.tiled_psnr), signed(whole.gain_psnr, 3)]
    return [*errors, f"{100 * whole.seam_share:.0f} %", *against_truth]


def _facts(report: ParityReport) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _manifest(report.manifest))
    versions = ", ".join(f"{name} {version}" for name, version in report.conditions["versions"].items())
    return f"""<section>
<h2>Artifact</h2>
<dl>{rows}<dt>measured with</dt><dd>{escape(versions)}</dd></dl>
</section>"""


def _manifest(manifest: Manifest) -> Iterable[tuple[str, str]]:
    network, tile, model = manifest.network, manifest.tile, manifest.model
    yield "file", f"{model.file}, {model.bytes:,} bytes"
    yield "SHA-256", model.sha256
    yield "checkpoint", f"{manifest.checkpoint.name}, SHA-256 {manifest.checkpoint.sha256}"
    yield "network", f"{network.name}, {network.parameters:,} parameters, for {network.task}"
    kept = ", ".join(f"{len(nodes)} nodes in {kind}" for kind, nodes in manifest.precision.higher.items())
    yield "precision", manifest.precision.name + (f", {kept}" if kept else "")
    if manifest.precision.int8:
        yield "INT8", f"{len(manifest.precision.int8)} layers"
    if (calibration := manifest.calibration) is not None:
        yield (
            "calibration",
            (
                f"{calibration.tiles} tiles, ranges by {calibration.method}, layers chosen on "
                f"{calibration.sensitivity_tiles} others, SHA-256 {calibration.fingerprint}"
            ),
        )
    batch = "any" if tile.batch is None else str(tile.batch)
    yield "tile", f"{tile.height} × {tile.width}, overlap {tile.overlap}, batch {batch}"
    for role, spec in (("input", manifest.input), ("output", manifest.output)):
        yield role, f"{spec.dtype} {spec.layout} {spec.colour}, {spec.range[0]:g} to {spec.range[1]:g}"
    if manifest.engine is not None:
        yield "engine", f"TensorRT {manifest.engine.tensorrt} for {', '.join(manifest.engine.compute_capability)}"
    yield "exported with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str]) -> str:
    def row(cells: Sequence[str], kind: str = "td") -> str:
        return "<tr>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells) for cells in rows)
    return (
        f'<div class="scroll"><table><thead>{row(head, "th")}</thead>\n<tbody>\n{body}\n</tbody>'
        f"<tfoot>{row(total)}</tfoot></table></div>"
    )


def _db(value: float) -> str:
    if math.isnan(value):
        return "none"
    return "identical" if math.isinf(value) else f"{value:.2f}\u00a0dB"


def _shift(shift: Sequence[float]) -> str:
    return ", ".join(signed(value, 3) for value in shift)


_STYLE = """
:root { --paper: #fbfbfa; --ink: #1d1f21; --soft: #63686d; --line: #e2e3e1; --card: #fff; --good: #1a7f4b;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e8e8e6; --soft: #9aa0a6; --line: #2d3136;
  --card: #1c1f23; --good: #5fce96; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 6px 0 8px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 44px 0 6px; }
h3 { font-size: 15px; margin: 26px 0 8px; }
h3 small { color: var(--soft); font-weight: 400; margin-left: 6px; }
p { margin: 0 0 10px; max-width: 76ch; }
section > p, .lead { color: var(--soft); }
.lead { font-size: 16px; }
.verdict { display: inline-block; margin: 0; padding: 2px 12px; border: 1.5px solid currentColor; border-radius: 99px;
  font-weight: 600; font-size: 13px; }
.passed { color: var(--good); }
.failed, .reasons { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(195px, 1fr)); gap: 12px; margin-top: 26px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.card h2 { font-size: 13px; font-weight: 500; margin: 0; color: var(--soft); }
.card p { margin: 0; font-size: 12.5px; color: var(--soft); }
.card .value { font-size: 24px; font-weight: 600; color: var(--ink); margin: 2px 0;
  font-variant-numeric: tabular-nums; }
.card .gate { margin-top: 6px; font-weight: 600; }
.triple { display: grid; grid-template-columns: repeat(3, 1fr); gap: 12px; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 6px; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 5px; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin-top: 12px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 7px 12px 7px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tfoot td { font-weight: 600; border-bottom: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 22px; font-size: 13.5px; margin: 12px 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 720px) { .triple { grid-template-columns: 1fr; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; } }
"""
